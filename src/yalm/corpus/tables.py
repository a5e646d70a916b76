"""Documents in Parquet files: read and written one row group at a time, which is all that is ever in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from yalm.atomic import atomic_file

# What is known of a dropped document: the rule, the measure it was judged by and its value, and the text's size.
DROPPED = pa.schema(
    [
        ("uid", pa.uint64()),
        ("id", pa.string()),
        ("part", pa.string()),
        ("language", pa.string()),
        ("rule", pa.string()),
        ("measure", pa.string()),
        ("value", pa.float64()),
        ("bytes", pa.int64()),
    ]
)


def row_groups(file: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The tables a Parquet file is written in, one after the other; an empty one, if it has no rows."""
    with pq.ParquetFile(file) as parquet:
        for number in range(parquet.num_row_groups):
            yield parquet.read_row_group(number, columns=columns)
        if not parquet.num_row_groups:
            yield parquet.read(columns=columns)


def rows_between(file: Path | str, uids: pa.ChunkedArray, columns: list[str]) -> pa.Table:
    """The rows of a Parquet file that is sorted by uid whose uid lies between the first and the last of `uids`."""
    if not len(uids):
        return pq.read_schema(file).empty_table().select(columns)
    span = (ds.field("uid") >= uids[0]) & (ds.field("uid") <= uids[len(uids) - 1])
    return ds.dataset(file, format="parquet").to_table(columns, filter=span)


class Tables:
    """A Parquet file, whole or not at all, of tables with one schema: each a row group; empty ones are left out."""

    def __init__(self, path: Path) -> None:
        self._file = atomic_file(path)
        self._writer: pq.ParquetWriter | None = None
        self._empty: pa.Table | None = None

    def __enter__(self) -> "Tables":
        self._path = self._file.__enter__()
        return self

    def write(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        self._empty = table if self._empty is None else self._empty
        if table.num_rows:
            self._open(table.schema).write_table(table)

    def _open(self, schema: pa.Schema) -> pq.ParquetWriter:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, schema, compression="zstd")
        return self._writer

    def __exit__(self, *error: Any) -> None:
        if error[0] is None and self._empty is not None:
            self._open(self._empty.schema)
        if self._writer is not None:
            self._writer.close()
        self._file.__exit__(*error)


def count_rows(name: str, table: pa.Table) -> dict[str, int]:
    """Documents and bytes of text of a table, as counts `name` and `name_bytes`."""
    return {name: table.num_rows, f"{name}_bytes": pc.sum(pc.binary_length(table["text"])).as_py() or 0}


def count_dropped(dropped: pa.Table) -> dict[str, int]:
    """Documents and bytes by rule, as counts `dropped.RULE` and `dropped_bytes.RULE`."""
    sums = dropped.group_by("rule").aggregate([("bytes", "sum"), ("uid", "count")])
    counts = {}
    for row in sums.to_pylist():
        counts[f"dropped.{row['rule']}"] = row["uid_count"]
        counts[f"dropped_bytes.{row['rule']}"] = row["bytes_sum"]
    return counts


def split(
    table: pa.Table, drop: NDArray[np.bool_], rule: str, measure: str | pa.Array, values: NDArray[np.float64]
) -> tuple[pa.Table, pa.Table]:
    """The rows that stay, and in `DROPPED` those that fall: by `rule`, for a measure (one name, or each its own)."""
    kept, fallen = table.filter(pa.array(~drop)), table.filter(pa.array(drop))
    count = fallen.num_rows
    columns = [
        fallen["uid"],
        fallen["id"],
        fallen["part"],
        fallen["language"],
        pa.array([rule] * count, pa.string()),
        pa.array([measure] * count, pa.string()) if isinstance(measure, str) else measure.filter(pa.array(drop)),
        pa.array(values[drop]),
        pc.cast(pc.binary_length(fallen["text"]), pa.int64()),
    ]
    return kept, pa.table(columns, schema=DROPPED)
