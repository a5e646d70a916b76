"""Batches: every token predicted once an epoch, documents told apart, the same samples for any ranks."""

import json
from pathlib import Path

import pytest
import torch

from yalm.errors import YalmError
from yalm.tokens.batches import Batches, windows
from yalm.tokens.build import build_shards
from yalm.tokens.folder import TokenFolder
from yalm.tokens.mixture import PartSettings
from yalm.tokens.tokenizer import Tokenizer, train_tokenizer

T = 32


@pytest.fixture(scope="module")
def parts(tokenizer: Tokenizer, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[PartSettings]:
    """Two folders: all texts and the first twenty, in several shards."""
    made = []
    for name, some, weight in (("all", texts, 0.7), ("few", texts[:20], 0.3)):
        file = tmp_path_factory.mktemp(name) / "a.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in some), encoding="utf-8")
        build_shards([file], tokenizer, file.parent / "out", shard_bytes=5000, language="ru")
        made.append(PartSettings(name=name, path=str(file.parent / "out"), weight=weight, max_epochs=2))
    return made


def test_every_token_is_predicted_once_an_epoch(parts: list[PartSettings]) -> None:
    part = parts[0].model_copy(update={"max_epochs": 1})
    batches = Batches([part], T, seed=3)
    stream = torch.from_numpy(batches.folders[0].read(0, batches.folders[0].num_tokens).astype("int64"))
    by_place = {batches.mixture.place(n).sequence: batches.sample(n) for n in range(batches.mixture.num_samples)}
    ordered = [torch.from_numpy(by_place[k]) for k in range(len(by_place))]
    covered = len(ordered) * T
    assert len(stream) - 1 - covered < T
    assert torch.equal(torch.cat([tokens[:-1] for tokens in ordered]), stream[:covered])
    assert torch.equal(torch.cat([tokens[1:] for tokens in ordered]), stream[1 : covered + 1])


def test_batch(parts: list[PartSettings]) -> None:
    batches = Batches(parts, T, seed=1)
    batch = batches.batch(5, 40)
    assert batch.tokens.shape == (40, T + 1)
    assert batch.tokens.dtype == batch.documents.dtype == torch.int64
    assert batch.documents.shape == batch.inputs.shape == batch.targets.shape == (40, T)
    assert torch.equal(batch.inputs[:, 1:], batch.targets[:, :-1])
    starts = batch.inputs == 1
    starts[:, 0] = False
    assert torch.equal(batch.documents, starts.cumsum(1))
    assert batch.documents.max() > 0
    assert {part.language for part in batches.mixture.report(5)} == {"ru"}


def test_any_ranks_see_the_same_samples(parts: list[PartSettings]) -> None:
    whole = Batches(parts, T, seed=1).batch(0, 24)
    other = Batches(parts, T, seed=1)
    for ranks in (2, 3, 4):
        slices = torch.cat([other.batch(rank * 24 // ranks, 24 // ranks).tokens for rank in range(ranks)])
        assert torch.equal(slices, whole.tokens)
        for rank in range(ranks):
            assert torch.equal(other.batch(rank, 24 // ranks, ranks).tokens, whole.tokens[rank::ranks])
    assert not torch.equal(Batches(parts, T, seed=2).batch(0, 24).tokens, whole.tokens)


def test_prefetch_gives_the_same_and_ends(parts: list[PartSettings]) -> None:
    batches = Batches(parts, T)
    ranges = [(0, 2), (2, 4), (6, 1)]
    fetched = list(batches.prefetch(ranges))
    assert all(
        torch.equal(batch.tokens, batches.batch(*some).tokens) for batch, some in zip(fetched, ranges, strict=True)
    )
    endless = batches.prefetch(((0, 1) for _ in iter(int, 1)), ahead=1)
    assert next(endless).tokens.shape == (1, T + 1)
    endless.close()


def test_prefetch_raises_at_its_batch(parts: list[PartSettings]) -> None:
    batches = Batches(parts, T)
    fetched = batches.prefetch([(0, 1), (batches.mixture.num_samples, 1)])
    next(fetched)
    with pytest.raises(YalmError, match="epoch caps"):
        next(fetched)


def test_windows_go_in_order(parts: list[PartSettings]) -> None:
    folder = TokenFolder(parts[1].path)
    tokens = torch.cat([batch.inputs for batch in windows(folder, T, batch_size=4, limit=10)])
    assert next(windows(folder, T)).documents[0, 0] == 0, "counted from 0, also where a document begins the sequence"
    assert torch.equal(tokens.flatten(), torch.from_numpy(folder.read(0, 10 * T).astype("int64")))
    assert sum(len(batch.tokens) for batch in windows(folder, T, 4)) == (folder.num_tokens - 1) // T
    with pytest.raises(YalmError, match="not one sequence"):
        next(windows(folder, 10**6))


def test_parts_must_share_a_tokenizer(
    parts: list[PartSettings], corpus: Path, tmp_path: Path, texts: list[str]
) -> None:
    other = train_tokenizer(texts, tmp_path / "other.model", vocab_size=400)
    build_shards([corpus], other, tmp_path / "out")
    with pytest.raises(YalmError, match="another tokenizer"):
        Batches([*parts, PartSettings(name="other", path=str(tmp_path / "out"))], T)
    with pytest.raises(YalmError, match="no finished token folder"):
        Batches([PartSettings(name="none", path=str(tmp_path / "none"))], T)
