"""Counts of many shards added up in the memory of a few batches: tables in the order of their keys, merged.

Each shard leaves its counts sorted. Merging reads all of them forward, a batch of each at a time, and adds up the rows
up to the least of the batches' last keys, for none of those can come again. Some tens are merged at once; of more, what
was merged is merged again: every level reads and writes all counts once, and their number grows with the logarithm of
that of the shards.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def sums(table: pa.Table, keys: list[str], values: list[str]) -> pa.Table:
    """The sums of `values` by `keys`, in the order of keys."""
    added = table.group_by(keys).aggregate([(name, "sum") for name in values])
    return (
        added.select([*keys, *(f"{name}_sum" for name in values)])
        .rename_columns([*keys, *values])
        .sort_by([(key, "ascending") for key in keys])
    )


def merged(runs: Sequence[Iterable[pa.Table]], keys: list[str], values: list[str]) -> Iterator[pa.Table]:
    """The sums of `values` by `keys` over all runs, in the order of keys, a part at a time.

    A run is tables one after the other, together in the order of keys, each key once. Keys that are not uint64 must
    follow from those that are: the order is theirs alone.
    """
    heads = [(table, run) for run in map(iter, runs) if (table := _next(run)) is not None]
    while heads:
        order = [
            [table[key].to_numpy() for key in keys if table.schema.field(key).type == pa.uint64()] for table, _ in heads
        ]
        bound = min(tuple(column[-1] for column in columns) for columns in order)
        counts = [_up_to(columns, bound) for columns in order]
        yield sums(
            pa.concat_tables(table[:count] for (table, _), count in zip(heads, counts, strict=True)), keys, values
        )
        rests = [
            (table[count:] if count < len(table) else _next(run), run)
            for (table, run), count in zip(heads, counts, strict=True)
        ]
        heads = [(rest, run) for rest, run in rests if rest is not None]


def joined(
    tables: Iterable[pa.Table], least: int, size: Callable[[pa.Table], int] = lambda table: int(table.num_rows)
) -> Iterator[pa.Table]:
    """Consecutive tables as one, each of at least so many rows, or so much of another `size`, but for the last."""
    waiting: list[pa.Table] = []
    waits = 0
    for table in tables:
        waiting.append(table)
        waits += size(table)
        if waits >= least:
            yield pa.concat_tables(waiting)
            waiting, waits = [], 0
    if waiting:
        yield pa.concat_tables(waiting)


def _next(run: Iterator[pa.Table]) -> pa.Table | None:
    """The next table with rows."""
    return next((table for table in run if len(table)), None)


def _up_to(columns: list[NDArray[np.uint64]], bound: tuple[np.uint64, ...]) -> int:
    """How many rows of sorted columns are not above `bound`."""
    first, last = 0, len(columns[0])
    for column, value in zip(columns, bound, strict=True):
        here = column[first:last]
        first, last = (first + int(np.searchsorted(here, value, side)) for side in ("left", "right"))
    return last
