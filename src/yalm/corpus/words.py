"""The words of many texts at once, as numbers: what the rules, deduplication and the classifier count and compare.

All texts of a batch lie in one byte buffer. A word is a run of letters and digits of the lower-cased text: ASCII
letters and digits and every byte of a non-ASCII character, but for those of Latin-1 punctuation (U+0080 to U+00BF: «
» and the no-break space), of general punctuation (U+2000 to U+207F: dashes, quotes, ellipsis) and of U+3000 to
U+303F. Its hash is a polynomial of its bytes, modulo 2^64, so that the hashes of all words come from one running sum;
it is then mixed by the finaliser of SplitMix64 (Steele, Lea and Flood 2014). Everything is NumPy over whole batches,
without a Python loop over documents; the price is that a batch costs about 40 bytes of memory a byte of text, so
batches are cut to some megabytes.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_PRIME), -1, 2**64))
_USUAL = 3 << 19  # bytes: a row group and the document that ends it
_JOIN = np.uint64(0xD6E8FEB86659FD93)
_ASCII = np.array([chr(byte).isalnum() if byte < 0x80 else True for byte in range(256)])


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64: a bijection of 64 bits in which every bit of the input moves every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def among(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the values are in an ordered array."""
    if not len(ordered):
        return np.zeros(len(values), bool)
    places = np.searchsorted(ordered, values)
    return np.asarray(ordered[np.minimum(places, len(ordered) - 1)] == values)


@dataclass(frozen=True)
class Hashes:
    """Numbers of every document, one after the other: those of document i are values[offsets[i] : offsets[i + 1]]."""

    values: NDArray[np.uint64]
    offsets: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many each document has."""
        return np.diff(self.offsets)

    def of(self, document: int) -> NDArray[np.uint64]:
        """Those of one document."""
        return self.values[self.offsets[document] : self.offsets[document + 1]]


def utf8_buffer(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all texts, without a copy, and where in them each begins (one more than there are texts).

    `texts` is an array of large_string without nulls.
    """
    _, offsets, data = texts.buffers()
    begins = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    whole = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return whole[begins[0] : begins[-1]], begins - begins[0]


def span_hashes(data: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for each span data[start:end], equal for equal bytes wherever they stand; spans may overlap."""
    size = len(data) + 1  # one more, for an empty span at the very end
    powers, inverses = (of_size[:size] for of_size in (_usual_powers() if size <= _USUAL else _powers(size)))
    sums = np.zeros(size, np.uint64)
    np.cumsum((data + np.uint64(1)) * powers[1:], out=sums[1:])
    return mix((sums[ends] - sums[starts]) * inverses[starts])


@cache
def _usual_powers() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Powers for a batch of usual size, found once: they cost as much as the hashes themselves."""
    return _powers(_USUAL)


def _powers(size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first `size` powers of the polynomial's base, and of its inverse."""
    bases = (np.full(size, base) for base in (_PRIME, _INVERSE))
    powers, inverses = (np.cumprod(base) * inverse for base, inverse in zip(bases, (_INVERSE, _PRIME), strict=True))
    return powers, inverses


class Words:
    """The words of `texts` (large_string without nulls), hashed.

    starts, ends  (words,) where each word lies in the bytes of the lower-cased texts
    offsets       (texts + 1,) which words are whose
    """

    def __init__(self, texts: pa.Array) -> None:
        self.data, text_offsets = utf8_buffer(pc.utf8_lower(texts))
        inside = _word_bytes(self.data)
        edge = np.zeros(len(inside) + 1, bool)  # a text begins here, so a word can neither go on nor come from before
        edge[text_offsets] = True
        before = np.concatenate(([False], inside))
        after = np.concatenate((inside, [False]))
        self.starts = np.flatnonzero(after & (edge | ~before))
        self.ends = np.flatnonzero(before & (edge | ~after))
        self.offsets = np.searchsorted(self.starts, text_offsets).astype(np.int64)

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many words each text has."""
        return np.diff(self.offsets)

    @cached_property
    def hashes(self) -> Hashes:
        """A number of 64 bits for each word, equal for equal words."""
        return Hashes(span_hashes(self.data, self.starts, self.ends), self.offsets)

    def shingles(self, size: int) -> Hashes:
        """A number for each run of `size` consecutive words of a text; a shorter text is one run of what it has."""
        words = self.hashes.values
        first, last = np.repeat(self.offsets[:-1], self.counts), np.repeat(self.offsets[1:], self.counts)
        place = np.arange(len(words))
        runs = words.copy()
        for shift in range(1, size):
            following = np.zeros(len(words), np.uint64)
            following[:-shift] = words[shift:]
            runs = runs * _JOIN + np.where(place + shift < last, following, np.uint64(0))
        whole = (place + size <= last) | (place == first)
        return Hashes(mix(runs[whole]), np.searchsorted(np.flatnonzero(whole), self.offsets).astype(np.int64))


def _word_bytes(data: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which bytes of lower-cased UTF-8 belong to words."""
    inside = _ASCII[data]
    latin = np.flatnonzero(data == 0xC2)
    wide = np.flatnonzero(data[:-1] == 0xE2) if len(data) else latin
    wide = wide[(data[wide + 1] == 0x80) | (data[wide + 1] == 0x81)]
    ideographic = np.flatnonzero(data[:-1] == 0xE3) if len(data) else latin
    ideographic = ideographic[data[ideographic + 1] == 0x80]
    for places, length in ((latin, 2), (wide, 3), (ideographic, 3)):
        for byte in range(length):
            inside[places + byte] = False
    return inside
