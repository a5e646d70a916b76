"""All rules on single documents, one after the other: each sees only what those before it have left, as they left it.

So the cheap and the mending rules come first, and a document falls by the first rule it breaks.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from yalm.config import Settings
from yalm.corpus.rules.entropy import Entropy
from yalm.corpus.rules.language import Language
from yalm.corpus.rules.length import Length
from yalm.corpus.rules.repetition import Repetition
from yalm.corpus.rules.rule import Batch, Rule, Verdict
from yalm.corpus.rules.text import Unicode
from yalm.corpus.tables import DROPPED, split


class RulesSettings(Settings):
    """All rules on single documents, in the order they are applied."""

    unicode: Unicode = Unicode()
    language: Language = Language()
    length: Length = Length()
    entropy: Entropy = Entropy()
    repetition: Repetition = Repetition()

    def rules(self) -> list[Rule]:
        """The rules, in order."""
        return [getattr(self, name) for name in type(self).model_fields]


class Chained(NamedTuple):
    """What rules leave of a table: the kept documents, with a column for each measure, and in `DROPPED` the others."""

    kept: pa.Table
    dropped: pa.Table


def judge(rules: Sequence[Rule], table: pa.Table, skip: Collection[str] = ()) -> Chained:
    """Apply `rules` in order, but for those named in `skip`."""
    dropped = [DROPPED.empty_table()]
    for rule in rules:
        if rule.name not in skip:
            verdict = rule.judge(Batch(table))
            table, fallen = _apply(rule, verdict, table)
            dropped.append(fallen)
    return Chained(table, pa.concat_tables(dropped))


def _apply(rule: Rule, verdict: Verdict, table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """What stays and what falls by one verdict; the stays mended, and with the measures as columns."""
    measures = {name: np.asarray(values, np.float64) for name, values in verdict.measures.items()}
    values = np.full(len(table), np.nan)
    for name, of_measure in measures.items():
        values = np.where(verdict.cause == name, of_measure, values)
    for name, column in verdict.columns.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    for name, of_measure in measures.items():
        table = table.append_column(name, pa.array(of_measure))
    return split(table, verdict.drop, rule.name, pa.array(verdict.cause.tolist(), pa.string()), values)
