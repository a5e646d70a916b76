"""Conversion between the released layout and our folder, both ways, in the memory of one layer.

File by file: the source's tensors are mapped into memory, cast, and padded or cut on their way to the new file, 1 MiB
at a time (`shards.write_shard`), while the next source is read through and checked. So memory holds one part's
mapped pages, which the system may drop, one tensor where ranks split it, and about 0.3 GB for PyTorch. Back to the
release a layer is held in full, and one of its tensors twice, for PyTorch writes a file's tensors in one go. Reading
ahead wants room in the system's cache for two layers; with less, sources are read from the disk twice.

Files are made in a hidden folder beside the destination, which takes its place when all are there. With each finished
file its SHA-256 and what it was made from are noted; a conversion that was killed keeps those that still have that
checksum, and redoes the rest. All that can be checked is checked before the first byte is written; only bytes
damaged inside a source file are found when their turn comes.

The feed-forward width may be padded with zeros (27,308 → 27,648, a whole number of tiles and quantization blocks, 8
ranks wide): hidden units whose inputs and outputs are zero change no output, not even in training, since their
gradients are zero. They are cut off again only where they still are zero.

Matrices can be quantized on the way, in blocks of rows, from released files or from a folder of ours; each is read
once for its scales and once for its codes, which stand apart in the file.
"""

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import IO, Any, cast

import torch
from torch import Tensor

from yalm.atomic import resumable_folder, write_text
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.folder import TOKENIZER_FILE, ModelFolder, config_json, shards, torch_dtype, write_description
from yalm.model.quantize import Quantization, quantize, quantized_part
from yalm.model.release import Release, release_files, release_path
from yalm.model.shards import blocks, digest_file, file_sha256, write_checksums, write_shard
from yalm.progress import byte_progress

RECORD_FILE = "conversion.json"
PADDED_MULTIPLE = 1024
# What padding may cost at most: 27,308 grows by 1.25 %; small models would grow by much more, and stay as they are.
PADDED_GROWTH = 1.02
FEED_FORWARD = ("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias", "down_proj.weight")


@dataclass(frozen=True)
class Result:
    """What a conversion did: where, how many files of which `kept` were there already, bytes written, seconds."""

    folder: Path
    files: int
    kept: int
    bytes: int
    seconds: float

    @property
    def gigabytes_per_second(self) -> float:
        """Written bytes over all the time, 10⁹ a second."""
        return self.bytes / max(self.seconds, 1e-9) / 1e9


@dataclass(frozen=True)
class _File:
    """A file to be made: its name, its bytes (about), the files it is made from, and how.

    `make(path, advance)` returns the SHA-256; `check(source)` reads a source through before that, and raises YalmError.
    """

    name: str
    size: int
    sources: list[Path]
    make: Callable[[Path, Callable[[int], None]], str]
    check: Callable[[Path], None] = lambda source: None

    def prepare(self) -> None:
        """Check all sources; afterwards they are in the system's cache, if there is room."""
        for source in self.sources:
            self.check(source)


