"""Text documents out of files: JSON lines (plain, zstd or gzip) and plain text, one document a file.

Reading is split in two so that the dear half can run elsewhere: `read_raw` streams the undecoded bytes of each document
(decompression and line splitting only), `RawDocument.text` parses them. A stream holds one line at a time, so files of
any size pass through little memory. Compressed files that end early are errors, not short corpora.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import zstandard

from yalm.errors import YalmError

SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".txt")
_CHUNK = 1 << 20  # bytes read from a file at a time


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


def read_raw(file: str | Path, watch: Callable[[bytes], object] = lambda chunk: None) -> Iterator[RawDocument]:
    """The documents of one file, undecoded; blank lines are skipped. `watch` sees each chunk of the file as it stands.

    YalmError for a file that cannot be read, or compressed data that is broken or ends early.
    """
    path, name = Path(file), str(file)
    try:
        with open(path, "rb") as stream:
            chunks = iter(lambda: stream.read(_CHUNK), b"")
            content = _decompressed(_watched(chunks, watch), name)
            if name.endswith(".txt"):
                yield RawDocument(b"".join(content), name, 0)
            else:
                for line, data in enumerate(_lines(content), start=1):
                    if data.strip():
                        yield RawDocument(data, name, line)
    except (zstandard.ZstdError, zlib.error, gzip.BadGzipFile) as error:
        raise YalmError(f"{file}: broken compressed data ({error}); fetch or write the file again") from None
    except OSError as error:
        raise YalmError(f"{file}: cannot read the file ({error.strerror}); check the path") from None


def read_texts(inputs: Sequence[str | Path], text_field: str = "text") -> Iterator[str]:
    """The texts of all documents in all `inputs`, in order."""
    for file in find_files(inputs):
        for document in read_raw(file):
            yield document.text(text_field)


class _Decoder(Protocol):
    """What zstandard's and zlib's stream decoders have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _watched(chunks: Iterable[bytes], watch: Callable[[bytes], object]) -> Iterator[bytes]:
    for chunk in chunks:
        watch(chunk)
        yield chunk


def _decompressed(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """`chunks` without their compression, by the name's ending; any number of frames or members in a row."""
    new_decoder: Callable[[], _Decoder]
    if name.endswith(".zst"):
        new_decoder = _zstd_decoder
    elif name.endswith(".gz"):
        new_decoder = _gzip_decoder
    else:
        yield from chunks
        return
    decoder: _Decoder | None = None
    for chunk in chunks:
        rest = chunk
        while rest:
            if decoder is None or decoder.eof:
                decoder = new_decoder()
            yield decoder.decompress(rest)
            rest = decoder.unused_data if decoder.eof else b""
    if decoder is not None and not decoder.eof:
        raise YalmError(f"{name}: the compressed data ends early; fetch or write the file again")


def _zstd_decoder() -> _Decoder:
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _gzip_decoder() -> _Decoder:
    return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream, without their ends; a last line needs no end."""
    tail = b""
    for chunk in chunks:
        *lines, tail = (tail + chunk).split(b"\n")
        yield from lines
    if tail:
        yield tail
