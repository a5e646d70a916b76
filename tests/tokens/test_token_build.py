"""Building folders: same bytes for any workers, going on after a kill, faults in the input and on the disk."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processes import is_killed
from yalm.errors import YalmError
from yalm.tokens import build
from yalm.tokens.build import build_shards
from yalm.tokens.folder import TokenFolder, verify
from yalm.tokens.tokenizer import Tokenizer, train_tokenizer

SHARD = 6000  # raw bytes a shard: about twenty shards of the corpus


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_stream_is_all_documents(tokenizer: Tokenizer, corpus: Path, tmp_path: Path, texts: list[str]) -> None:
    folder = build_shards([corpus], tokenizer, tmp_path / "out", language="ru", shard_bytes=SHARD)
    expected = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    assert [document.tolist() for document in folder.documents()] == expected
    flat = [token for document in expected for token in document]
    assert folder.read(0, folder.num_tokens).tolist() == flat
    assert folder.num_documents == len(texts)
    assert folder.text_bytes == sum(len(text.encode()) for text in texts)
    assert folder.language == "ru"
    assert len(folder.manifest.shards) > 10
    assert folder.tokenizer_file.read_bytes() == tokenizer.file.read_bytes()
    starts = [position for position, token in enumerate(flat) if token == tokenizer.bos_id]
    assert folder.document_starts(0, folder.num_tokens).tolist() == starts
    assert verify(tmp_path / "out") == folder.manifest


@pytest.fixture(scope="module")
def built(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> TokenFolder:
    file = tmp_path_factory.mktemp("built") / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return build_shards([file], tokenizer, file.parent / "out", shard_bytes=SHARD)


@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_is_a_piece_of_the_stream(built: TokenFolder, data: st.DataObject) -> None:
    whole = built.read(0, built.num_tokens)
    start = data.draw(st.integers(0, built.num_tokens))
    stop = data.draw(st.integers(start, built.num_tokens))
    assert (built.read(start, stop) == whole[start:stop]).all()
    starts = built.document_starts(start, stop).tolist()
    assert starts == [position for position in range(start, stop) if whole[position] == 1]
    with pytest.raises(IndexError):
        built.read(start, built.num_tokens + 1)


def test_workers_do_not_change_a_byte(tokenizer: Tokenizer, corpus: Path, tmp_path: Path) -> None:
    for workers in (1, 2, 3):
        build_shards([corpus], tokenizer, tmp_path / str(workers), workers=workers, shard_bytes=SHARD)
    assert content(tmp_path / "1") == content(tmp_path / "2") == content(tmp_path / "3")


def test_goes_on_after_a_kill(
    tokenizer: Tokenizer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    encode = "yalm.tokens.tokenizer:Tokenizer.encode_batch"
    assert is_killed(encode, 4, build_shards, [corpus], tokenizer.file, out, shard_bytes=SHARD)
    assert sorted(file.name for file in out.glob("shard-*.json")) == [f"shard-00000{n}.json" for n in range(3)]
    with pytest.raises(YalmError, match="no manifest"):
        TokenFolder(out)
    (out / "shard-000001.bin").write_bytes(b"damaged meanwhile")
    written = []
    monkeypatch.setattr(build, "write_record", lambda file, record: written.append(file.stem) or write(file, record))
    folder = build_shards([corpus], tokenizer, out, shard_bytes=SHARD)
    expected = [shard.name for shard in folder.manifest.shards if shard.name not in ("shard-000000", "shard-000002")]
    assert written == [*expected, "manifest"]
    build_shards([corpus], tokenizer, tmp_path / "whole", shard_bytes=SHARD)
    assert content(out) == content(tmp_path / "whole")


write = build.write_record


def test_changed_input_is_encoded_again(tokenizer: Tokenizer, corpus: Path, tmp_path: Path) -> None:
    build_shards([corpus], tokenizer, tmp_path / "out", shard_bytes=SHARD)
    lines = corpus.read_text(encoding="utf-8").splitlines(keepends=True)
    corpus.write_text("".join([*lines[:50], json.dumps({"text": "другой"}) + "\n", *lines[52:80]]), encoding="utf-8")
    folder = build_shards([corpus], tokenizer, tmp_path / "out", shard_bytes=SHARD)
    assert tokenizer.decode(list(folder.documents())[50].tolist()) == "другой"
    build_shards([corpus], tokenizer, tmp_path / "fresh", shard_bytes=SHARD)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_line_is_named_and_nothing_is_finished(
    tokenizer: Tokenizer, corpus: Path, tmp_path: Path, workers: int
) -> None:
    build_shards([corpus], tokenizer, tmp_path / "out", shard_bytes=SHARD)
    lines = corpus.read_bytes().splitlines(keepends=True)
    corpus.write_bytes(b"".join([*lines[:40], b'{"text": "cut\n', *lines[40:]]))
    with pytest.raises(YalmError, match=r"corpus\.jsonl:41: not valid JSON"):
        build_shards([corpus], tokenizer, tmp_path / "out", workers=workers, shard_bytes=SHARD)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_another_tokenizer_is_refused(tokenizer: Tokenizer, corpus: Path, tmp_path: Path, texts: list[str]) -> None:
    build_shards([corpus], tokenizer, tmp_path / "out")
    before = content(tmp_path / "out")
    other = train_tokenizer(texts, tmp_path / "other.model", vocab_size=410)
    with pytest.raises(YalmError, match="another tokenizer"):
        build_shards([corpus], other, tmp_path / "out")
    assert content(tmp_path / "out") == before


def test_empty_documents_are_left_out_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": "x"}\n', encoding="utf-8")
    (tmp_path / "b.txt").write_text("один", encoding="utf-8")
    folder = build_shards([tmp_path / "b.txt", tmp_path / "a.jsonl"], tokenizer, tmp_path / "out")
    assert [tokenizer.decode(ids.tolist()) for ids in folder.documents()] == ["один", "x"]
    assert folder.manifest.empty_documents == 1
    assert [Path(source.file).name for source in folder.manifest.sources] == ["b.txt", "a.jsonl"]
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n', encoding="utf-8")
    with pytest.raises(YalmError, match="no document has any text"):
        build_shards([tmp_path / "a.jsonl"], tokenizer, tmp_path / "none")


@pytest.mark.parametrize("name", ["shard-000003.bin", "shard-000003.idx", "tokenizer.model"])
def test_verify_finds_one_changed_byte(tokenizer: Tokenizer, corpus: Path, tmp_path: Path, name: str) -> None:
    build_shards([corpus], tokenizer, tmp_path / "out", shard_bytes=SHARD)
    file = tmp_path / "out" / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(YalmError, match=name):
        verify(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 2}'])
def test_bad_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(YalmError, match=r"manifest\.json"):
        TokenFolder(tmp_path)


def test_shard_of_another_build_is_found(tokenizer: Tokenizer, corpus: Path, tmp_path: Path) -> None:
    folder = build_shards([corpus], tokenizer, tmp_path / "out", shard_bytes=SHARD)
    for suffix in (".bin", ".idx"):
        (tmp_path / "out" / f"shard-000002{suffix}").write_bytes(
            (tmp_path / "out" / f"shard-000001{suffix}").read_bytes()
        )
    with pytest.raises(YalmError, match="shard-000002"):
        TokenFolder(tmp_path / "out").read(0, folder.num_tokens)
