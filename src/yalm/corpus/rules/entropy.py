"""Entropy, too low and too high: what says the same over and over, and what says nothing that anyone could expect.

Two measures, in bits a character, so that Russian at two bytes a letter and English at one are judged alike. The first
is the entropy of single characters (Shannon 1948, A Mathematical Theory of Communication): sum of -p log2 p over their
frequencies in the text, in NumPy over whole batches, with all characters beyond ASCII folded to 128 classes. It knows
nothing of order. The second does: the size of the text, at one byte a class, after zstd, an upper bound of its entropy.
A compressor needs a while to learn a text, so it is asked only about texts of some length, and only about their
beginning, that long ones be not punished for it.
"""

from typing import ClassVar

import numpy as np
import pyarrow as pa
import zstandard
from numpy.typing import NDArray
from pydantic import Field

from yalm.corpus.rules.rule import Batch, Rule, Verdict, decide

_CLASSES = 256
_LEVEL = 3


class Entropy(Rule):
    """Drops texts whose characters, or whose runs of characters, are too much or too little alike.

    Of the Russian and English books, plays, manuals, quotations and dictionaries the bounds were set on, 99 % have 4.1
    to 6.0 bits of single characters, most in the manuals that mix two alphabets, and 1.6 to 5.5 when compressed; random
    characters of two alphabets have 7.3 of either, one sentence over and over 0.1 when compressed.
    """

    name: ClassVar[str] = "entropy"

    min_characters: float = Field(default=3.0, ge=0, description="bits of a character, by frequencies")
    max_characters: float = Field(default=6.3, gt=0)
    min_compressed: float = Field(default=0.9, ge=0, description="bits of a character, compressed")
    max_compressed: float = Field(default=6.2, gt=0)
    short: int = Field(default=200, ge=0, description="shorter texts, in characters, are not judged by frequencies")
    compressed_from: int = Field(default=1000, ge=1, description="shorter texts are not judged compressed")
    compressed_to: int = Field(default=8000, ge=1, description="how much of the beginning is compressed")

    def judge(self, batch: Batch) -> Verdict:
        """Measures `entropy.characters` and `entropy.compressed`, NaN for texts too short for them."""
        characters, offsets = folded(batch.texts)
        lengths = np.diff(offsets)
        frequencies = character_entropy(characters, offsets)
        measures = {
            "entropy.characters": np.where(lengths < self.short, np.nan, frequencies),
            "entropy.compressed": self._compressed(characters, offsets),
        }
        limits = {
            "entropy.characters": (self.min_characters, self.max_characters),
            "entropy.compressed": (self.min_compressed, self.max_compressed),
        }
        return decide(measures, limits)

    def _compressed(self, characters: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=False)
        bits = np.full(len(offsets) - 1, np.nan)
        for row in np.flatnonzero(np.diff(offsets) >= self.compressed_from):
            beginning = characters[offsets[row] : min(offsets[row + 1], offsets[row] + self.compressed_to)]
            bits[row] = 8 * len(compressor.compress(beginning.tobytes())) / len(beginning)
        return bits


def folded(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The characters of all texts as classes, and where in them each text begins (one more than there are texts).

    ASCII is itself; of other characters the lowest seven bits stand for all, which keeps those of one alphabet apart.
    """
    values = texts.to_pylist()
    characters = np.frombuffer("".join(values).encode("utf-32-le"), np.uint32)
    classes = np.where(characters < 128, characters, 128 | (characters & 127)).astype(np.uint8)
    return classes, np.concatenate((np.zeros(1, np.int64), np.cumsum([len(value) for value in values], dtype=np.int64)))


def character_entropy(characters: NDArray[np.uint8], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Bits of a character in each text; 0 for an empty one."""
    texts = len(offsets) - 1
    row = np.repeat(np.arange(texts), np.diff(offsets))
    counts = np.bincount(row * _CLASSES + characters, minlength=texts * _CLASSES).reshape(texts, _CLASSES)
    shares = counts / np.maximum(1, np.diff(offsets))[:, None]
    return np.asarray(-np.sum(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares)), axis=1))
