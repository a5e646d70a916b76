"""Taiga: the Russian collections of news, magazines, prose, verse and subtitles, and those of the social networks.

Collections are folders or archives (tar, zip) with `…/texts/**/*.txt`, one document each, and a tab-separated table of
what is known about them, `metatable.csv` or `metatable_texts.txt`, with the names of its columns in the first row. An
archive is read twice, for the table may come after the texts; the table lies in a temporary database, for that of a
large collection has millions of rows. The networks are one large text each.
Layout: Shavrina & Shapovalova 2017, https://tatianashavrina.github.io/taiga_site/; columns as its files have them.
"""

import re
import sqlite3
from collections.abc import Callable, Iterator
from datetime import date
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal, TypeVar

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.archives import SUFFIXES, Member, is_archive, members
from yalm.corpus.sources.encodings import decode
from yalm.corpus.sources.records import iso_time
from yalm.corpus.sources.source import Source
from yalm.streams import BrokenFile, sample, stem

_TABLES = ("metatable.csv", "metatable_texts.txt")
_IDS = ("textid", "id", "filepath")
# What a column becomes in a document's meta.
_META = {
    "title": "title",
    "textname": "title",
    "author": "author",
    "textrubric": "rubric",
    "rubric": "rubric",
    "genre": "genre",
    "topic": "topic",
    "tags": "tags",
    "magazine": "magazine",
}
_Item = TypeVar("_Item")
_RECORD = b"DataBaseItem:"


class Taiga(Source):
    """Collections of Taiga. A document's source is the folder that has the `texts`, or the name of the network's file.

    `texts` are collections with a table. Of subtitles only the Russian ones are taken, by the end of their name
    (`….ru.txt`) or else by the table. `social` are texts of many records: after lines `DataBaseItem: <id>`, or, where
    there are none, one a line.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".csv", *SUFFIXES)

    kind: Literal["taiga"] = "taiga"
    layout: Literal["texts", "social"]

    def files(self) -> list[Path]:
        wanted = _is_of_texts if self.layout == "texts" else _is_social
        return [file for file in super().files() if is_archive(file) or wanted(file.as_posix())]

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        if self.layout == "social":
            yield from _each(file, advance, _is_social, _social_texts)
        elif is_archive(file):
            table = Table()
            for reject in _each(file, _unheard, _is_table, table.add):
                if reject.where != str(file):  # what is wrong with the archive is told when it is read again
                    yield reject
            yield from _each(file, advance, _is_text, lambda where, member: _text(where, member, table, stem(file)))
        elif _is_table(file.as_posix()):  # its rows are taken by the texts, what is wrong with them is told here
            yield from _each(file, advance, _is_table, Table().add)
        else:
            holder, _ = _place(file.as_posix())
            table = _table_beside(holder)
            yield from _each(file, advance, _is_text, lambda where, member: _text(where, member, table, ""))


class Table:
    """The rows of tables, found by the id of a text. They lie in a temporary database, in memory while they are few."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.executescript(
            "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;"
            "CREATE TABLE rows (id TEXT, header INTEGER, line TEXT); BEGIN"
        )
        self._headers: list[tuple[str, list[str]]] = []  # the folder of each table, and its columns

    def add(self, where: str, member: Member) -> Iterator[Reject]:
        """Take the rows of one table; yields those that belong to no text."""
        columns: list[str] = []
        for number, data in member.lines():
            line = data.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
            cells = _cells(line)
            if not columns:
                columns = [cell.strip().lower() for cell in cells]
                self._headers.append((str(PurePosixPath(member.name).parent), columns))
                continue
            if not line.strip():
                continue
            row = dict(zip(columns, cells, strict=False))
            ids = {_stem(cell) for name in _IDS if (cell := row.get(name, "").strip())}
            if not ids or len(cells) > len(columns):
                yield Reject(f"{where}:{number}", "broken row of the table", sample(line))
                continue
            for found in ids:
                self._database.execute("INSERT INTO rows VALUES (?, ?, ?)", (found, len(self._headers) - 1, line))
        self._database.execute("CREATE INDEX IF NOT EXISTS by_id ON rows (id)")

    def find(self, name: str) -> dict[str, str]:
        """What is known of a text, by column; of rows with its id that whose table lies nearest, else the first."""
        rows = self._database.execute("SELECT header, line FROM rows WHERE id = ? ORDER BY rowid", (_stem(name),))
        best, best_shared = {}, -1
        for header, line in rows:
            folder, columns = self._headers[header]
            shared = _shared(folder, name)
            if shared > best_shared:
                best, best_shared = dict(zip(columns, map(str.strip, _cells(line)), strict=False)), shared
        return best


def _each(
    file: Path,
    advance: Callable[[int], None],
    wanted: Callable[[str], bool],
    read: Callable[[str, Member], Iterator[_Item]],
) -> Iterator[_Item | Reject]:
    """What `read` makes of the wanted members of a file. Damage in one is a reject, and in the file the last."""
    archive = is_archive(file)
    try:
        for member in members(file, advance):
            if wanted(member.name):
                where = f"{file}/{member.name}" if archive else str(file)
                try:
                    yield from read(where, member)
                except BrokenFile as error:
                    yield Reject(where, error.reason)
    except BrokenFile as error:
        yield Reject(str(file), error.reason)


