"""Writing tensors to a safetensors file block by block, hashing as they go; where in it each lies, and reading there.

A safetensors file is a JSON header (its length in the first 8 bytes, little-endian) and the tensors' bytes one after
the other, so it can be written front to back without a second copy of anything. Tensors come from a function, one at
a time, and go out in blocks of rows that are cast, and padded or cut to their place, on the way: memory is what the
function returns plus a few blocks. A block is hashed and written while it is in the processor's cache. Hashing in a
second thread beside the write was slower when measured: the write then is the first to touch the mapped pages, which
the kernel does page by page.
"""

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yalm.atomic import atomic_file, write_text
from yalm.errors import YalmError

# Measured on real-size layers: 4 MiB cost twice the processor time, 256 KiB a tenth more.
BLOCK_BYTES = 2**20
CHECKSUM_FILE = "SHA256SUMS"
# Our names of types.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Those of a safetensors header, narrow to wide: files begin with the wide ones, so that all are aligned.
HEADER_DTYPES = {
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
}
# The longest that safetensors itself reads, in bytes.
HEADER_LIMIT = 100_000_000
# What disks and memory are divided into; reading past the system's cache begins and ends between two.
PAGE = 4096
# 0 where the system has no such way.
DIRECT: int = getattr(os, "O_DIRECT", 0)


@dataclass(frozen=True)
class Span:
    """Where a tensor lies on the disk: `offset` bytes into the file `path`, row-major and without gaps."""

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class DigestFile:
    """An open binary file that knows the SHA-256 of what was written to it; enough of a file for `torch.save`."""

    def __init__(self, stream: FileIO, advance: Callable[[int], None]) -> None:
        self._stream = stream
        self._advance = advance
        self._sha256 = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Append bytes (anything with the buffer interface); returns how many."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), BLOCK_BYTES):
            block = view[start : start + BLOCK_BYTES]
            self._sha256.update(block)
            while block:  # an unbuffered write may take less than it is given
                block = block[self._stream.write(block) :]
        self._advance(len(view))
        return len(view)

    def flush(self) -> None:
        """Hand what is buffered to the system."""
        self._stream.flush()

    def hexdigest(self) -> str:
        """SHA-256 (hex) of all bytes so far."""
        return self._sha256.hexdigest()


@contextmanager
def digest_file(path: Path, advance: Callable[[int], None] = lambda size: None) -> Iterator[DigestFile]:
    """A new file that appears as `path` when the block ends well; `advance` hears the bytes of every write."""
    with atomic_file(path) as temporary, open(temporary, "wb", buffering=0) as stream:
        yield DigestFile(stream, advance)


