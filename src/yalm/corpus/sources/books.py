"""Books of RUSSE's Librusec collection: `librusec_fb2.plain.gz`, 300,000 books in one gzip of 156 GB of text.

A book begins on a line `<number>.fb2 <text>` and ends before the next such line. Books are handed out in parts of
bounded length, since later stages hold whole documents; memory is that of one part, also where a line never ends.
"""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import BinaryIO, ClassVar, Literal

from pydantic import Field

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.source import Source
from yalm.streams import BrokenFile, open_bytes, sample

_BEGINS = re.compile(r"([0-9]{1,20})\.fb2 ")
_PIECE = 1 << 16  # characters of a line taken at a time


class Books(Source):
    """Files of books, cut into parts of at most `max_characters`, at the end of a paragraph where there is one.

    Joined in order, the parts of a book are the book. Of a book that the end of a broken file cuts, only whole parts
    are kept.
    """

    suffixes: ClassVar[tuple[str, ...]] = tuple(
        f"{kind}{ending}" for kind in (".plain", ".txt") for ending in ("", ".gz", ".zst", ".bz2")
    )

    kind: Literal["books"] = "books"
    max_characters: int = Field(1_000_000, gt=0)

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        book = ""
        try:
            with open_bytes(file, advance) as stream:
                for book, pieces in groupby(_pieces(stream), key=itemgetter(0)):
                    parts = _parts((piece for _, piece in pieces), self.max_characters)
                    if book:
                        yield from _documents(file, book, parts)
                    elif lost := next((part for part in parts if not part.isspace()), ""):
                        yield Reject(f"{file}:start", "text before the first book", sample(lost))
        except BrokenFile as error:
            yield Reject(f"{file}:{book or 'start'}", error.reason)


def _documents(file: Path, book: str, parts: Iterator[str]) -> Iterator[Document | Reject]:
    number = 0
    for part in parts:
        if not part.isspace():
            number += 1
            yield Document(part, f"{book}:{number}", "librusec", meta={"book": book, "part": number})
    if not number:
        yield Reject(f"{file}:{book}", "no text", broken=False)


def _pieces(stream: BinaryIO) -> Iterator[tuple[str, str]]:
    """All lines, long ones in pieces, each with the number of its book ("" before the first)."""
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace")
    book, line_begins = "", True
    while piece := text.readline(_PIECE):
        if line_begins and (found := _BEGINS.match(piece)):
            book = found[1]
            piece = piece[found.end() :]
        line_begins = piece.endswith("\n")
        yield book, piece


def _parts(pieces: Iterable[str], limit: int) -> Iterator[str]:
    """The pieces put together to parts of at most `limit` characters."""
    held: list[str] = []
    size = 0
    for piece in pieces:
        held.append(piece)
        size += len(piece)
        if size > limit:
            text = "".join(held)
            while len(text) > limit:
                cut = _cut(text, limit)
                yield text[:cut]
                text = text[cut:]
            held, size = [text], len(text)
    if size:
        yield "".join(held)


def _cut(text: str, limit: int) -> int:
    """Where a part ends: after the last paragraph that fits, or inside a longer one after a word, if it has any."""
    return text.rfind("\n", 0, limit) + 1 or text.rfind(" ", limit // 2, limit) + 1 or limit
