"""Copies and near copies of a text, one shard at a time: what a document is recognised by, and what it is compared by.

Two texts are copies if their words are the same, and near copies if the Jaccard similarity of their shingles (sets of
runs of five words) is at least 0.8. Comparing all pairs being out of the question, a document gets a signature: equal
numbers in signatures are an unbiased estimate of the similarity (Broder 1997), and numbers folded into bands make
similar documents meet (locality-sensitive hashing; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, chapter
3). Documents that met are then compared by the shingles themselves, the very same ones (`clusters`).

The permutations of MinHash are multiplications of the shingles' hashes, themselves well mixed, by odd numbers modulo
2^64 (Dietzfelbinger et al. 1997), in blocks that stay in the cache: a signature then costs less than finding the words.
Daft's own minhash takes three quarters of the time, but keeps to itself the shingles that are to be compared.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from yalm.config import Settings
from yalm.corpus.words import Hashes, Words, mix, utf8_buffer

_BLOCK = 256 << 10  # bytes of text worked on at a time, few enough for the cache
_CACHED = 1 << 14  # shingles permuted at a time
_POWER = np.uint64(0x9E3779B97F4A7C15)
_CHECK = np.uint64(0xD1342543DE82EF95)


class DuplicatesSettings(Settings):
    """When two documents are near copies, and how surely they are found.

    Documents of Jaccard similarity s meet in at least one of b bands of r rows with probability 1 - (1 - s^r)^b. Of 16
    bands of 6 rows: 0.992 at s = 0.8, 0.9999 at 0.9; but also 0.22 at 0.5, which costs comparisons and nothing else.
    """

    similarity: float = Field(default=0.8, gt=0, le=1)
    shingle_words: int = Field(default=5, ge=1)
    bands: int = Field(default=16, ge=1, le=100)
    rows: int = Field(default=6, ge=1)
    seed: int = Field(default=1, ge=0)
    shingle_limit: int = Field(default=16_384, ge=64)
    """Shingles kept of a document for comparing. Of a longer one a half, a quarter, ... is kept, the same of all
    documents, so that at least half of this number is compared: the standard error of a similarity s is then at most
    sqrt(2 s (1 - s) / shingle_limit), 0.0044 at 0.8."""
    leaders: int = Field(default=64, ge=1)
    """Documents of one bucket that others are compared with, so that a bucket costs no more than this many comparisons
    a document. Those similar to none of them are left to the other bands."""
    bucket_limit: int = Field(default=65_536, ge=2)
    """Documents compared with one another, so that memory is bounded: a larger bucket is cut, by length, into several,
    whose stars meet in the next band."""


def band_name(band: int) -> str:
    """The column of a band in a table of signatures."""
    return f"band_{band:02}"


def signatures(table: pa.Table, settings: DuplicatesSettings) -> pa.Table:
    """What each document of a shard (columns uid, text) is recognised by.

    uid, words   the document and its number of words (int32)
    copy, check  128 bits, equal for equal words: among 1e10 documents two different ones agree with probability 1e-19
    band_00, …   64 bits for each band, null where there are no words: such texts have copies but no near copies
    """
    parts: list[dict[str, NDArray[np.generic]]] = []
    for texts in _blocks(table):
        words = Words(texts)
        minima = _minima(words.shingles(settings.shingle_words), settings.bands * settings.rows, settings.seed)
        keys = np.zeros((settings.bands, len(texts)), np.uint64)
        for row in minima.reshape(settings.bands, settings.rows, len(texts)).swapaxes(0, 1):
            keys = mix(keys * _POWER + row)
        copy, check = _fold(words.hashes, _POWER), _fold(words.hashes, _CHECK)
        bands = {band_name(band): key for band, key in enumerate(keys)}
        parts.append({"words": words.counts.astype(np.int32), "copy": copy, "check": check, **bands})
    columns = {"uid": table["uid"].combine_chunks()}
    for name, kind in _columns(settings).items():
        values = np.concatenate([np.empty(0, kind), *(part[name] for part in parts)])
        columns[name] = pa.array(values, mask=columns["words"].to_numpy() == 0 if name.startswith("band") else None)
    return pa.table(columns)


def shingles_of(table: pa.Table, uids: NDArray[np.uint64], settings: DuplicatesSettings) -> pa.Table:
    """The shingles of those documents of a shard (columns uid, text) that `uids` names.

    uid, words  the document and its number of words (int32)
    shingles    (list of uint32) the upper halves of their hashes that are below 2^32 / 2^halvings, ascending, each once
    halvings    (uint8) how often the document was halved to keep within settings.shingle_limit

    Half a hash is enough for two documents: of n different shingles in each n^2 / 2^32 agree by chance, which
    moves the similarity of the longest that are not halved by 4e-6, of a million words by 2e-4.
    """
    table = table.filter(pa.array(np.isin(table["uid"].to_numpy(), uids)))
    values: list[NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    counts: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    lengths: list[NDArray[np.int64]] = [np.empty(0, np.int64)]
    halvings: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)]
    for texts in _blocks(table):
        words = Words(texts)
        shingles = words.shingles(settings.shingle_words)
        kept = _distinct(Hashes(shingles.values >> np.uint64(32), shingles.offsets))
        halved = np.zeros(len(texts), np.uint8)
        while (over := kept.counts > settings.shingle_limit).any():
            halved += over
            bounds = np.repeat(np.uint64(2**32) >> halved.astype(np.uint64), kept.counts)
            kept = _only(kept, kept.values < bounds)
        lengths.append(words.counts)
        values.append(kept.values)
        counts.append(kept.counts)
        halvings.append(halved)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))))
    return pa.table(
        {
            "uid": table["uid"].combine_chunks(),
            "words": pa.array(np.concatenate(lengths).astype(np.int32)),
            "shingles": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values), pa.uint32())),
            "halvings": pa.array(np.concatenate(halvings)),
        }
    )


def _columns(settings: DuplicatesSettings) -> dict[str, type[np.generic]]:
    """The columns of a table of signatures after uid."""
    bands = {band_name(band): np.uint64 for band in range(settings.bands)}
    return {"words": np.int32, "copy": np.uint64, "check": np.uint64, **bands}


def _blocks(table: pa.Table) -> Iterator[pa.Array]:
    """The texts of a table in runs of about _BLOCK bytes; a longer text is a run of its own."""
    for chunk in table["text"].cast(pa.large_string()).chunks:
        _, begins = utf8_buffer(chunk)
        first = 0
        while first < len(chunk):
            last = max(int(np.searchsorted(begins, begins[first] + _BLOCK, "right")) - 1, first + 1)
            yield chunk[first:last]
            first = last


def _minima(shingles: Hashes, size: int, seed: int) -> NDArray[np.uint64]:
    """MinHash signatures, (size, documents): row i holds the least of each document's shingles in permutation i.

    Two documents are equal in a row with the probability of their Jaccard similarity. Those without shingles get 0.
    """
    factors = mix(np.arange(size, dtype=np.uint64) + np.uint64(seed) * _POWER) | np.uint64(1)
    documents = np.flatnonzero(shingles.counts)
    begins = np.append(shingles.offsets[documents], len(shingles.values))
    minima = np.zeros((size, len(shingles.counts)), np.uint64)
    first = 0
    while first < len(documents):
        last = max(int(np.searchsorted(begins, begins[first] + _CACHED, "right")) - 1, first + 1)
        values, places = shingles.values[begins[first] : begins[last]], begins[first:last] - begins[first]
        for row in range(size):
            minima[row, documents[first:last]] = np.minimum.reduceat(values * factors[row], places)
        first = last
    return minima


def _fold(hashes: Hashes, factor: np.uint64) -> NDArray[np.uint64]:
    """One number for each document's sequence of hashes: a polynomial in `factor`, modulo 2^64."""
    longest = int(hashes.counts.max(initial=0))
    powers = np.cumprod(np.full(longest, factor))
    place = np.arange(len(hashes.values)) - np.repeat(hashes.offsets[:-1], hashes.counts)
    sums = np.concatenate((np.zeros(1, np.uint64), np.cumsum(mix(hashes.values ^ factor) * powers[place])))
    return mix(sums[hashes.offsets[1:]] - sums[hashes.offsets[:-1]])


def _distinct(hashes: Hashes) -> Hashes:
    """Each document's values ascending, each once."""
    values = hashes.values.copy()
    for begin, end in pairwise(hashes.offsets.tolist()):
        values[begin:end].sort()
    first = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    first[hashes.offsets[:-1][hashes.counts > 0]] = True
    return _only(Hashes(values, hashes.offsets), first)


def _only(hashes: Hashes, chosen: NDArray[np.bool_]) -> Hashes:
    """The values chosen, each still with its document."""
    before = np.concatenate((np.zeros(1, np.int64), np.cumsum(chosen, dtype=np.int64)))
    return Hashes(hashes.values[chosen], before[hashes.offsets])