def padded_width(width: int) -> int:
    """The feed-forward width to store by default: a multiple of 1,024 where that costs little, else as it is."""
    padded = -(-width // PADDED_MULTIPLE) * PADDED_MULTIPLE
    return padded if padded <= width * PADDED_GROWTH else width


def convert_release(
    weights: str | Path,
    folder: str | Path,
    tokenizer_file: str | Path,
    *,
    pieces: int = 0,
    num_heads: int | None = None,
    max_positions: int | None = None,
    num_layers: int | None = None,
    dtype: str | None = None,
    intermediate_size: int | None = None,
    quantization: Quantization | None = None,
) -> Result:
    """Convert released files, whole or split over ranks, to a model folder of ours.

    `pieces` is how many ids the tokenizer can give; the token table must have a row for each. Heads and positions
    come from the preset of these sizes if they are not given; `num_layers` keeps the first ones only; `dtype` is the
    files' own by default; `intermediate_size` is the feed-forward width to store, by default `padded_width` of the
    model's. With `quantization` the matrices are stored in fewer bits. Raises YalmError; nothing is left behind unless
    finished files are.
    """
    release = Release(weights, num_heads, max_positions, num_layers)
    source = release.config
    if pieces > source.vocab_size or not Path(tokenizer_file).is_file():
        raise YalmError(
            f"{tokenizer_file}: is no tokenizer of this model, whose vocabulary has {source.vocab_size:,} pieces"
        )
    width = padded_width(source.unpadded_intermediate_size) if intermediate_size is None else intermediate_size
    config = _resized(source, width)
    stored = torch_dtype(dtype) if dtype is not None else release.dtype
    return _to_folder(release, release.folder, Path(folder), config, stored, tokenizer_file, quantization)


def quantize_folder(
    source: str | Path, folder: str | Path, quantization: Quantization, *, dtype: str | None = None
) -> Result:
    """Quantize a model folder of ours; `dtype` is that of what is not quantized, by default as it is. YalmError."""
    model = ModelFolder(source)
    if model.quantization is not None:
        raise YalmError(f"{source}: is quantized already; give the folder it was made from")
    stored = torch_dtype(dtype) if dtype is not None else model.dtype
    tokenizer_file = model.path / TOKENIZER_FILE
    tokenizer = tokenizer_file if tokenizer_file.is_file() else None
    return _to_folder(model, model.path, Path(folder), model.config, stored, tokenizer, quantization)


def _to_folder(
    source: Release | ModelFolder,
    where: Path,
    destination: Path,
    config: ModelConfig,
    stored: torch.dtype,
    tokenizer_file: str | Path | None,
    quantization: Quantization | None,
) -> Result:
    """Make a model folder of the tensors that `source` reads."""
    width = config.intermediate_size

    def origin(name: str) -> str:
        """The tensor that one of ours is made of."""
        part = quantized_part(name) if quantization is not None else None
        return part[0] if part is not None else name

    def read(name: str) -> Tensor:
        part = quantized_part(name)
        if quantization is None or part is None:
            return _fitting(source.read(name), name, width, stored, where)
        matrix = _fitting(source.read(part[0]), part[0], width, torch.float32, where)
        columns = width if part[0].endswith("down_proj.weight") else None
        try:
            return quantize(matrix, quantization, columns, names=part[1:])[part[1]]
        except ValueError as error:
            raise YalmError(f"{where}: {part[0]!r} cannot be quantized ({error}); mend the source") from None

    def shard(name: str, layout: Mapping[str, Tensor]) -> _File:
        size = sum(spec.nbytes for spec in layout.values())

        def make(path: Path, advance: Callable[[int], None]) -> str:
            return write_shard(path, layout, read, advance)

        origins = [origin(tensor) for tensor in layout]

        def check(path: Path) -> None:
            if isinstance(source, Release):
                source.check_bytes(path, origins)

        return _File(name, size, source.files(origins), make, check)

    def finish(partial: Path, checksums: dict[str, str]) -> None:
        write_description(partial, config, stored, checksums, tokenizer_file, quantization)

    files = [shard(name, layout) for name, layout in shards(config, stored, quantization).items()]
    return _make_all(destination, files, config_json(config, stored, quantization), finish)


def convert_folder(
    folder: str | Path, weights: str | Path, *, dtype: str | None = None, intermediate_size: int | None = None
) -> Result:
    """Convert a model folder of ours to the released layout, one file a part.

    The feed-forward width is the one before padding, unless `intermediate_size` says otherwise. Raises YalmError.
    """
    source = ModelFolder(folder)
    if source.quantization is not None:
        raise YalmError(
            f"{folder}: is quantized, and the released layout is not; convert the folder that it was made from"
        )
    width = source.config.unpadded_intermediate_size if intermediate_size is None else intermediate_size
    config = _resized(source.config, width)
    stored = torch_dtype(dtype) if dtype is not None else source.dtype
    layout = {name: spec for specs in shards(config, stored).values() for name, spec in specs.items()}

    def released(number: int, names: Mapping[str, str]) -> _File:
        def make(path: Path, advance: Callable[[int], None]) -> str:
            tensors = {}
            for ours, theirs in names.items():
                tensor = torch.empty(layout[ours].shape, dtype=stored)
                found = _fitting(source.read(ours), ours, width, stored, source.path)
                torch.cat(list(blocks(found, tensor.shape, stored)), out=tensor.view(len(tensor), -1))
                tensors[theirs] = tensor
            with digest_file(path, advance) as file:
                torch.save(tensors, cast(IO[bytes], file))  # it only writes and flushes
            return file.hexdigest()

        size = sum(layout[name].nbytes for name in names)
        return _File(release_path(Path(), number).name, size, source.files(names), make)

    files = [released(number, names) for number, names in release_files(config.num_layers).items()]
    return _make_all(Path(weights), files, config_json(config, stored), write_checksums)


def _resized(source: ModelConfig, width: int) -> ModelConfig:
    """The same model with another stored width."""
    padding = max(width - source.unpadded_intermediate_size, 0)
    sizes = {"intermediate_size": width, "intermediate_padding": padding}
    return ModelConfig.parse(source.model_dump() | sizes, source="conversion")


def _fitting(tensor: Tensor, name: str, width: int, dtype: torch.dtype, source: Path) -> Tensor:
    """The tensor cut to the feed-forward width if it is wider.

    YalmError if what is cut off is not zero, or if the tensor has numbers too large for `dtype`.
    """
    if dtype is torch.float16 and tensor.dtype is not torch.float16:
        low, high = tensor.aminmax()
        if max(-low.item(), high.item()) > torch.finfo(dtype).max:
            raise YalmError(f"{source}: {name!r} has numbers too large for fp16; choose bf16 or fp32")
    if not name.endswith(FEED_FORWARD):
        return tensor
    dim = 1 if name.endswith("down_proj.weight") else 0
    surplus = tensor.shape[dim] - width
    if surplus <= 0:
        return tensor
    if tensor.narrow(dim, width, surplus).any():
        raise YalmError(
            f"{source}: {name!r} is not zero past a feed-forward width of {width:,}, so it cannot be cut to that; "
            f"ask for {tensor.shape[dim]:,}"
        )
    return tensor.narrow(dim, 0, width)


def _make_all(
    destination: Path,
    files: list[_File],
    settings: dict[str, Any],
    finish: Callable[[Path, dict[str, str]], None],
) -> Result:
    """Make what is not made yet, note each file when it is done, and put the folder in its place."""
    if destination.exists():
        raise YalmError(f"{destination}: exists already; remove it or choose another place")
    destination.parent.mkdir(parents=True, exist_ok=True)
    start, kept, written = perf_counter(), 0, 0
    total = sum(file.size for file in files)
    threads = torch.get_num_threads()
    # Blocks are too small to share: on a busy machine threads that wait for each other double the time.
    torch.set_num_threads(1)
    try:
        with resumable_folder(destination) as partial:
            record = _read_record(partial / RECORD_FILE)
            origins = {file.name: _origin(file, settings) for file in files}
            usable = {name for name, entry in record.items() if origins.get(name) == entry["origin"]}
            _make_room(partial, files, usable)
            with byte_progress("converting", total) as advance:
                left = []
                for file in files:
                    if file.name in usable and file_sha256(partial / file.name) == record[file.name]["sha256"]:
                        kept += 1
                        advance(file.size)
                    else:
                        left.append(file)
                for file in _prepared(left):
                    sha256 = file.make(partial / file.name, advance)
                    written += (partial / file.name).stat().st_size
                    record[file.name] = {"sha256": sha256, "origin": origins[file.name]}
                    write_text(partial / RECORD_FILE, json.dumps(record))
            finish(partial, {file.name: record[file.name]["sha256"] for file in files})
            (partial / RECORD_FILE).unlink()
    except BlockingIOError:
        raise YalmError(f"{destination}: another conversion is writing there; wait for it") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise YalmError(
                f"{destination}: the disk is full; make room and run the same again, finished files are kept"
            ) from None
        raise YalmError(f"{destination}: cannot be written ({error.strerror}); run the same again to go on") from None
    finally:
        torch.set_num_threads(threads)
    return Result(destination, len(files), kept, written, perf_counter() - start)


def _prepared(files: list[_File]) -> Iterator[_File]:
    """Each file when its sources are checked; those of the next one are read while this one is made."""
    with ThreadPoolExecutor(1) as ahead:
        checks = [ahead.submit(file.prepare) for file in files[:1]]
        for number, file in enumerate(files, start=1):
            checks.pop().result()
            checks = [ahead.submit(following.prepare) for following in files[number : number + 1]]
            yield file


def _make_room(partial: Path, files: list[_File], usable: set[str]) -> None:
    """Remove what no file of this conversion is, and see that the rest fits on the disk; else leave nothing."""
    for stray in partial.iterdir():
        if stray.name not in usable and stray.name != RECORD_FILE:
            stray.unlink()
    need = sum(file.size for file in files if not (partial / file.name).exists())
    free = shutil.disk_usage(partial).free
    if need > free:
        if not usable:
            shutil.rmtree(partial)
        raise YalmError(
            f"{partial.parent}: {need / 1e9:,.1f} GB are needed and {free / 1e9:,.1f} GB free; make room or choose "
            "another place"
        )


def _origin(file: _File, settings: dict[str, Any]) -> str:
    """What a file is made from, as text: if it is the same, so is the file."""
    stats = [(source.name, source.stat().st_size, source.stat().st_mtime_ns) for source in file.sources]
    return json.dumps([settings, stats])


def _read_record(path: Path) -> dict[str, dict[str, str]]:
    """The finished files of an interrupted conversion; none if that cannot be known."""
    try:
        record: dict[str, dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record
