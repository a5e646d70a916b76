"""Russian news as their collectors publish them: Lenta.ru, RIA, Buriy's crawl, and that of ODS.

`lenta`: lenta-ru-news.csv.bz2 or .gz (url, title, text, topic, tags; since v1.1 date). `ria`: ria.json.gz, lines of
JSON whose texts are HTML with entities escaped twice. `buriy`: news-articles-….tar.bz2, CSV files in a tar. `ods`:
….csv.gz, where quotes and line ends inside of texts are written with a backslash. Names of columns are those of the
header. Rows that are no CSV are rejected, and reading goes on at the next line; as one quote too many swallows what
stands before the next quote, so may be the row after a broken one.
Facts of the layouts: the loaders of https://github.com/natasha/corus.
"""

import csv
import html
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, ClassVar, Literal
from urllib.parse import urlsplit

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.records import iso_time, json_rows, text_of
from yalm.corpus.sources.source import Source
from yalm.streams import BrokenFile, open_bytes, sample, stem

_ROW_LIMIT = 1 << 24  # characters
_LINE_LIMIT = 1 << 20  # characters of a line taken at a time; only quoted fields survive being taken in two
_TAG_LIMIT = 2000  # in the HTML of an article; the time of extraction grows with the square of nesting
_NOTHING = ("", "-")
_META = {"topic": "topics", "topics": "topics", "tags": "tags", "edition": "edition", "authors": "authors"}


class News(Source):
    """Files of news in one `layout`. The title is the first line of a text, the site is its source."""

    suffixes: ClassVar[tuple[str, ...]] = tuple(
        f"{kind}{ending}" for kind in (".csv", ".json", ".tar") for ending in ("", ".gz", ".bz2", ".zst")
    )

    kind: Literal["news"] = "news"
    layout: Literal["lenta", "ria", "buriy", "ods"]

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        where = str(file)
        try:
            if self.layout == "ria":
                yield from _ria(file, advance)
                return
            with open_bytes(file, advance) as stream:
                if self.layout != "buriy":
                    yield from _table(stream, where, stem(file), backslashes=self.layout == "ods")
                    return
                with tarfile.open(fileobj=stream, mode="r|") as tar:
                    for member in tar:
                        where = f"{file}:{member.name}"
                        content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                        if content is not None and member.name.endswith(".csv"):
                            yield from _table(io.BufferedReader(_Member(content)), where, f"{stem(file)}/{member.name}")
                while stream.read(1 << 20):  # what is broken after the last member
                    pass
        except BrokenFile as error:
            yield Reject(where, error.reason)
        except tarfile.TarError as error:
            yield Reject(where, "broken tar", sample(str(error)))


def _ria(file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
    for number, row in json_rows(file, advance):
        if isinstance(row, Reject):
            yield row
            continue
        where, identity = f"{file}:{number}", f"{stem(file)}:{number}"
        text = text_of(row.get("text")) or ""
        if text.count("<") > _TAG_LIMIT:
            yield Reject(where, "too many tags", sample(text))
        else:
            yield _document({"title": row.get("title"), "text": _plain(text)}, where, identity, "ria.ru")


def _plain(text: str) -> str:
    """The text of HTML whose entities are escaped twice."""
    from resiliparse.extract.html2text import extract_plain_text

    return html.unescape(extract_plain_text(text, main_content=False)).replace("\xa0", " ").strip()


def _table(stream: IO[bytes], where: str, name: str, backslashes: bool = False) -> Iterator[Document | Reject]:
    """The rows of a CSV file with a header; `backslashes` may stand before quotes and for line ends."""
    header: list[str] = []
    lines = _Lines(stream, backslashes)
    for row in _rows(lines, where):
        if isinstance(row, Reject):
            yield row
        elif not header:
            header = [column.strip().lower() for column in row]
            if not {"title", "text"} <= set(header):
                yield Reject(where, "no columns title and text", sample(",".join(row)))
                return
        elif len(row) != len(header) and not (len(row) == len(header) + 1 and not row[-1]):  # a comma at the end
            yield Reject(f"{where}:{lines.first}", f"{len(row)} fields of {len(header)}", sample(",".join(row)))
        else:
            if backslashes:
                row = [field.replace("\\n", "\n") for field in row]
            record = {column: field for column, field in zip(header, row, strict=False) if field not in _NOTHING}
            yield _document(record, f"{where}:{lines.first}", f"{name}:{lines.first}")


def _document(row: Mapping[str, Any], where: str, identity: str, site: str = "") -> Document | Reject:
    title, text = text_of(row.get("title")) or "", text_of(row.get("text"))
    if text is None:
        return Reject(where, "no text", sample(title), broken=False)
    title = " ".join(title.split())
    if title and not text.lstrip().startswith(title):
        text = f"{title}\n{text}"
    url = row.get("url", "")
    time = iso_time((row.get("timestamp") or row.get("date") or "").replace("/", "-"))
    meta = {_META[name]: value for name, value in row.items() if name in _META}
    return Document(text, identity, site or _site(url) or row.get("edition", ""), "ru", url, time, meta)


def _site(url: str) -> str:
    """`lenta.ru` of an address there; empty if it is none."""
    try:
        return (urlsplit(url).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


class _Member(io.RawIOBase):
    """A member of a tar that is read in one pass; before Python 3.12 tarfile's own cannot be read as text."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._content.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Lines:
    """Lines for a reader of CSV. A row of too many of them is an error, after which the next line begins a new one."""

    def __init__(self, stream: IO[bytes], backslashes: bool) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="")
        self._backslashes = backslashes
        self._number = 0
        self._size = 0
        self.first = 0  # number of the line at which the row begins

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._text.readline(_LINE_LIMIT)
        if not line:
            raise StopIteration
        self._number += 1
        self.first = self.first or self._number
        self._size += len(line)
        if self._size > _ROW_LIMIT:
            raise csv.Error("row too long")
        return line.replace(r"\"", '""') if self._backslashes else line

    def begin_row(self) -> None:
        self.first = self._size = 0


def _rows(lines: _Lines, where: str) -> Iterator[list[str] | Reject]:
    csv.field_size_limit(max(csv.field_size_limit(), _ROW_LIMIT))
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin_row()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Reject(f"{where}:{lines.first}", "broken CSV", sample(str(error)))
            continue
        if row:
            yield row
