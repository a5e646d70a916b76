"""Rules one after the other."""

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, to_table
from yalm.corpus.rules.chain import judge
from yalm.corpus.rules.rule import Batch, Rule, Verdict, decide, untouched


class Shorten(Rule):
    """Cuts each text to five characters."""

    name: ClassVar[str] = "shorten"

    def judge(self, batch: Batch) -> Verdict:
        return untouched(batch, columns={"text": pc.utf8_slice_codeunits(batch.texts, 0, 5)})


class Long(Rule):
    """Drops what has more than `most` characters, or none."""

    name: ClassVar[str] = "long"
    most: int = 3

    def judge(self, batch: Batch) -> Verdict:
        lengths = pc.utf8_length(batch.texts).to_numpy().astype(np.float64)
        empty = lengths == 0
        measures = {"long.characters": lengths, "long.empty": empty.astype(np.float64)}
        return decide(measures, {"long.empty": (None, 0), "long.characters": (None, self.most)})


class Marked(Rule):
    """Drops what has an x."""

    name: ClassVar[str] = "marked"

    def judge(self, batch: Batch) -> Verdict:
        found = pc.match_substring(batch.texts, "x").to_numpy(zero_copy_only=False)
        return decide({"marked.x": found.astype(np.float64)}, {"marked.x": (None, 0)})


def table(texts: list[str]) -> pa.Table:
    return to_table([Document(text, f"d{i}", "s") for i, text in enumerate(texts)], "web", 7)


@given(st.lists(st.text("axyz", max_size=9)))
def test_a_document_falls_by_the_first_rule_it_breaks(texts: list[str]) -> None:
    judged = judge([Marked(), Shorten(), Long(most=4)], table(texts))
    expected = {}
    for i, text in enumerate(texts):
        if "x" in text:
            expected[7 + i] = ("marked", "marked.x", 1.0, len(text))
        elif not text:
            expected[7 + i] = ("long", "long.empty", 1.0, 0)
        elif len(text) > 4:
            expected[7 + i] = ("long", "long.characters", 5.0, len(text))
    rows = judged.dropped.to_pylist()
    assert {row["uid"]: (row["rule"], row["measure"], row["value"], row["bytes"]) for row in rows} == expected
    assert all(row["id"] == f"d{row['uid'] - 7}" and row["part"] == "web" for row in rows)
    kept = [i for i in range(len(texts)) if 7 + i not in expected]
    assert judged.kept["uid"].to_pylist() == [7 + i for i in kept]
    assert judged.kept["text"].to_pylist() == [texts[i][:5] for i in kept]
    assert judged.kept["long.characters"].to_pylist() == [len(texts[i]) for i in kept]


def test_a_skipped_rule_is_not_asked() -> None:
    judged = judge([Marked(), Long()], table(["x", "aaaa"]), skip=["marked"])
    assert judged.kept["text"].to_pylist() == ["x"]
    assert "marked.x" not in judged.kept.column_names


def test_no_documents_and_no_rules() -> None:
    assert judge([Marked(), Shorten(), Long()], table([])).kept.num_rows == 0
    assert judge([], table(["a"])).kept["text"].to_pylist() == ["a"]
