"""Values brought together by key in bounded memory, where the parts of one record are scattered over a file.

They lie in a temporary SQLite database: it stays in memory while it is small, goes to the folder of temporary files
when it outgrows its cache, and vanishes with the process. What is written out takes about twice its size there while it
is sorted.
"""

import json
import sqlite3
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import Any, Self

import orjson

from yalm.corpus.sources.records import parse_json

_MEMORY = 1 << 26  # bytes


class Groups:
    """Lists of values (anything JSON can hold) by key; iterating gives the keys in order, the values as they came.

    Memory is about `memory` bytes and the values of one key. Use it as a context manager.
    """

    def __init__(self, memory: int = _MEMORY) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # the empty name: temporary, on disk if need be
        self._database.executescript(
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = {-(memory >> 10)};"
            "PRAGMA temp_store = FILE; CREATE TABLE rows (key BLOB, value BLOB); BEGIN"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def add(self, key: str, value: Any) -> None:
        """Add one value to those of a key."""
        row = (key.encode("utf-8", "surrogatepass"), _packed(value))
        self._database.execute("INSERT INTO rows VALUES (?, ?)", row)

    def __iter__(self) -> Iterator[tuple[str, list[Any]]]:
        rows = self._database.execute("SELECT key, value FROM rows ORDER BY key, rowid")
        for key, group in groupby(rows, key=itemgetter(0)):
            yield key.decode("utf-8", "surrogatepass"), [parse_json(value) for _, value in group]


def _packed(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # lone surrogates
        return json.dumps(value).encode()
