"""Counts of many shards, merged, against one dictionary."""

from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.sums import joined, merged, sums

rows = st.tuples(st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.integers(0, 2**64 - 1) | st.integers(0, 3))
runs = st.lists(st.dictionaries(rows, st.integers(1, 9), max_size=20), max_size=6)


@given(runs, st.integers(1, 4))
def test_merged_runs_are_their_sum_in_order_whatever_the_batches(
    made: list[dict[tuple[int, int], int]], size: int
) -> None:
    tables = []
    for run in made:
        names = ("key", "line")
        columns = {name: pa.array([row[i] for row in run], pa.uint64()) for i, name in enumerate(names)}
        table = sums(pa.table(columns | {"count": pa.array(run.values(), pa.int64())}), list(names), ["count"])
        tables.append([table[begin : begin + size] for begin in range(0, len(table) + 1, size)])
    parts = list(merged(tables, ["key", "line"], ["count"]))
    found = [tuple(row.values()) for part in parts for row in part.to_pylist()]
    expected = sum((Counter(run) for run in made), Counter())
    assert found == [(*row, count) for row, count in sorted(expected.items())]
    assert all(len(part) <= len(made) * size for part in parts)


def test_joined_tables_have_the_rows_asked_for() -> None:
    tables = [pa.table({"x": np.arange(size)}) for size in (0, 2, 2, 5, 1, 0)]
    assert [part["x"].to_pylist() for part in joined(tables, 3)] == [[0, 1, 0, 1], [0, 1, 2, 3, 4], [0]]
    assert [len(part) for part in joined(tables, 17, lambda table: int(table.nbytes))] == [4, 5, 1]
