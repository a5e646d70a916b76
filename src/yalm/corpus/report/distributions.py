"""How the measures of the rules are distributed, before they were judged and of what was kept in the end.

A measure's documents are three groups in a histogram: those that fell for this very measure, those that were judged by
it and fell later for something else, and those that were kept. Documents that fell earlier were never measured. The
tables are read twice, once for the bounds of the bins and once to count: memory is one row group, whatever the corpus.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from yalm.corpus.report.finished import Finished
from yalm.corpus.rules.rule import LANGUAGES
from yalm.corpus.stages.clean import DROPPED, KEPT
from yalm.corpus.stages.select import MEASURES
from yalm.corpus.tables import row_groups

BINS = 40
ALL = "all"
GROUPS = ("judged", "fallen", "kept")  # the first holds the other two
_LARGE = 20  # what goes beyond, and over two orders of magnitude, is shown on a logarithmic scale


class _Values(NamedTuple):
    """Values of one measure of some documents of one group, with their languages."""

    group: str
    measure: str
    values: NDArray[np.float64]
    languages: pa.ChunkedArray


@dataclass
class _Bounds:
    """What the bins of a measure depend on."""

    low: float = np.inf
    high: float = -np.inf
    positive: float = np.inf  # the lowest value above 0
    whole: bool = True  # all values are whole numbers

    def update(self, values: NDArray[np.float64]) -> None:
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        self.positive = min(self.positive, values.min(initial=np.inf, where=values > 0))
        self.whole = self.whole and bool((values == np.rint(values)).all())

    @property
    def logarithmic(self) -> bool:
        return self.low >= 0 and self.high > _LARGE and self.high > 100 * self.positive

    def edges(self) -> NDArray[np.float64]:
        """The edges of the bins; on a logarithmic scale what is not above 0 belongs to the first."""
        if self.logarithmic:
            return np.geomspace(self.positive, self.high, BINS + 1)
        if self.whole and self.high - self.low < BINS:
            return np.arange(self.low - 0.5, self.high + 1)
        if self.low == self.high:
            return np.array([self.low - 0.5, self.high + 0.5])
        return np.linspace(self.low, self.high, BINS + 1)


@dataclass
class _Histogram:
    """Counts of one measure by language and group."""

    edges: NDArray[np.float64]
    counts: dict[str, dict[str, NDArray[np.int64]]] = field(default_factory=dict)

    def add(self, language: str, group: str, values: NDArray[np.float64]) -> None:
        counts = np.histogram(np.clip(values, self.edges[0], self.edges[-1]), self.edges)[0]
        groups = self.counts.setdefault(language, {name: np.zeros(len(self.edges) - 1, np.int64) for name in GROUPS})
        groups[group] += counts


def distributions(corpus: Finished) -> list[dict[str, Any]]:
    """A histogram for each measure: measure, scale ("linear" or "log"), edges, and counts by language and group.

    The language "all" holds all documents; the groups are GROUPS.
    """
    bounds: dict[str, _Bounds] = {}
    for found in _values(corpus):
        bounds.setdefault(found.measure, _Bounds()).update(found.values)
    histograms = {measure: _Histogram(bound.edges()) for measure, bound in bounds.items()}
    for found in _values(corpus):
        histogram = histograms[found.measure]
        histogram.add(ALL, found.group, found.values)
        for language in LANGUAGES:
            spoken = pc.equal(found.languages, language).to_numpy()
            histogram.add(language, found.group, found.values[spoken])
    return [
        {
            "measure": measure,
            "scale": "log" if bounds[measure].logarithmic else "linear",
            "edges": histogram.edges.tolist(),
            "counts": {
                language: {group: counts.tolist() for group, counts in groups.items()}
                for language, groups in histogram.counts.items()
                if any(counts.any() for counts in groups.values())
            },
        }
        for measure, histogram in histograms.items()
    ]


def _values(corpus: Finished) -> Iterator[_Values]:
    """The values of all measures, of all documents that were judged by them; finite ones only, no empty arrays."""
    for found in _all_values(corpus):
        finite = np.isfinite(found.values)
        if finite.any():
            yield found._replace(values=found.values[finite], languages=found.languages.filter(pa.array(finite)))


def _all_values(corpus: Finished) -> Iterator[_Values]:
    seen: set[str] = set()  # measures of stages before
    for stage, kept_suffix in (("clean", KEPT), ("documents", MEASURES)):
        own: set[str] = set()
        for file in corpus.files(stage, kept_suffix):
            measures = [name for name in pq.read_schema(file).names if "." in name]
            own |= set(measures) - seen
            for table in row_groups(file, ["language", *measures]):
                for measure in measures:
                    values = table[measure].to_numpy()
                    if measure not in seen:
                        yield _Values("judged", measure, values, table["language"])
                    if stage == "documents":
                        yield _Values("kept", measure, values, table["language"])
        for table in corpus.tables(stage, DROPPED, ["measure", "value", "language"]):
            for measure in sorted(own & set(pc.unique(table["measure"]).to_pylist())):
                rows = table.filter(pc.equal(table["measure"], measure))
                for group in ("judged", "fallen"):
                    yield _Values(group, measure, rows["value"].to_numpy(), rows["language"])
        seen |= own
