"""What all rules on single documents have in common.

A rule is a frozen group of settings, its thresholds, with one method: it is shown a batch of documents and says which
to drop, by which measures, and, if it mends texts, what they become. Rules are pure: the same batch gives the same
answer in any process, so that they run anywhere and a shard can be made again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from yalm.config import Settings
from yalm.corpus.words import Words

LANGUAGES = ("ru", "en")


class Batch:
    """Some megabytes of documents: `table` has the columns of `document.SCHEMA`."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def texts(self) -> pa.LargeStringArray:
        """All texts, as one array of large_string."""
        return self.table["text"].combine_chunks()

    @cached_property
    def languages(self) -> NDArray[np.str_]:
        """ISO 639-1 of each document, empty where it is not known."""
        return np.asarray(self.table["language"].to_pylist(), dtype=np.str_)

    @cached_property
    def words(self) -> Words:
        """The words of the texts, found once for all rules."""
        return Words(self.texts)


@dataclass(frozen=True)
class Verdict:
    """What a rule says of a batch, in arrays of one value a document.

    drop       which documents fall
    cause      the measure that made each of them fall, empty for those that stay
    measures   the numbers this was decided by, under the names that reports show; NaN where one does not apply
    columns    columns of the table that change (the mended text, the language found)
    """

    drop: NDArray[np.bool_]
    cause: NDArray[np.str_]
    measures: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    columns: Mapping[str, pa.Array] = field(default_factory=dict)


class ByLanguage(Settings):
    """A threshold that differs between languages; texts of any other language have none."""

    ru: float
    en: float

    def of(self, languages: NDArray[np.str_]) -> NDArray[np.float64]:
        """The threshold of each document; NaN, which nothing is above or below, where there is none."""
        return np.select([languages == "ru", languages == "en"], [self.ru, self.en], np.nan)


Limit = float | NDArray[np.float64]


def decide(
    measures: Mapping[str, NDArray[np.float64]],
    limits: Mapping[str, tuple[Limit | None, Limit | None]],
    columns: Mapping[str, pa.Array] | None = None,
) -> Verdict:
    """The verdict that drops what lies below the first or above the second limit of any measure.

    The first of `limits` that is passed is the cause. A document at a limit stays; a measure that is NaN drops nothing.
    """
    cause = np.full(len(next(iter(measures.values()))), "", dtype=object)
    for name, (low, high) in limits.items():
        values, passed = measures[name], np.zeros(len(cause), bool)
        if low is not None:
            passed |= values < low
        if high is not None:
            passed |= values > high
        cause[passed & (cause == "")] = name
    names = cause.astype(np.str_)
    return Verdict(names != "", names, measures, columns or {})


def untouched(
    batch: Batch,
    measures: Mapping[str, NDArray[np.float64]] | None = None,
    columns: Mapping[str, pa.Array] | None = None,
) -> Verdict:
    """The verdict that drops nothing."""
    return Verdict(np.zeros(len(batch), bool), np.full(len(batch), ""), measures or {}, columns or {})


class Rule(Settings):
    """A rule on single documents. `name` is what settings, reports and `--why-dropped` call it."""

    name: ClassVar[str]

    @property
    def files(self) -> tuple[Path, ...]:
        """Files outside that its verdicts depend on: other content of them makes other results."""
        return ()

    def judge(self, batch: Batch) -> Verdict:
        """What becomes of each document of the batch."""
        raise NotImplementedError
