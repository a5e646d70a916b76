"""Generation as its callers see it: batches, streams, stops, limits; and scores."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import yalm
from support import GOLDEN, load_golden_model
from yalm.errors import YalmError
from yalm.inference import engine, language_model
from yalm.inference.engine import Limits
from yalm.inference.language_model import LanguageModel
from yalm.inference.loading import load
from yalm.model.config import ModelConfig
from yalm.model.network import build, initialize
from yalm.tokens.tokenizer import Tokenizer

PROMPTS = ["", "Повар", "If the honey is", "б\nв", "Сегодня щавель стоит, а  мёд №5", "%", "x" * 30]
prompt_lists = st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=5)


@settings(max_examples=25)
@given(
    prompts=prompt_lists,
    batch_size=st.integers(1, 4),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    penalty=st.sampled_from([1.0, 1.3]),
    samples=st.integers(1, 2),
)
def test_a_text_does_not_depend_on_its_company(
    lm: LanguageModel, prompts: list[str], batch_size: int, temperature: float, penalty: float, samples: int
) -> None:
    options = {"temperature": temperature, "repetition_penalty": penalty, "max_tokens": 12, "num_samples": samples}
    together = lm.generate(prompts, batch_size=batch_size, **options)
    alone = [one for place, prompt in enumerate(prompts) for one in lm.generate(prompt, first_prompt=place, **options)]
    assert together == alone


@settings(max_examples=40)
@given(prompt=st.sampled_from(PROMPTS), seed=st.integers(0, 50), data=st.data())
def test_streams_and_stop_texts(lm: LanguageModel, prompt: str, seed: int, data: st.DataObject) -> None:
    """The text ends before the stop text that is complete first, wherever tokens cut it; no part of it is shown."""
    whole = lm.generate(prompt, seed=seed, max_tokens=16)[0]
    stops = []
    for _ in range(data.draw(st.integers(0, 2))):
        start = data.draw(st.integers(0, max(0, len(whole.text) - 1)))
        stops.append(whole.text[start : start + data.draw(st.integers(1, 5))] or "none")
    stops.append(data.draw(st.sampled_from(["never there", whole.text[-3:] + "and more"])))
    made = lm.generate(prompt, seed=seed, max_tokens=16, stop=stops)[0]
    ends = [(whole.text.find(stop) + len(stop), whole.text.find(stop)) for stop in stops if stop in whole.text]
    assert made.text == (whole.text[: min(ends)[1]] if ends else whole.text)
    assert made.finish_reason == ("stop" if ends else whole.finish_reason)
    assert made.ids == whole.ids[: len(made.ids)]
    pieces = list(lm.stream(prompt, seed=seed, max_tokens=16, stop=stops))
    assert "".join(pieces) == made.text
    assert all(pieces)


def test_a_stream_comes_as_it_is_made(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_tokens(lm, monkeypatch)
    stream = lm.stream("Повар ищет", temperature=0, max_tokens=30)
    next(stream)
    assert len(passes) < 5


def count_tokens(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every pass from now on."""
    passes: list[int] = []
    original = engine.last_logits

    def counting(model: object, cache: object, new_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        passes.append(sum(map(len, new_ids)))
        return original(model, cache, new_ids)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "last_logits", counting)
    return passes


