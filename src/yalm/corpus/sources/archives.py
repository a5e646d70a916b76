"""The files in an archive (tar, zip), one after the other, in memory; nothing is ever extracted to disk.

A tar is read as a stream, so that it may be compressed in any way; a zip by its list of files, which is held in memory.
Only regular files are members: links and devices are passed over, and names are names, never paths of this machine.
"""

import io
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, Self, cast

from yalm.errors import YalmError
from yalm.streams import LINE_LIMIT, BrokenFile, open_bytes

SUFFIXES = (".zip", *(f".tar{ending}" for ending in ("", ".gz", ".bz2", ".zst")))

# What the libraries raise for broken content; a RuntimeError is that of zipfile for encrypted or unknown content.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


class Member(NamedTuple):
    """A file in an archive. It can be read until the next one is asked for."""

    name: str
    open: Callable[[], IO[bytes]]

    def read(self) -> bytes:
        """All of it. `BrokenFile` if it is broken, or beyond the size of a line."""
        with _damage(self.name):
            data = self.open().read(LINE_LIMIT + 1)
        if len(data) > LINE_LIMIT:
            raise BrokenFile("file too long")
        return data

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Its lines, counted from 1, without their ends. `BrokenFile` if it is broken, or a line too long."""
        number = 0
        with _damage(self.name), io.BufferedReader(cast(io.RawIOBase, self.open()), 1 << 18) as stream:
            while line := stream.readline(LINE_LIMIT):
                number += 1
                if len(line) == LINE_LIMIT:
                    raise BrokenFile("line too long")
                yield number, line.rstrip(b"\r\n")


def is_archive(file: Path) -> bool:
    """Whether a file is an archive, by its name."""
    return file.name.endswith(SUFFIXES)


def members(file: Path, advance: Callable[[int], None]) -> Iterator[Member]:
    """The regular files of an archive, in its order; a file that is no archive is its own only member.

    `BrokenFile` where the archive is broken or ends early, and YalmError if it cannot be read at all.
    """
    if not is_archive(file):
        yield Member(file.as_posix(), partial(open_bytes, file, advance))
    elif file.name.endswith(".zip"):
        yield from _zip_members(file, advance)
    else:
        yield from _tar_members(file, advance)


@contextmanager
def _damage(name: str) -> Iterator[None]:
    """Broken content as `BrokenFile`; a file that cannot be read at all as YalmError."""
    try:
        yield
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise YalmError(f"{name}: cannot read the file ({error.strerror}); check the path") from None
        raise BrokenFile("broken archive") from None


class _Header(tarfile.TarInfo):
    """`tarfile` takes a header that is cut or broken for the end of the archive; here it is an error."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # the mark of the end
            raise
        except tarfile.HeaderError:
            raise tarfile.ReadError("broken header") from None


def _tar_members(file: Path, advance: Callable[[int], None]) -> Iterator[Member]:
    with _damage(str(file)), open_bytes(file, advance) as stream:
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as tar:
            while (header := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # there may be millions
                if header.isreg():
                    yield Member(header.name, partial(_content, tar, header))
        while stream.read(1 << 18):  # what follows the mark of the end is padding, unless the compression is broken
            pass


def _content(tar: tarfile.TarFile, header: tarfile.TarInfo) -> IO[bytes]:
    return cast(IO[bytes], tar.extractfile(header))  # None only for what is no regular file


def _zip_members(file: Path, advance: Callable[[int], None]) -> Iterator[Member]:
    told = 0
    with _damage(str(file)), zipfile.ZipFile(file) as archive:
        for header in archive.infolist():
            if not header.is_dir() and stat.S_IFMT(header.external_attr >> 16) in (0, stat.S_IFREG):
                yield Member(header.filename, partial(archive.open, header))
            advance(header.compress_size)
            told += header.compress_size
        advance(file.stat().st_size - told)
