"""Records with named fields (JSON lines, Parquet, Arrow, CSV) as documents.

Which field holds what is said once, by a `layout` (the names a well-known collection uses) and by settings that change
single names. A name reaches into nested records by dots: `metadata.url`. Values are taken as they come, and what a
document cannot hold (a time that is none, a language without a code of two letters) is left empty, not guessed.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.source import Source
from yalm.streams import BrokenFile, read_lines, sample, stem


class Fields(NamedTuple):
    """Names of fields, empty where a layout has none."""

    text: str = "text"
    id: str = "id"
    url: str = "url"
    time: str = "date"
    language: str = "language"
    source: str = "source"


LAYOUTS = {
    "plain": Fields(),
    "c4": Fields(id="", time="timestamp", language="", source=""),
    "ccnet": Fields(text="raw_content", id="digest", time="date_download", source=""),
    "dolma": Fields(url="metadata.url", time="created", language=""),
    "fineweb": Fields(source=""),
    "oscar": Fields(
        text="content",
        id="warc_headers.warc-record-id",
        url="warc_headers.warc-target-uri",
        time="warc_headers.warc-date",
        language="metadata.identification.label",
        source="",
    ),
}

Row = tuple[int, Mapping[str, Any] | Reject]


class Records(Source):
    """What the sources of records have in common.

    `layout` says how the fields are called; each `…_field` changes one name, and "" says that there is no such field.
    A field that a record lacks is empty; without an id it is "<file stem>:<number of the record>". A text that is a
    list is joined by blank lines. With `keep_meta` all other fields of a record become the document's meta.
    """

    layout: Literal["plain", "c4", "ccnet", "dolma", "fineweb", "oscar"] = "plain"
    text_field: str | None = None
    id_field: str | None = None
    url_field: str | None = None
    time_field: str | None = None
    language_field: str | None = None
    source_field: str | None = None
    keep_meta: bool = False

    @property
    def fields(self) -> Fields:
        """The names that hold: those of the layout where no setting changes one."""
        set_here = {key: getattr(self, f"{key}_field") for key in Fields._fields}
        return LAYOUTS[self.layout]._replace(**{key: name for key, name in set_here.items() if name is not None})

    def rows(self, file: Path, advance: Callable[[int], None]) -> Iterator[Row]:
        """The records of one file, each with its number."""
        raise NotImplementedError

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        fields, name = self.fields, stem(file)
        for number, row in self.rows(file, advance):
            if isinstance(row, Reject):
                yield row
                continue
            text = text_of(_value(row, fields.text))
            if text is None:
                yield Reject(f"{file}:{number}", "no text", sample(", ".join(map(str, row))))
                continue
            yield Document(
                text,
                _string(_value(row, fields.id)) or f"{name}:{number}",
                _string(_value(row, fields.source)),
                language_code(_string(_value(row, fields.language))),
                _string(_value(row, fields.url)),
                iso_time(_value(row, fields.time)),
                {key: _plain(value) for key, value in row.items() if key not in fields} if self.keep_meta else {},
            )


def json_rows(file: Path, advance: Callable[[int], None]) -> Iterator[Row]:
    """The objects of a file of JSON lines with their line numbers; what is none is a `Reject`, blank lines nothing."""
    number = 0
    try:
        for number, line in read_lines(file, advance):
            if not line or line.isspace():
                continue
            try:
                row = parse_json(line)
            except ValueError:
                yield number, Reject(f"{file}:{number}", "not JSON", sample(line))
                continue
            yield number, row if isinstance(row, dict) else Reject(f"{file}:{number}", "no JSON object", sample(line))
    except BrokenFile as error:
        yield number + 1, Reject(f"{file}:{number + 1}", error.reason)


def parse_json(data: bytes) -> Any:
    """The value of a JSON text; ValueError if it is none.

    What strict JSON forbids and dumps contain (halves of surrogate pairs, NaN, a byte order mark) is let through.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        try:
            return json.loads(data.removeprefix(b"\xef\xbb\xbf"))
        except RecursionError:
            raise ValueError("nested too deep") from None


def text_of(value: Any) -> str | None:
    """A text, or the texts of a list joined by blank lines; None if there is nothing to read in it."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n\n".join(value)
    return value if isinstance(value, str) and value and not value.isspace() else None


_MILLISECONDS = 10**11  # as seconds since 1970 this is the year 5138
_CODES = {"rus": "ru", "russian": "ru", "eng": "en", "english": "en"}


def language_code(name: str) -> str:
    """ISO 639-1 of a language called `ru`, `ru-RU`, `rus`, `rus_Cyrl` or `Russian`; empty if it has no such name."""
    word = re.split("[-_]", name.strip().lower(), maxsplit=1)[0]
    word = _CODES.get(word, word)
    return word if len(word) == 2 and word.isascii() and word.isalpha() else ""


def iso_time(value: Any) -> str:
    """ISO 8601 of a time as records have it: a date, ISO 8601, (milli)seconds since 1970; empty if it is none.

    Times with a zone are given in UTC ("2019-07-14T12:00:00Z"), others as they are.
    """
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"\d{4}(-\d{2}){0,2}", text):
            return text
        try:
            value = datetime.fromisoformat(text)
        except ValueError:
            return ""
    elif isinstance(value, int | float) and not isinstance(value, bool):
        try:
            value = datetime.fromtimestamp(value / 1000 if abs(value) > _MILLISECONDS else value, UTC)
        except (ValueError, OverflowError, OSError):
            return ""
    if isinstance(value, datetime):
        if value.tzinfo is None:
            return value.isoformat(timespec="seconds")
        try:
            return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except OverflowError:
            return ""
    return value.isoformat() if isinstance(value, date) else ""


def _value(row: Mapping[str, Any], name: str) -> Any:
    """The value of a field, also of one inside another; None if it is not there."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""


def _plain(value: Any) -> Any:
    """A value as JSON can hold it and UTF-8 can write it."""
    if isinstance(value, Mapping):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, date):
        return iso_time(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else str(value)
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
