"""Bits of a character, against plain sums; random characters and one sentence over and over fall."""

import math
import random
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import zstandard
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


ASCII = "".join(map(chr, range(33, 127)))
RUSSIAN = "абвгдеёжзийклмнопрстуфхцчшщъыьэюяАБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯ0123456789!?,"


@pytest.mark.parametrize("letters", [ASCII, RUSSIAN])
@pytest.mark.parametrize(("alphabet", "falls"), [(7, True), (8, False), (78, False), (79, True)])
def test_an_even_alphabet_of_n_letters_has_log2_n_bits(letters: str, alphabet: int, falls: bool) -> None:
    judged = verdict([letters[:alphabet] * (999 // alphabet)])  # log2 of 8 is 3, of 78 and 79 6.285 and 6.304
    assert judged.cause.tolist() == ["entropy.characters" if falls else ""]
    assert judged.measures["entropy.characters"][0] == pytest.approx(math.log2(alphabet))


@pytest.mark.parametrize("letters", [ASCII, RUSSIAN])
@pytest.mark.parametrize(
    ("alphabet", "period", "falls"),  # zstd needs some log2(alphabet) bits for each character of the first period
    [(64, 1050, True), (64, 1350, False), (64, 8000, False), (77, 8000, True)],
)
def test_compressed_bits_at_their_bounds(letters: str, alphabet: int, period: int, falls: bool) -> None:
    drawn = "".join(random.Random(1).choices(letters[:alphabet], k=period))
    value = (drawn * 8)[:8000]
    judged = verdict([value + letters[0] * 8000])
    assert judged.cause.tolist() == ["entropy.compressed" if falls else ""]
    seen = bytes(c if c < 128 else 128 | c & 127 for c in map(ord, value))
    bits = 8 * len(zstandard.ZstdCompressor(write_content_size=False).compress(seen)) / 8000
    assert judged.measures["entropy.compressed"].tolist() == [bits]
