"""Files of `torch.save` from outside, read without trusting them: tables of contents first, bytes when asked for.

Such a file is a zip archive: a pickle that names the tensors, and a record with the bytes of each storage. Opening
unpickles with PyTorch's weights-only reader onto the device "meta", so that no tensor is read and no code runs, and
finds every tensor's storage in the archive's directory. Training frameworks put their settings and random states into
the same pickle; the few harmless types they use for that are replaced by an empty object, and all others refused.
"""

import mmap
import pickle
import re
import zipfile
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.shards import BLOCK_BYTES, Span

# What Megatron and DeepSpeed save beside the weights: their arguments, and NumPy's random state under two names.
IGNORED_TYPES = (
    "argparse.Namespace",
    "numpy.ndarray",
    "numpy.dtype",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)
LOCAL_HEADER_BYTES = 30
# What Python says of archives that are damaged, encrypted or of a kind it does not know.
ZIP_ERRORS = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


class Ignored:
    """What stands for an object that is no tensor: takes whatever the pickle has for it, and keeps nothing."""

    def __new__(cls, *values: object) -> "Ignored":
        return object.__new__(cls)

    def __init__(self, *values: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: that file, where its storage begins in it (bytes), and the tensor on "meta".

    Shape, type, and the strides and offset within the storage, which tensors may share, are the meta tensor's.
    """

    path: Path
    storage: int
    tensor: Tensor

    @property
    def start(self) -> int:
        """Where the tensor's first byte is in the file; the offset of an empty one means nothing."""
        elements = int(self.tensor.storage_offset()) if self.tensor.numel() else 0
        return self.storage + elements * self.tensor.itemsize

    @property
    def stop(self) -> int:
        """Where its last byte ends."""
        steps = [(size - 1) * stride for size, stride in zip(self.tensor.shape, self.tensor.stride(), strict=True)]
        return self.start + (sum(steps) + 1) * self.tensor.itemsize if self.tensor.numel() else self.start

    @property
    def span(self) -> Span | None:
        """Where its bytes lie; None if they do not follow each other."""
        if not self.tensor.is_contiguous():
            return None
        return Span(self.path, self.start, self.tensor.dtype, tuple(self.tensor.shape))

    def within(self, mapped: Tensor, begin: int) -> Tensor:
        """The tensor as a view of the file's bytes from `begin` on (uint8); a copy if they are not aligned."""
        own = mapped[self.start - begin : self.stop - begin]
        own = own.clone() if own.data_ptr() % self.tensor.itemsize else own
        flat = own.view(self.tensor.dtype)
        return flat.as_strided(self.tensor.shape, self.tensor.stride(), flat.storage_offset())


def map_bytes(path: Path, start: int, stop: int) -> Tensor:
    """Part of a file as memory that is read from the disk when it is touched, uint8; written to, a private copy.

    Only the part is mapped: Linux refuses maps like this one that are larger than its memory, which files may be.
    """
    page = start - start % mmap.ALLOCATIONGRANULARITY
    try:
        with open(path, "rb") as stream:
            memory = mmap.mmap(stream.fileno(), stop - page, access=mmap.ACCESS_COPY, offset=page)
    except (OSError, ValueError) as error:
        raise YalmError(f"{path}: cannot be mapped ({error}); see that it is there and whole") from None
    return torch.frombuffer(memory, dtype=torch.uint8)[start - page :]


def load_contents(path: Path) -> Any:
    """What was saved, with tensors on "meta" and `Ignored` for what else is harmless; YalmError for all else."""
    try:
        with torch.serialization.safe_globals([(Ignored, name) for name in IGNORED_TYPES]):
            return torch.load(path, map_location="meta", weights_only=True)
    except FileNotFoundError:
        raise YalmError(f"{path}: the file is missing; download it again") from None
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S{1,80})", str(error))
        what = f" ({found[1]!r})" if found else ""
        raise YalmError(
            f"{path}: holds more than tensors, perhaps code, and is refused{what}; do not load it, "
            "have it saved again with the weights alone"
        ) from None
    except Exception:  # of many types, with advice that would not help here
        raise YalmError(f"{path}: {_damage(path)}; download the file again") from None