def blocks(tensor: Tensor, shape: Iterable[int], dtype: torch.dtype) -> Iterator[Tensor]:
    """`tensor` in `dtype`, cut or padded with zeros to `shape`, as contiguous (rows, columns) blocks of its rows.

    Of one dimension or two; a vector comes as blocks of one column.
    """
    rows, *columns = shape
    width = columns[0] if columns else 1
    tensor = tensor if columns else tensor[:, None]
    step = max(1, BLOCK_BYTES // (width * dtype.itemsize))
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        block = tensor[start:stop, :width]
        padding = (0, width - block.shape[1], 0, stop - start - block.shape[0])
        yield (F.pad(block, padding) if any(padding) else block).to(dtype).contiguous()


def write_shard(
    path: Path,
    layout: Mapping[str, Tensor],
    read: Callable[[str], Tensor],
    advance: Callable[[int], None] = lambda size: None,
) -> str:
    """Write a safetensors file, whole or not at all; returns its SHA-256 (hex).

    `layout` says each tensor's name, shape and type (tensors on "meta" will do); `read` gives the values, asked for
    once each and in the order of the file. They are cast, and cut or padded with zeros, to the layout. `advance`
    hears the bytes of every write.
    """
    order = list(HEADER_DTYPES)
    names = sorted(layout, key=lambda name: (-order.index(layout[name].dtype), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        spec = layout[name]
        start, end = end, end + spec.nbytes
        header[name] = {
            "dtype": HEADER_DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with digest_file(path, advance) as file, torch.no_grad():
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for block in blocks(read(name), layout[name].shape, layout[name].dtype):
                file.write(block.flatten().view(torch.uint8).numpy())
    return file.hexdigest()


def read_spans(path: Path) -> dict[str, Span]:
    """Where each tensor of a safetensors file lies, from its header; YalmError if that is damaged or says too much.

    Format: the header's length (8 bytes, little-endian), the header (JSON), and then the bytes it tells offsets in.
    """
    dtypes = {name: dtype for dtype, name in HEADER_DTYPES.items()}
    try:
        with open(path, "rb") as stream:
            size = path.stat().st_size
            start = 8 + int.from_bytes(stream.read(8), "little")
            if not 8 < start <= min(size, HEADER_LIMIT):
                raise ValueError("its header has a wrong length")
            header = json.loads(stream.read(start - 8))
            spans = {}
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                shape, (first, last) = entry["shape"], entry["data_offsets"]
                if any(type(number) is not int or number < 0 for number in (*shape, first, last)):
                    raise ValueError(f"sizes of {name!r} are no whole numbers")
                spans[name] = Span(path, start + first, dtypes[entry["dtype"]], tuple(shape))
                if first + spans[name].nbytes != last or start + last > size:
                    raise ValueError(f"the bytes of {name!r} are not in the file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise YalmError(f"{path}: cannot be read ({error}); copy the file again") from None
    return spans


def read_bytes(path: Path, offset: int, into: Tensor, direct: bool = False) -> int:
    """Fill a contiguous CPU tensor with the bytes of a file from `offset` on; returns how many.

    `direct` lets the disk write into the tensor, past the system's cache, which costs no copy and evicts nothing. That
    goes by whole pages, and only where the tensor's address is the offset's modulo `PAGE`; what is left at its ends,
    and everything on file systems that cannot, comes through the cache. YalmError if the file ends before, or the disk
    fails.
    """
    if not into.numel():
        return 0
    view = memoryview(into.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
    head = tail = len(view)
    if direct and (into.data_ptr() - offset) % PAGE == 0:
        head = min(-offset % PAGE, len(view))
        tail = len(view) - (len(view) - head) % PAGE
    try:
        for start, stop, flags in ((0, head, 0), (head, tail, DIRECT), (tail, len(view), 0)):
            _fill(path, offset + start, view[start:stop], flags)
    except OSError as error:
        raise YalmError(f"{path}: cannot be read ({error.strerror}); copy the file again") from None
    return len(view)


def _fill(path: Path, offset: int, view: memoryview, flags: int) -> None:
    """Fill `view` from the file opened with `flags`; without them if it cannot be read so."""
    if not view:
        return
    try:
        file = os.open(path, os.O_RDONLY | flags)
        try:
            while view:
                count = os.preadv(file, [view], offset)
                if not count:
                    raise YalmError(f"{path}: is cut off; copy the file again")
                view, offset = view[count:], offset + count
        finally:
            os.close(file)
    except OSError as error:
        if not flags or error.errno != errno.EINVAL:
            raise
        _fill(path, offset, view, 0)


def file_sha256(path: Path, advance: Callable[[int], None] = lambda size: None) -> str:
    """SHA-256 (hex) of a file; empty if there is none. `advance` hears the bytes as they are read."""
    sha256 = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as stream:
            while data := stream.read(BLOCK_BYTES):
                sha256.update(data)
                advance(len(data))
    except FileNotFoundError:
        return ""
    return sha256.hexdigest()


def write_checksums(folder: Path, checksums: Mapping[str, str]) -> None:
    """The manifest of a folder: SHA-256 (hex) by file name, in the format that `sha256sum --check` reads."""
    write_text(folder / CHECKSUM_FILE, "".join(f"{checksums[name]}  {name}\n" for name in sorted(checksums)))


def read_checksums(folder: Path) -> dict[str, str]:
    """The manifest of a folder, empty if it has none; YalmError if it is damaged."""
    path = folder / CHECKSUM_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise YalmError(f"{path}: cannot be read ({error}); copy the file again") from None
    checksums = {}
    for line in lines:
        sha256, gap, name = line.partition("  ")
        if not gap or len(sha256) != 64 or Path(name).name != name:
            raise YalmError(f"{path}: {line[:80]!r} is no line of a checksum file; copy the file again")
        checksums[name] = sha256
    return checksums
