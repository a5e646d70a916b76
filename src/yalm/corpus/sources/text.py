"""Plain text files, one document a file, in UTF-8, UTF-16 or a legacy encoding of Russian."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.encodings import decode
from yalm.corpus.sources.source import Source
from yalm.streams import LINE_LIMIT, BrokenFile, open_bytes, stem


class PlainText(Source):
    """Text files. `encoding` is what they are said to be in; it is believed unless another reading is more Russian."""

    suffixes: ClassVar[tuple[str, ...]] = (".txt", ".txt.gz", ".txt.zst", ".txt.bz2")

    kind: Literal["text"] = "text"
    encoding: str | None = None

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        try:
            with open_bytes(file, advance) as stream:
                data = stream.read(LINE_LIMIT + 1)
                if len(data) <= LINE_LIMIT:
                    stream.read(1)  # what is broken at the very end shows only here
        except BrokenFile as error:
            yield Reject(str(file), error.reason)
            return
        text, _ = decode(data, self.encoding)
        if len(data) > LINE_LIMIT:
            yield Reject(str(file), "file too long")
        elif not text or text.isspace():
            yield Reject(str(file), "no text")
        else:
            yield Document(text, stem(file), "")