def test_no_pass_holds_padding_or_finished_rows(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prompt token and every new token but each row's last goes through the network exactly once."""
    passes = count_tokens(lm, monkeypatch)
    made = lm.generate(PROMPTS, temperature=0, max_tokens=25, batch_size=3)
    assert len({len(one.ids) for one in made}) > 1
    assert sum(passes) == sum(one.prompt_tokens + len(one.ids) - 1 for one in made)


def test_long_prompts_are_read_in_several_passes(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lm.generate(PROMPTS, max_tokens=5)
    passes = count_tokens(lm, monkeypatch)
    assert LanguageModel(lm.model, lm.tokenizer, Limits(prefill_tokens=8)).generate(PROMPTS, max_tokens=5) == expected
    assert max(passes) <= max(8, *(len(lm.tokenizer.encode(prompt)) for prompt in PROMPTS))


def test_generation_ends_with_the_positions(lm: LanguageModel) -> None:
    limit = lm.model.config.max_positions
    for prompt in PROMPTS:
        made = lm.generate(prompt, max_tokens=1000, seed=3, stop=())[0]
        assert made.prompt_tokens + len(made.ids) <= limit
        assert made.finish_reason == ("stop" if made.ids[-1] == lm.tokenizer.eos_id else "length")
        if made.finish_reason == "length":
            assert made.prompt_tokens + len(made.ids) == limit


def test_prompts_that_leave_no_room(lm: LanguageModel) -> None:
    limit = lm.model.config.max_positions
    longest = "%" * 200
    while len(lm.tokenizer.encode(longest)) >= limit:
        longest = longest[:-1]
    assert len(lm.generate(longest, max_tokens=9)[0].ids) == 1
    with pytest.raises(YalmError, match=f"{limit} positions") as error:
        lm.generate(["fine", longest + "%%"])
    assert "\n" not in str(error.value)
    lm.check_prompt(longest)
    with pytest.raises(YalmError, match="shorten"):
        lm.check_prompt(longest + "%%")


def test_a_table_padded_beyond_the_vocabulary(lm: LanguageModel) -> None:
    """The padded ids have the largest logits of all, and never come."""
    config = ModelConfig(**lm.model.config.model_dump() | {"vocab_size": 512})
    model = initialize(build(config), seed=0)
    with torch.no_grad():
        model.lm_head.bias[lm.tokenizer.vocab_size :] = 1e3
    padded = LanguageModel(model, lm.tokenizer)
    for temperature in (0.0, 1.0):
        ids = padded.generate("Повар", temperature=temperature, max_tokens=20)[0].ids
        assert max(ids) < lm.tokenizer.vocab_size


def test_a_tokenizer_larger_than_the_model_is_refused(lm: LanguageModel) -> None:
    config = ModelConfig(**lm.model.config.model_dump() | {"vocab_size": 500})
    with pytest.raises(YalmError, match="do not belong together"):
        LanguageModel(build(config), lm.tokenizer)


def test_scores_are_log_probabilities(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [prompt for prompt in PROMPTS if prompt]
    for limit in (4096, 16):  # all in one pass; in several
        monkeypatch.setattr(language_model, "SCORING_TOKENS", limit)
        for score, text in zip(lm.score(texts), texts, strict=True):
            ids = lm.tokenizer.encode(text)
            expected = lm.logits(torch.tensor([ids]))[0, :-1].log_softmax(-1)
            expected = expected.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
            assert score.ids == tuple(ids)
            torch.testing.assert_close(torch.tensor(score.logprobs), expected, atol=1e-4, rtol=0)
            assert score.total == pytest.approx(expected.sum().item(), abs=1e-3)
    assert lm.score("")[0].logprobs == ()
    with pytest.raises(YalmError, match="shorten or split"):
        lm.score("%" * 500)


def test_generation_is_likely_by_its_own_score(lm: LanguageModel) -> None:
    """Greedy ids are each the likeliest given those before: generation and scoring see the same model."""
    made = lm.generate("Повар ищет", temperature=0, max_tokens=20)[0]
    ids = [*lm.tokenizer.encode("Повар ищет"), *made.ids]
    logprobs = torch.tensor(lm.score_ids([ids])[0][-len(made.ids) :])
    best = lm.logits(torch.tensor([ids]))[0].log_softmax(-1).max(-1).values[-len(made.ids) - 1 : -1]
    torch.testing.assert_close(logprobs, best, atol=1e-4, rtol=0)


def test_loaded_from_a_folder(folder: Path, lm: LanguageModel) -> None:
    loaded = yalm.load(folder)
    assert not any(isinstance(module, nn.Linear) for module in loaded.model.modules())
    ids = torch.randint(lm.model.config.vocab_size, (3, 64), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loaded.logits(ids), lm.logits(ids), atol=1e-4, rtol=0)
    assert loaded.logits(ids).dtype == torch.float32


def test_half_precision_on_a_cpu(
    folder: Path, lm: LanguageModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.randint(lm.model.config.vocab_size, (1, 64), generator=torch.Generator().manual_seed(0))
    for instructions, lines in ((True, 0), (False, 1)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=instructions: {"avx512_bf16": found})
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            loaded = load(folder, dtype="bf16")
        assert [record.name for record in caplog.records] == ["yalm"] * lines
    # Bound of the golden set for a whole model in bfloat16.
    torch.testing.assert_close(loaded.logits(ids), lm.logits(ids), atol=0.5, rtol=0)
    assert loaded.generate("Повар", max_tokens=5, temperature=0)[0].ids


def test_what_cannot_be_loaded(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="fp64"):
        load(folder, dtype="fp64")
    with pytest.raises(YalmError, match="'quantum'"):
        load(folder, device="quantum")
    with pytest.raises(YalmError, match="no weights here"):
        load(tmp_path)
    bare = Path(shutil.copytree(folder, tmp_path / "bare"))
    (bare / "tokenizer.model").unlink()
    with pytest.raises(YalmError, match=r"holds no tokenizer.model; .*--vocab"):
        load(bare)
    with pytest.raises(YalmError, match=r"too little: .* take .*; give more"):
        load(folder, memory="100MiB")
    with pytest.raises(YalmError, match="'much' is no amount of memory"):
        load(folder, memory="much")


def test_fewer_texts_go_at_a_time_where_the_cache_is_small(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lm.generate(PROMPTS, max_tokens=5)
    longest = max(len(lm.tokenizer.encode(prompt)) for prompt in PROMPTS)
    rows: list[int] = []

    class Counted(engine.KeyValueCache):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            rows.append(self.rows)

    monkeypatch.setattr(engine, "KeyValueCache", Counted)
    small = LanguageModel(lm.model, lm.tokenizer, Limits(cache_tokens=2 * (longest + 5) + 1))
    assert small.generate(PROMPTS, max_tokens=5) == expected
    assert rows == [2]
    with pytest.raises(YalmError, match="does not fit the cache"):
        LanguageModel(lm.model, lm.tokenizer, Limits(cache_tokens=longest + 4)).generate(PROMPTS, max_tokens=5)


def test_a_model_in_training_can_generate_and_train_on() -> None:
    model = load_golden_model()
    lm = LanguageModel(model, Tokenizer(GOLDEN / "vocab.sp"))
    lm.generate("Повар", max_tokens=3)
    model(torch.tensor([[1, 5]]), torch.tensor([[5, 6]])).backward()
    assert model.lm_head.weight.grad is not None
