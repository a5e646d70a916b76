"""Whatever the passes in which texts go through the cache, the logits are those of one full pass each."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support import load_golden_model
from yalm.errors import YalmError
from yalm.inference.cache import KeyValueCache
from yalm.inference.engine import last_logits
from yalm.inference.language_model import LanguageModel
from yalm.inference.linear import pack
from yalm.model.network import Yalm

# Fractions of float32 are added in another order; the golden set's own tolerance.
TOLERANCE = 1e-4


@dataclass
class Text:
    ids: list[int]
    done: int = 0


def new_cache(model: Yalm, rows: int, fill: float = 0.0, native: bool = True) -> KeyValueCache:
    """What slots hold that nobody has filled is `fill`; C++ attends to them only where it can and `native` says so."""
    cache = KeyValueCache(model, rows, model.config.max_positions, torch.float32, "cpu")
    cache.native &= native
    cache.keys.fill_(fill)
    cache.values.fill_(fill)
    return cache


@pytest.fixture(scope="module")
def packed() -> Yalm:
    """The model as it is on CPUs, whose attention takes packed prompts at once."""
    return pack(load_golden_model())


@settings(max_examples=80)
@given(data=st.data())
def test_any_chunks_of_any_rows(lm: LanguageModel, packed: Yalm, data: st.DataObject) -> None:
    """Rows come, advance by chunks of their own lengths or rest, and go; other texts' leavings do not matter."""
    model, rows = data.draw(st.sampled_from([lm.model, packed])), 3
    native = data.draw(st.booleans())
    fill = data.draw(st.sampled_from([1e4, torch.nan] if native else [0.0, 1e4]))  # 0·NaN is NaN in a masked slot
    cache = new_cache(model, rows, fill, native)
    live: list[Text] = []
    for _ in range(data.draw(st.integers(1, 12))):
        if len(live) < rows and (not live or data.draw(st.booleans())):
            size = data.draw(st.integers(1, model.config.max_positions))
            seed = data.draw(st.integers(0, 1000))
            ids = torch.randint(model.config.vocab_size, (size,), generator=torch.Generator().manual_seed(seed))
            assert cache.add_row() == len(live)
            live.append(Text(ids.tolist()))
        one_each = data.draw(st.booleans())
        counts = [1 if one_each else data.draw(st.integers(0, len(text.ids) - text.done)) for text in live]
        with torch.inference_mode():
            check_pass(model, cache, live, counts)
        for row in reversed(range(len(live))):
            if live[row].done == len(live[row].ids):
                cache.drop_row(row)
                live[row] = live[-1]
                live.pop()
        assert cache.lengths == [text.done for text in live]


def check_pass(model: Yalm, cache: KeyValueCache, live: list[Text], counts: list[int]) -> None:
    if not sum(counts):
        return
    positions, attention = cache.extend(counts)
    new = [text.ids[text.done : text.done + count] for text, count in zip(live, counts, strict=True)]
    ids = torch.tensor([token for row in new for token in row])
    shaped = ids[:, None] if positions.dim() == 2 else ids[None]
    got = model.lm_head(model.model(shaped, positions, attention)).flatten(0, 1)
    expected = []
    for text, count in zip(live, counts, strict=True):
        if count:
            full = model(torch.tensor([text.ids[: text.done + count]]))[0]
            expected.append(full[text.done :])
        text.done += count
    torch.testing.assert_close(got, torch.cat(expected), atol=TOLERANCE, rtol=0)


def test_last_logits_are_those_after_each_rows_last_token(lm: LanguageModel) -> None:
    cache = new_cache(lm.model, rows=3)
    texts = [[1, 49, 110], [1, 182, 11, 320, 5], [1]]
    for _ in texts:
        cache.add_row()
    logits = last_logits(lm.model, cache, texts)
    expected = torch.stack([lm.logits(torch.tensor([text]))[0, -1] for text in texts])
    torch.testing.assert_close(logits, expected, atol=TOLERANCE, rtol=0)


def test_limits_are_errors(lm: LanguageModel) -> None:
    cache = new_cache(lm.model, rows=1)
    cache.add_row()
    with pytest.raises(YalmError, match="1 rows"):
        cache.add_row()
    with pytest.raises(YalmError, match="65 positions and the cache has 64"):
        cache.extend([65])
