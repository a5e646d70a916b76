"""Counting in the bytes of many texts at once: sums, sorted runs and lines, document by document."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from yalm.corpus.words import mix, utf8_buffer


def sums(values: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the values are true in each stretch [offsets[i], offsets[i + 1])."""
    return np.diff(np.searchsorted(np.flatnonzero(values), offsets))


def owners(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which stretch each element belongs to."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """part / whole, and 0 where there is nothing at all."""
    return part / np.maximum(whole, 1)


def equal_runs(keys: NDArray[np.uint64], owner: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Equal keys of one owner brought together: (order, starts), where each run of equal keys begins in `order`.

    Within a run the order is that of appearance. Key and place share one number of 64 bits, for NumPy sorts numbers
    ten times as fast as it finds the order of numbers: what is left of the key is 40 bits and more, and the whole key
    is compared after the sort.
    """
    if not len(keys):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    bits = np.uint64(len(keys).bit_length())
    own = mix(keys ^ mix(owner.astype(np.uint64)))
    packed = np.sort((own >> bits << bits) | np.arange(len(keys), dtype=np.uint64))
    order = (packed & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    own = own[order]
    return order, np.flatnonzero(np.concatenate(([True], own[1:] != own[:-1])))


class HashSet:
    """A set of hashes that asks the whole batch at once; a table of their upper bits answers most of it with no."""

    def __init__(self, hashes: NDArray[np.uint64], bits: int = 16) -> None:
        self.hashes, self._shift = np.unique(hashes), np.uint64(64 - bits)
        self._seen = np.zeros(1 << bits, bool)
        self._seen[self.hashes >> self._shift] = True

    def holds(self, values: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Which of `values` are in the set."""
        hits: NDArray[np.bool_] = self._seen[values >> self._shift]
        places = np.flatnonzero(hits)
        hits[places] = np.isin(values[places], self.hashes)
        return hits


class Bytes:
    """The bytes of texts and what they are: letters, spaces, the beginnings of characters."""

    def __init__(self, texts: pa.Array) -> None:
        self.data, self.offsets = utf8_buffer(texts)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Bytes of each text."""
        return np.diff(self.offsets)

    def of(self, table: NDArray[np.bool_]) -> NDArray[np.int64]:
        """How many bytes of each text `table` (256,) marks."""
        return sums(table[self.data], self.offsets)


def marked(characters: str) -> NDArray[np.bool_]:
    """(256,) which bytes are one of these ASCII characters."""
    table = np.zeros(256, bool)
    table[list(characters.encode("ascii"))] = True
    return table


LETTERS = np.array([byte >= 0x80 or chr(byte).isalpha() for byte in range(256)])
LEADS = np.array([byte & 0xC0 != 0x80 for byte in range(256)])  # one in every character
SPACES = marked(" \t\n\r\v\f")
