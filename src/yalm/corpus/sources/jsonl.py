"""JSON lines with named fields: .jsonl files, plain or compressed, and the pages of Common Crawl's descendants.

The layouts `ccnet` (raw_content), `oscar` (content, since 22.01), `fineweb`, `dolma` and `c4` name the fields as those
collections do; any other collection is read by naming its fields. See `records` for what becomes of them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from yalm.corpus.sources.records import Records, Row, json_rows


class JsonLines(Records):
    """Files of one JSON object a line."""

    suffixes: ClassVar[tuple[str, ...]] = (
        *(f"{kind}{ending}" for kind in (".jsonl", ".ndjson") for ending in ("", ".gz", ".zst", ".bz2")),
        *(f".json{ending}" for ending in (".gz", ".zst", ".bz2")),
    )

    kind: Literal["jsonl"] = "jsonl"

    def rows(self, file: Path, advance: Callable[[int], None]) -> Iterator[Row]:
        yield from json_rows(file, advance)
