"""A document as the corpus room knows it, and the table it is stored in.

A source yields a `Document` for every text it finds, and a `Reject` for every record it cannot use, so that broken
input is counted and can be looked at, and stops nothing. On disk documents are rows of Parquet in `SCHEMA`. From the
first stage on a document is known by its `uid`: the number of its shard in the upper 32 bits, its row there in the
lower.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa

SCHEMA = pa.schema(
    [
        ("uid", pa.uint64()),
        ("id", pa.string()),
        ("part", pa.string()),
        ("source", pa.string()),
        ("language", pa.string()),
        ("url", pa.string()),
        ("time", pa.string()),
        ("text", pa.large_string()),
        ("meta", pa.string()),
    ]
)


class Document(NamedTuple):
    """One text. `id` is unique within its file; `language` is ISO 639-1 or empty where the source does not say it.

    `source` names the collection inside a part (a set of the Pile, a newspaper, a network); `time` is ISO 8601, to the
    precision known ("2019", "2019-07-14", "2019-07-14T12:00:00Z"), or empty; `meta` is anything JSON can hold.
    """

    text: str
    id: str
    source: str
    language: str = ""
    url: str = ""
    time: str = ""
    meta: Mapping[str, Any] = {}


class Reject(NamedTuple):
    """A record of a source that is no document: where it stands, why in a few words, how it begins.

    `broken` says that something is wrong with it; a whole record that just has no text of use (a redirect, an image) is
    counted too, but does not speak against its source.
    """

    where: str
    reason: str
    sample: str = ""
    broken: bool = True


def to_table(documents: Iterable[Document], part: str, first_uid: int) -> pa.Table:
    """Documents as a table in `SCHEMA`, numbered from `first_uid`. Lone surrogates in texts become U+FFFD."""
    rows = list(documents)
    columns = {
        "uid": pa.array(range(first_uid, first_uid + len(rows)), pa.uint64()),
        "part": pa.array([part] * len(rows), pa.string()),
        "meta": pa.array([json.dumps(row.meta, ensure_ascii=False, sort_keys=True) for row in rows], pa.string()),
    }
    for name in ("id", "source", "language", "url", "time", "text"):
        values = [getattr(row, name) for row in rows]
        try:
            columns[name] = pa.array(values, SCHEMA.field(name).type)
        except UnicodeEncodeError:
            whole = [value.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for value in values]
            columns[name] = pa.array(whole, SCHEMA.field(name).type)
    return pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA)