def _text(where: str, member: Member, table: Table, archive: str) -> Iterator[Document | Reject]:
    row = table.find(member.name)
    name = _stem(member.name)
    language = name.rpartition(".")[2].lower() if re.search(r"\.[A-Za-z]{2}$", name) else row.get("languages", "")
    if language and "ru" not in re.findall(r"\w+", language.lower()):
        yield Reject(where, "other language", sample(language), broken=False)
        return
    text, _ = decode(member.read())
    if not text or text.isspace():
        yield Reject(where, "no text", broken=False)
        return
    holder, inner = _place(member.name)
    tags, url = row.get("tags", ""), row.get("url", "")
    if not url and (found := re.search(r"https?://\S+$", tags)):  # Fontanka's tables have it there
        tags, url = tags[: found.start()].rstrip(" ,;"), found.group()
    meta = {_META[column]: value for column, value in (row | {"tags": tags}).items() if column in _META and value}
    source = PurePosixPath(holder).name or archive
    yield Document(text, name, source, "ru", url, _date(row.get("date", "")) or _month(inner), meta)


def _social_texts(where: str, member: Member) -> Iterator[Document | Reject]:
    source = _stem(member.name)
    record: list[bytes] = []
    name, start, records = "", 0, None  # whether there are records shows at the first line that is not blank
    for number, data in member.lines():
        line = data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data
        if records is None and line.strip():
            records = line.startswith(_RECORD)
        if not records:
            if line.strip():
                yield _social(f"{where}:{number}", [line], f"{source}:{number}", source)
        elif line.startswith(_RECORD):
            if name:
                yield _social(f"{where}:{start}", record, name, source)
            name, start, record = f"{source}:{line[len(_RECORD) :].strip().decode('utf-8', 'replace')}", number, []
        else:
            record.append(line)
    if name:
        yield _social(f"{where}:{start}", record, name, source)


def _social(where: str, lines: list[bytes], name: str, source: str) -> Document | Reject:
    text = decode(b"\n".join(lines))[0].strip()
    return Document(text, name, source, "ru") if text else Reject(where, "no text", broken=False)


@lru_cache(maxsize=4)
def _table_beside(holder: str) -> Table:
    """The tables in a folder that holds `texts`, or in those themselves."""
    table = Table()
    for name in _TABLES:
        for path in (Path(holder, name), Path(holder, "texts", name)):
            if path.is_file():
                for _ in _each(path, _unheard, _is_table, table.add):
                    pass
    return table


def _unheard(size: int) -> None:
    """What is read a second time is no progress."""


def _is_table(name: str) -> bool:
    return PurePosixPath(name).name in _TABLES


def _is_text(name: str) -> bool:
    path = PurePosixPath(name)
    folders = path.parts[:-1]
    return (
        "texts" in folders
        and "tagged_texts" not in folders
        and path.suffix == ".txt"
        and not path.name.startswith(".")
        and path.name not in _TABLES
    )


def _is_of_texts(name: str) -> bool:
    return _is_text(name) or _is_table(name)


def _is_social(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".txt" and not path.name.startswith(".") and path.name not in _TABLES


def _place(name: str) -> tuple[str, tuple[str, ...]]:
    """The folder that holds the innermost `texts` of a path, and the folders below these."""
    folders = PurePosixPath(name).parts[:-1]
    texts = len(folders) - 1 - folders[::-1].index("texts")
    return str(PurePosixPath(*folders[:texts])) if texts else "", folders[texts + 1 :]


def _stem(name: str) -> str:
    return PurePosixPath(name).name.removesuffix(".txt")


def _shared(folder: str, name: str) -> int:
    """How many folders two paths begin with together."""
    first, second = PurePosixPath(folder).parts, PurePosixPath(name).parts
    return next((n for n, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), len(first))


def _cells(line: str) -> list[str]:
    """The cells of a row. Quotes are signs like others, for many are broken; those around a whole cell are undone."""
    cells = line.rstrip("\t").split("\t")
    quoted = (len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells)
    return [cell[1:-1].replace('""', '"') if whole else cell for cell, whole in zip(cells, quoted, strict=True)]


def _date(text: str) -> str:
    """ISO 8601 of `31.12.2009` and of `2009, 12`; empty if it is none."""
    if found := re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.(\d{4})", text):
        day, month, year = map(int, found.groups())
        try:
            return date(year, month, day).isoformat()
        except ValueError:
            return ""
    if (found := re.fullmatch(r"(\d{4}), ?(\d{1,2})", text)) and 1 <= int(found[2]) <= 12:
        return f"{found[1]}-{int(found[2]):02}"
    return iso_time(text)


def _month(folders: tuple[str, ...]) -> str:
    """The date that folders `2009/12` say."""
    if len(folders) >= 2 and re.fullmatch(r"(19|20)\d\d", folders[0]) and re.fullmatch(r"0[1-9]|1[0-2]", folders[1]):
        return f"{folders[0]}-{folders[1]}"
    return ""
