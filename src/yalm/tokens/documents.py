"""Text documents out of files: JSON lines (plain, zstd or gzip) and plain text, one document a file.

Reading is split in two so that the dear half can run elsewhere: `read_raw` streams the undecoded bytes of each document
(decompression and line splitting only), `RawDocument.text` parses them. A stream holds one line at a time, so files of
any size pass through little memory. Compressed files that end early are errors, not short corpora.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from yalm.errors import YalmError
from yalm.streams import BrokenFile, open_bytes, read_lines

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".txt")


class RawDocument(NamedTuple):
    """The bytes of one document and where they stand; `line` counts from 1 and is 0 for a whole .txt file."""

    data: bytes
    file: str
    line: int

    def text(self, text_field: str = "text") -> str:
        """The document's text: the field `text_field` of a JSON line, or the whole file (UTF-8).

        A list of strings, as lm_dataformat writes it, is joined by blank lines. YalmError names file and line.
        """
        if not self.line:
            try:
                return self.data.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise YalmError(f"{self.file}: not UTF-8 at byte {error.start}; convert the file to UTF-8") from None
        where = f"{self.file}:{self.line}"
        try:
            record = json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise YalmError(f"{where}: not valid JSON ({error}); mend or remove that line") from None
        value = record.get(text_field) if isinstance(record, dict) else None
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            return "\n\n".join(value)
        if not isinstance(value, str):
            keys = ", ".join(sorted(record)) if isinstance(record, dict) else f"no object but {type(record).__name__}"
            raise YalmError(f"{where}: no text in field {text_field!r} (there: {keys}); name the field with text_field")
        return value


def find_files(inputs: Iterable[str | Path]) -> list[Path]:
    """The document files named by `inputs`: files in the order given, folders searched below in sorted order.

    YalmError for a path that does not exist, a file of another kind, a folder without documents, or no input at all.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
            if not found:
                raise YalmError(f"{path}: no documents in this folder; looked for {', '.join(SUFFIXES)}")
            files += found
        elif not path.exists():
            raise YalmError(f"{path}: no such file or folder; check the path")
        elif not path.name.endswith(SUFFIXES):
            raise YalmError(f"{path}: not a kind of file that holds documents; use {', '.join(SUFFIXES)}")
        else:
            files.append(path)
    if not files:
        raise YalmError("no input: name at least one file or folder of documents")
    return files


def read_raw(
    file: str | Path,
    advance: Callable[[int], None] = lambda size: None,
    digest: "hashlib._Hash | None" = None,
) -> Iterator[RawDocument]:
    """The documents of one file, undecoded; blank lines are skipped. `advance` and `digest` are those of `streams`.

    YalmError for a file that cannot be read, or compressed data that is broken or ends early.
    """
    path, name = Path(file), str(file)
    try:
        if name.endswith(".txt"):
            with open_bytes(path, advance, digest) as stream:
                yield RawDocument(stream.read(), name, 0)
        else:
            for line, data in read_lines(path, advance, digest=digest):
                if data.strip():
                    yield RawDocument(data, name, line)
    except BrokenFile as error:
        raise YalmError(f"{file}: {error.reason}; fetch or write the file again") from None


def read_texts(inputs: Sequence[str | Path], text_field: str = "text") -> Iterator[str]:
    """The texts of all documents in all `inputs`, in order."""
    for file in find_files(inputs):
        for document in read_raw(file):
            yield document.text(text_field)