def locate(path: Path, tensors: Mapping[str, object]) -> dict[str, Stored]:
    """Find tensors that `load_contents` gave in their file; YalmError for what is no tensor or not whole in there."""
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {start: record.file_size for start, record in _records(archive).items()}
    except ZIP_ERRORS:
        raise YalmError(f"{path}: {_damage(path)}; download the file again") from None
    places = {}
    for name, tensor in tensors.items():
        subclass = type(tensor) not in (Tensor, torch.nn.Parameter)
        if not isinstance(tensor, Tensor) or subclass or tensor.layout is not torch.strided or tensor.is_quantized:
            raise YalmError(f"{path}: expected a plain dict of tensors, and {name!r} is none; this is no weights file")
        storage = getattr(tensor.untyped_storage(), "_checkpoint_offset", 0)
        places[name] = stored = Stored(path, storage, tensor.detach())
        if not storage <= stored.start <= stored.stop <= storage + sizes.get(storage, 0):
            raise YalmError(f"{path}: the bytes of {name!r} are not in the file; download the file again")
    return places


def check_whole(paths: Iterable[Path]) -> None:
    """See that the directory of each archive, which stands at its end, is there; YalmError that counts those without.

    So a download that was cut off is found before the first of many gigabytes is read.
    """
    damaged = [path for path in paths if path.exists() and not zipfile.is_zipfile(path)]
    if len(damaged) == 1:
        raise YalmError(f"{damaged[0]}: {_damage(damaged[0])}; download the file again")
    if damaged:
        raise YalmError(
            f"{damaged[0].parent}: {len(damaged)} files are cut off or damaged, the first {damaged[0].name}; "
            "download them again"
        )


def check_bytes(path: Path, storages: Collection[int]) -> None:
    """Read the storages that begin at these offsets against the file's own checksums (CRC-32).

    YalmError if one differs. The names' pickle and all small records are compared too. A download that lost bytes in
    the middle has the right size and shapes and shows nowhere else. Reading front to back also leaves the bytes in the
    system's cache, twice as fast as faulting their pages in through the map.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tensors = _records(archive)
            passed = {record.filename for start, record in tensors.items() if start not in storages}
            for record in archive.infolist():
                if record.filename in passed:
                    continue
                with archive.open(record) as stream:
                    while stream.read(BLOCK_BYTES):
                        pass
    except ZIP_ERRORS as error:
        raise YalmError(f"{path}: is damaged ({error}); download the file again") from None


def _records(archive: zipfile.ZipFile) -> dict[int, zipfile.ZipInfo]:
    """The storages' records that lie in the file as they are, uncompressed, by where their bytes begin."""
    stream = archive.fp
    assert stream is not None
    records = {}
    for record in archive.infolist():
        if re.fullmatch(r"[^/]+/data/\d+", record.filename) and record.compress_type == zipfile.ZIP_STORED:
            stream.seek(record.header_offset)
            header = stream.read(LOCAL_HEADER_BYTES)
            if len(header) < LOCAL_HEADER_BYTES or header[:4] != b"PK\x03\x04":
                raise zipfile.BadZipFile("no record where the directory has one")
            # Name and padding stand before the bytes, and the directory's own padding may be another.
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            records[record.header_offset + LOCAL_HEADER_BYTES + names] = record
    return records


def _damage(path: Path) -> str:
    """What seems to be wrong with a file that cannot be read: by its first bytes, an archive or not."""
    try:
        with open(path, "rb") as stream:
            begins = stream.read(4) == b"PK\x03\x04"
    except OSError:
        begins = False
    return "is cut off or damaged" if begins else "is no weights file of PyTorch 1.6 or later"
