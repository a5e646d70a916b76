"""All rules on single documents, one after the other over a batch: what stays, what falls and why.

A rule sees only documents, never their neighbours, so those that fell may stay in the batch while rules go on: words
are then found once for several rules. The batch is cut down when a rule has changed texts, or half of it fell.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from yalm.config import Settings
from yalm.corpus.rules.boilerplate import Boilerplate
from yalm.corpus.rules.contamination import Contamination
from yalm.corpus.rules.entropy import Entropy
from yalm.corpus.rules.language import Language
from yalm.corpus.rules.length import Length
from yalm.corpus.rules.privacy import Privacy
from yalm.corpus.rules.repetition import Repetition
from yalm.corpus.rules.rule import Batch, Rule
from yalm.corpus.rules.text import Unicode
from yalm.corpus.tables import DROPPED


class RulesSettings(Settings):
    """The thresholds of every rule, in the order they are applied: those that mend, the cheap ones, the rest."""

    unicode: Unicode = Unicode()
    privacy: Privacy = Privacy()
    language: Language = Language()
    length: Length = Length()
    entropy: Entropy = Entropy()
    repetition: Repetition = Repetition()
    boilerplate: Boilerplate = Boilerplate()
    contamination: Contamination = Contamination()

    def rules(self) -> tuple[Rule, ...]:
        """The rules, in their order."""
        return tuple(getattr(self, name) for name in type(self).model_fields)


class Chained(NamedTuple):
    """What became of a table.

    kept      the documents left, as mended, with a column of float64 for each measure taken
    dropped   the others, in `DROPPED`: by which rule and measure, its value, and the bytes of the text as it came
    """

    kept: pa.Table
    dropped: pa.Table


def judge(rules: Sequence[Rule], table: pa.Table, skip: Collection[str] = ()) -> Chained:
    """Apply `rules` to a table in `document.SCHEMA`, but those named in `skip`."""
    total = table.num_rows
    rows = np.arange(total)  # where the documents of the batch stand in `table`
    alive = np.ones(total, bool)
    fallen_by, fallen_at = np.full(total, "", object), np.full(total, "", object)
    value = np.full(total, np.nan)
    measures: dict[str, NDArray[np.float64]] = {}
    batch = Batch(table)
    for rule in (rule for rule in rules if rule.name not in skip):
        verdict = rule.judge(batch)
        for name, values in verdict.measures.items():
            measures[name] = np.full(total, np.nan)
            measures[name][rows] = values
        falls = verdict.drop & alive[rows]
        for name in np.unique(verdict.cause[falls]):
            of = rows[falls & (verdict.cause == name)]
            fallen_by[of], fallen_at[of], value[of] = rule.name, name, measures[name][of]
        alive[rows[falls]] = False
        stay = alive[rows]
        if verdict.columns or 2 * int(stay.sum()) < len(rows):
            current = batch.table
            for name, column in verdict.columns.items():
                current = current.set_column(current.schema.get_field_index(name), current.schema.field(name), column)
            batch, rows = Batch(current.filter(stay)), rows[stay]
    kept = batch.table.filter(alive[rows])
    for name, values in measures.items():
        kept = kept.append_column(name, pa.array(values[alive]))
    return Chained(kept, _dropped(table.filter(~alive), fallen_by[~alive], fallen_at[~alive], value[~alive]))


def _dropped(
    table: pa.Table, rule: NDArray[np.object_], measure: NDArray[np.object_], value: NDArray[np.float64]
) -> pa.Table:
    columns = {
        "rule": pa.array(rule, pa.string()),
        "measure": pa.array(measure, pa.string()),
        "value": pa.array(value),
        "bytes": pc.binary_length(table["text"]),
    }
    return pa.table(
        {name: columns.get(name, table[name] if name in table.column_names else None) for name in DROPPED.names},
        schema=DROPPED,
    )
