"""Repetition: texts that say the same again and again, and lists of words that say nothing.

The idea and the first thresholds are those of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1). Gopher measures
thirteen overlapping shares in characters; here are six, all of them counts of hashed words, because sorting numbers is
what a batch does fastest: a word, a pair, a run of five and a line are each one number, and the numbers of a document
are sorted once. Lines are equal if their words are, so case and punctuation hide no copy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from yalm.corpus.rules.rule import Batch, Rule, Verdict, decide
from yalm.corpus.words import Hashes, Words, mix

_STOP_WORDS = {
    "en": ("the", "be", "to", "of", "and", "that", "have", "with", "a", "in", "is", "you", "for", "or"),
    "ru": ("и", "в", "не", "на", "что", "с", "по", "как", "к", "у", "из", "за", "о", "от", "для", "или"),
}
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Repetition(Rule):
    """Drops documents of which a measure is out of bounds; texts shorter than `min_words` are kept unmeasured.

    The defaults were chosen on two corpora of books, plays, manuals, dictionaries, quotes and package descriptions, one
    Russian and one English, so that of every kind at least 98 in 100 stay, but for lists made from a template ("X is a
    river in Russia", thousands of times) and texts in another language than they claim. They are looser than those of
    Gopher where a ballad, a psalm or the reference of a programming library is more repetitive than Gopher allows. The
    richness of prose is mostly 5 or more, of short quotations 3 to 5; that of twenty keywords in some hundred words is
    below 2.
    """

    name: ClassVar[str] = "repetition"

    min_words: int = Field(default=50, ge=1, description="texts of fewer words are kept: any repetition is chance")
    max_repeated_lines: float = Field(
        default=0.5, ge=0, le=1, description="share of words in lines that stood before in the document"
    )
    max_repeated_runs: float = Field(
        default=0.4, ge=0, le=1, description="share of runs of five words that stood before in the document"
    )
    max_top_pair: float = Field(default=0.12, ge=0, le=1, description="share of the most frequent pair of words")
    max_top_word: float = Field(default=0.25, ge=0, le=1, description="share of the most frequent word")
    min_richness: float = Field(
        default=3.0, ge=0, description="distinct words divided by the root of all words, Guiraud's index"
    )
    min_stop_words: int = Field(default=2, ge=0, description="how many of its language's stop words a text must use")
    stop_words: Mapping[str, tuple[str, ...]] = Field(
        default=_STOP_WORDS, description="stop words by language; of other languages they are not counted"
    )

    def judge(self, batch: Batch) -> Verdict:
        """Measures the six shares and counts named in the settings."""
        words = batch.words
        single, pairs = _Counts.of(words.hashes), _Counts.of(words.shingles(2))
        runs = _Counts.of(words.shingles(5))
        measured = words.counts >= self.min_words
        measures = {
            "repetition.repeated_lines": repeated_lines(words),
            "repetition.repeated_runs": 1 - runs.distinct / np.maximum(runs.total, 1),
            "repetition.top_pair": pairs.top / np.maximum(pairs.total, 1),
            "repetition.top_word": single.top / np.maximum(single.total, 1),
            "repetition.richness": single.distinct / np.sqrt(np.maximum(single.total, 1)),
            "repetition.stop_words": self._stop_words(words, batch.languages),
        }
        measures = {name: np.where(measured, values, np.nan) for name, values in measures.items()}
        limits = {
            "repetition.repeated_lines": (None, self.max_repeated_lines),
            "repetition.repeated_runs": (None, self.max_repeated_runs),
            "repetition.top_pair": (None, self.max_top_pair),
            "repetition.top_word": (None, self.max_top_word),
            "repetition.richness": (self.min_richness, None),
            "repetition.stop_words": (float(self.min_stop_words), None),
        }
        return decide(measures, limits)

    def _stop_words(self, words: Words, languages: NDArray[np.str_]) -> NDArray[np.float64]:
        """How many of its language's stop words each document uses, NaN where the language has none."""
        found = np.full(len(languages), np.nan)
        documents = np.repeat(np.arange(len(languages)), words.counts)
        for language, listed in self.stop_words.items():
            own = languages == language
            if own.any():
                found[own] = 0
                mine = own[documents]
                hashes, places = words.hashes.values[mine], documents[mine]
                for wanted in Words(pa.array(listed, pa.large_string())).hashes.values:
                    uses = np.zeros(len(languages))
                    uses[places[hashes == wanted]] = 1
                    found[own] += uses[own]
        return found


@dataclass(frozen=True)
class _Counts:
    """Of the numbers of each document: how many, how many distinct, how often the most frequent; (documents,)."""

    total: NDArray[np.int64]
    distinct: NDArray[np.int64]
    top: NDArray[np.int64]

    @classmethod
    def of(cls, hashes: Hashes) -> "_Counts":
        size = len(hashes.counts)
        keys = _keys(hashes)
        keys.sort()
        firsts = np.flatnonzero(_firsts(keys))
        documents = _documents(hashes)[firsts]  # the order of documents is that before sorting
        distinct = np.bincount(documents, minlength=size)
        top = np.zeros(size, np.int64)
        full = distinct > 0
        if full.any():
            begins = (np.cumsum(distinct) - distinct)[full]
            top[full] = np.maximum.reduceat(np.diff(firsts, append=len(keys)), begins)
        return cls(hashes.counts, distinct, top)


def repeated_lines(words: Words) -> NDArray[np.float64]:
    """The share of each document's words that lie in lines whose words stood in an earlier line of it."""
    lines, sizes = _lines(words)
    keys = _keys(lines)
    order = np.argsort(keys)
    repeated = np.zeros(len(keys), bool)
    repeated[order] = ~_firsts(keys[order])
    inside = np.bincount(_documents(lines)[repeated], sizes[repeated], minlength=len(words.counts))
    return np.asarray(inside / np.maximum(words.counts, 1))


def _lines(words: Words) -> tuple[Hashes, NDArray[np.int64]]:
    """A number for each line that has words, equal for equal sequences of words, and how many words it has."""
    values = words.hashes.values
    begins = np.searchsorted(words.starts, np.flatnonzero(words.data == ord("\n")))
    begins = np.union1d(begins, words.offsets[:-1])
    begins = begins[begins < len(values)]
    sizes = np.diff(begins, append=len(values))
    place = np.arange(len(values)) - np.repeat(begins, sizes)
    placed = mix(values + place.astype(np.uint64) * _STEP)
    sums = np.add.reduceat(placed, begins) if len(begins) else placed
    return Hashes(mix(sums), np.searchsorted(begins, words.offsets).astype(np.int64)), sizes


def _documents(hashes: Hashes) -> NDArray[np.int64]:
    """Which document each number is of."""
    return np.repeat(np.arange(len(hashes.counts)), hashes.counts)


def _keys(hashes: Hashes) -> NDArray[np.uint64]:
    """Each number with its document in front, so that one sort serves all documents; the lowest bits make room."""
    bits = np.uint64(len(hashes.counts).bit_length())
    front = _documents(hashes).astype(np.uint64) << (np.uint64(64) - bits)
    return np.asarray(front | hashes.values >> bits)


def _firsts(ordered: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the ordered numbers differ from the one before."""
    firsts = np.ones(len(ordered), bool)
    firsts[1:] = ordered[1:] != ordered[:-1]
    return firsts
