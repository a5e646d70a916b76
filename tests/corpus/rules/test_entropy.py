"""Bits of a character, against plain sums; random characters and one sentence over and over fall."""

import math
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_up import sentence, text
from yalm.corpus.document import Document, to_table
from yalm.corpus.rules.entropy import Entropy, character_entropy, folded
from yalm.corpus.rules.rule import Batch, Verdict

CHARACTERS = st.text(st.sampled_from("ab .\nжщЁ«ñ文😀"), max_size=40)


def verdict(texts: list[str], rule: Entropy | None = None) -> Verdict:
    return (rule or Entropy()).judge(Batch(to_table([Document(t, str(i), "s") for i, t in enumerate(texts)], "web", 0)))


def plain_entropy(value: str) -> float:
    counts = Counter(c if ord(c) < 128 else 128 | ord(c) & 127 for c in value)
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts.values())


@given(st.lists(CHARACTERS, max_size=8))
def test_entropy_is_that_of_frequencies(texts: list[str]) -> None:
    found = character_entropy(*folded(pa.array(texts, pa.large_string())))
    assert np.allclose(found, [plain_entropy(value) for value in texts])


def test_letters_of_one_alphabet_stay_apart() -> None:
    for letters in ("абвгдеёжзийклмнопрстуфхцчшщъыьэюя", "abcdefghijklmnopqrstuvwxyz"):
        assert len(set(folded(pa.array([letters + letters.upper()], pa.large_string()))[0].tolist())) == 2 * len(
            letters
        )


@pytest.mark.parametrize("language", ["ru", "en"])
def test_texts_stay_random_characters_and_repeated_ones_fall(language: str) -> None:
    draw = random.Random(1)
    good = [text(seed, language, sentences=40) for seed in range(20)]
    assert not verdict(good).drop.any()
    letters = [chr(draw.choice((draw.randrange(33, 127), draw.randrange(0x410, 0x450)))) for _ in range(5000)]
    judged = verdict(["".join(letters), (sentence(draw, language) + " ") * 60, "абвг" * 500, "ё" * 2000])
    assert judged.drop.all()
    assert judged.cause.tolist()[:2] == ["entropy.characters", "entropy.compressed"]


def test_short_texts_are_not_judged() -> None:
    judged = verdict(["а" * 199, "а" * 200, "а" * 999, "а" * 1000, ""])
    assert judged.drop.tolist() == [False, True, True, True, False]
    assert np.isnan(judged.measures["entropy.compressed"]).tolist() == [True, True, True, False, True]


def test_bounds_are_kept_at_the_bound() -> None:
    exact = float(verdict(["ab" * 600]).measures["entropy.characters"][0])
    rule = Entropy(min_characters=exact, max_characters=exact, min_compressed=0)
    assert not verdict(["ab" * 600], rule).drop.any()


@given(st.lists(st.builds(lambda s, n: s * n, CHARACTERS, st.integers(1, 90)), min_size=1, max_size=5), st.data())
def test_a_batch_cut_in_two_is_judged_alike(texts: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(texts)))
    whole, parts = verdict(texts), [verdict(texts[:cut]), verdict(texts[cut:])]
    for name, values in whole.measures.items():
        assert np.array_equal(values, np.concatenate([part.measures[name] for part in parts]), equal_nan=True)
