"""The words of a batch, against a plain loop over characters."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.words import Words, span_hashes

texts = st.lists(st.text(st.sampled_from("aB1 .,\n-—«»жЖё\u00a0\u3000\u2028ñ文😀"), max_size=20), max_size=6)


def plain_words(text: str) -> list[str]:
    words = [""]
    for character in text.lower():
        apart = (
            not character.isalnum()
            if character.isascii()
            else character in "«»\u00a0" or "\u2000" <= character <= "\u207f" or "\u3000" <= character <= "\u303f"
        )
        words[-1:] = [words[-1], ""] if apart else [words[-1] + character]
    return [word for word in words if word]


def words_of(batch: list[str]) -> Words:
    return Words(pa.array(batch, pa.large_string()))


@given(texts)
def test_words_are_runs_of_letters_and_digits(batch: list[str]) -> None:
    words = words_of(batch)
    found = [bytes(words.data[a:b]).decode() for a, b in zip(words.starts, words.ends, strict=True)]
    for i, text in enumerate(batch):
        assert found[words.offsets[i] : words.offsets[i + 1]] == plain_words(text)


@given(texts)
def test_equal_words_and_only_they_have_equal_hashes(batch: list[str]) -> None:
    words = words_of(batch)
    flat = [word for text in batch for word in plain_words(text)]
    hashes = words.hashes.values.tolist()
    assert len(set(zip(flat, hashes, strict=True))) == len(set(flat)) == len(set(hashes))


@given(texts, st.integers(1, 5))
def test_shingles_are_runs_of_words(batch: list[str], size: int) -> None:
    shingles = words_of(batch).shingles(size)
    names: dict[int, tuple[str, ...]] = {}
    for i, text in enumerate(batch):
        plain = plain_words(text)
        runs = [tuple(plain[j : j + size]) for j in range(max(1, len(plain) - size + 1))] if plain else []
        hashes = shingles.of(i).tolist()
        assert len(hashes) == len(runs)
        for number, run in zip(hashes, runs, strict=True):
            assert names.setdefault(number, run) == run
    assert len(set(names.values())) == len(names)


def test_a_slice_of_an_array_has_its_own_words() -> None:
    whole = pa.array(["one two", "три", "four"], pa.large_string())
    assert Words(whole[1:]).hashes.values.tolist() == words_of(["три", "four"]).hashes.values.tolist()


@given(st.binary(max_size=12), st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=8))
def test_spans_have_equal_hashes_if_and_only_if_their_bytes_are_equal(
    data: bytes, places: list[tuple[int, int]]
) -> None:
    spans = np.array([sorted(min(len(data), place) for place in pair) for pair in places], np.int64).reshape(-1, 2)
    hashes = span_hashes(np.frombuffer(data, np.uint8), spans[:, 0], spans[:, 1]).tolist()
    contents = [data[start:end] for start, end in spans]
    assert len(set(zip(contents, hashes, strict=True))) == len(set(contents)) == len(set(hashes))
