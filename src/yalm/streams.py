"""Files of any compression as one stream of bytes or lines.

The ending of the name says how a file is compressed (.gz, .zst, .bz2, anything else is plain); any number of members
or frames in a row are read, in small pieces, so that also an input that unfolds to a vast output passes through bounded
memory. Broken compressed data is a `BrokenFile`, raised only after every byte before it was handed out, so that a
source loses no document that stands before the fault.
"""

import bz2
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import zstandard

from yalm.errors import YalmError

LINE_LIMIT = 1 << 28  # bytes
_CHUNK = 1 << 18  # bytes read from a file at a time
# Bytes decompressed at a time. The libraries unfold them at once, 2**15 fold at the very worst (zstd).
_PIECE = 1 << 13
_SAMPLE = 200  # characters


class _Decoder(Protocol):
    """What the decoders of the three libraries have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_DECODERS: Mapping[str, Callable[[], _Decoder]] = {
    ".gz": lambda: zlib.decompressobj(wbits=zlib.MAX_WBITS | 16),
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
    ".bz2": bz2.BZ2Decompressor,
}


class BrokenFile(Exception):
    """Nothing after this point of a file can be read. `reason` is a few words, to be that of a last `Reject`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LongLine(BrokenFile):
    """A line beyond the limit: no file of lines, or one made to fill the memory."""


def stem(file: Path) -> str:
    """The name of a file without the ending of its compression and the one of its format: `00` of `00.jsonl.zst`."""
    name = file.name
    for ending in _DECODERS:
        name = name.removesuffix(ending)
    return Path(name).stem


def sample(data: bytes | str) -> str:
    """How a rejected record begins, as one printable line."""
    text = data[: 4 * _SAMPLE].decode("utf-8", "replace") if isinstance(data, bytes) else data[: 4 * _SAMPLE]
    return "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))[:_SAMPLE]


def open_bytes(file: Path, advance: Callable[[int], None], digest: "hashlib._Hash | None" = None) -> BinaryIO:
    """The content of a file, decompressed; `advance` hears how many of its bytes, as they lie on disk, were read.

    `digest` is updated with those bytes.

    Reading raises `BrokenFile` for broken compressed data, and YalmError if the file cannot be read at all.
    """
    return cast(BinaryIO, _Stream(_chunks(file, advance, digest)))


def read_lines(
    file: Path,
    advance: Callable[[int], None],
    limit: int = LINE_LIMIT,
    digest: "hashlib._Hash | None" = None,
) -> Iterator[tuple[int, bytes]]:
    """The lines of a file, counted from 1, without their ends (LF or CR LF); the last one needs no end.

    `advance`, `digest` and `BrokenFile` as in `open_bytes`, and `LongLine` for a line of more than `limit` bytes.
    """
    number = 1
    parts: list[bytes] = []  # of the line that is not ended yet
    size = 0
    for chunk in _chunks(file, advance, digest):
        head, *lines = chunk.split(b"\n")
        parts.append(head)
        size += len(head)
        if lines:
            yield number, _whole(parts, limit)
            *lines, tail = lines
            for line in lines:
                number += 1
                yield number, _whole([line], limit)
            number += 1
            parts, size = [tail], len(tail)
        if size > limit:
            raise LongLine("line too long")
    if size:
        yield number, _whole(parts, limit)


def _whole(parts: list[bytes], limit: int) -> bytes:
    line = parts[0] if len(parts) == 1 else b"".join(parts)
    if len(line) > limit:
        raise LongLine("line too long")
    return line.removesuffix(b"\r")


def _chunks(file: Path, advance: Callable[[int], None], digest: "hashlib._Hash | None") -> Iterator[bytes]:
    """The decompressed content in pieces, none of them empty."""
    try:
        with open(file, "rb", buffering=0) as raw:
            pieces = _counted(raw, advance, digest)
            for ending, new_decoder in _DECODERS.items():
                if file.name.endswith(ending):
                    pieces = _decompressed(pieces, new_decoder)
            yield from pieces
    except OSError as error:
        raise YalmError(f"{file}: cannot read the file ({error.strerror}); check the path") from None


def _counted(raw: io.RawIOBase, advance: Callable[[int], None], digest: "hashlib._Hash | None") -> Iterator[bytes]:
    while chunk := raw.read(_CHUNK):
        if digest is not None:
            digest.update(chunk)
        advance(len(chunk))
        yield chunk


def _decompressed(chunks: Iterator[bytes], new_decoder: Callable[[], _Decoder]) -> Iterator[bytes]:
    decoder: _Decoder | None = None
    for chunk in chunks:
        for start in range(0, len(chunk), _PIECE):
            rest = chunk[start : start + _PIECE]
            while rest:
                if decoder is None or decoder.eof:
                    rest = rest.lstrip(b"\0")  # members may be padded to whole blocks; none begins with a zero
                    if not rest:
                        break
                    decoder = new_decoder()
                try:
                    content = decoder.decompress(rest)
                except (zlib.error, zstandard.ZstdError, OSError):  # the last is bz2's
                    raise BrokenFile("broken compressed data") from None
                if content:
                    yield content
                rest = decoder.unused_data if decoder.eof else b""
    if decoder is not None and not decoder.eof:
        raise BrokenFile("compressed data ends early")


class _Stream(io.BufferedIOBase):
    """Chunks as a file. An error among them is raised when all before it was read, also by reads that ask for more."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = b""
        self._start = 0
        self._position = 0
        self._error: BrokenFile | None = None

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Only what `tell` asks for."""
        if (offset, whence) != (0, io.SEEK_CUR):
            raise io.UnsupportedOperation("a stream of compressed data has no way back")
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = -1 if size is None else size
        parts: list[bytes] = []
        have = 0
        while wanted < 0 or have < wanted:
            part = self._next(wanted - have) if wanted >= 0 else self._next(-1)
            if not part:
                break
            parts.append(part)
            have += len(part)
        if not parts and wanted and self._error is not None:
            raise self._error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read1(self, size: int = -1, /) -> bytes:
        part = self._next(size)
        if not part and size and self._error is not None:
            raise self._error
        return part

    def close(self) -> None:
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()
        super().close()

    def _next(self, size: int) -> bytes:
        """At most `size` bytes (-1: any number) of one chunk; empty at the end, or where the error is."""
        if self._start == len(self._chunk) and self._error is None:
            self._start = 0
            try:
                self._chunk = next(self._chunks, b"")
            except BrokenFile as error:
                self._chunk, self._error = b"", error
        end = len(self._chunk) if size < 0 else min(self._start + size, len(self._chunk))
        part = self._chunk[self._start : end]
        self._start = end
        self._position += len(part)
        return part
