"""Weights from disk to where they are used: all at once, or layer by layer while the model runs.

A model that does not fit the memory can still be run: every pass reads the layers that have no place, one after the
other, into one of two buffers, while the layer in the other computes. One sweep over the weights serves all the texts
under way, so its price is shared by the batch. The network does not know: its `layers` become a sequence that hands
out each layer when its weights are there. At the end of a sweep the first layers of the next are read already.

Files are read with `preadv` in blocks, by a few threads. Through a memory map the same bytes arrive page by page, at a
tenth of the speed on a virtual machine, and count as memory of the process.

The price: the memory of two layers, and two layers read in vain when no further sweep comes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, local

import torch
from torch import Tensor, nn

from yalm.errors import YalmError
from yalm.inference.parallel import Slice
from yalm.model.shards import Span
from yalm.model.weights import Weights

# Small enough to share a tensor's read between threads, large enough that their switching costs nothing.
BLOCK_BYTES = 8 * 2**20
# Reads under way at a time: a disk needs several to show its speed, the system's cache two.
READERS = 4
# Tensors in a buffer begin at multiples of this, for vector instructions.
ALIGNMENT = 64


class Reader:
    """Fills tensors in memory, of any type and on any device, from the files of `source`, several blocks at a time.

    `part(name, shape)` says which part of a stored tensor this process holds, None being all of it. Tensors in `held`
    are copied from there and not read.
    """

    def __init__(self, source: Weights, part: Callable[[str, Sequence[int]], Slice | None] | None = None) -> None:
        self.source = source
        self.held: Mapping[str, Tensor] = {}
        self._part = part or (lambda name, shape: None)
        self._spans: dict[str, Span | None] = {}
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="yalm-read")
        self._own = local()
        self._whole = Lock()

    def read(self, tensors: Mapping[str, Tensor], advance: Callable[[int], None] = lambda size: None) -> None:
        """Fill `tensors` by their stored names; `advance` hears bytes. YalmError for files that cannot be read."""
        for future in self.start(tensors):
            advance(future.result())

    def start(self, tensors: Mapping[str, Tensor], ready: Callable[[], None] = lambda: None) -> list["Future[int]"]:
        """As `read`, in the background: futures of bytes filled. Each block first calls `ready`, which may wait."""
        return [
            self._pool.submit(self._fill, name, into.detach(), rows, ready)
            for name, into in tensors.items()
            for rows in self._blocks(name, into)
        ]

    def _span(self, name: str) -> Span | None:
        if name not in self._spans:
            self._spans[name] = self.source.span(name)
        return self._spans[name]

    def _blocks(self, name: str, into: Tensor) -> Iterator[slice]:
        """Runs of rows of `into` that are filled at a time; all at once where the bytes lie in several places."""
        span = None if name in self.held else self._span(name)
        step = len(into) if span is None else max(1, BLOCK_BYTES // _row_bytes(span))
        for start in range(0, len(into), step):
            yield slice(start, min(start + step, len(into)))

    def _fill(self, name: str, into: Tensor, rows: slice, ready: Callable[[], None]) -> int:
        """Fill the `rows` of a tensor; returns their bytes."""
        ready()
        with torch.inference_mode(), self._copying(into.device):
            target = into[rows]
            if name in self.held:
                target.copy_(self.held[name][rows])
                return target.nbytes
            span = self._span(name)
            if span is None:
                with self._whole:  # joins ranks, which is not for several threads
                    whole = self.source.read(name)
                shape, stored = tuple(whole.shape), partial(torch.Tensor.__getitem__, whole)
            else:
                shape, stored = span.shape, partial(self._rows, span, target)
            part = self._part(name, shape) or Slice(0, 0, shape[0], shape[0])
            if part.dim == 0:
                rows = slice(*(min(part.start + row, part.stop) for row in (rows.start, rows.stop)))
            found = stored(rows)
            if part.dim == 1:
                found = found[:, part.start : part.stop]
            if found is not target:
                filled = target[tuple(slice(size) for size in found.shape)]
                if filled.shape != target.shape:
                    target.zero_()
                filled.copy_(found)
            return target.nbytes

    def _rows(self, span: Span, target: Tensor, rows: slice) -> Tensor:
        """Stored rows, whole: read straight into `target` where they are just that."""
        shape = (rows.stop - rows.start, *span.shape[1:])
        if target.device.type == "cpu" and target.dtype == span.dtype and target.shape == shape:
            into = target
        else:
            into = self._stage(shape, span.dtype, pinned=target.is_cuda)
        _read_bytes(span.path, span.offset + rows.start * _row_bytes(span), into)
        return into

    def _copying(self, device: torch.device) -> "torch.cuda.StreamContext | nullcontext[None]":
        """On a GPU a stream of this thread's own, so that copies do not wait behind the model's work."""
        if device.type != "cuda":
            return nullcontext()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._own.stream)

    def _stage(self, shape: Sequence[int], dtype: torch.dtype, pinned: bool) -> Tensor:
        """This thread's own piece of memory, as a tensor."""
        size = torch.Size(shape).numel() * dtype.itemsize
        buffer: Tensor | None = getattr(self._own, "buffer", None)
        if buffer is None or len(buffer) < size or (pinned and not buffer.is_pinned()):
            buffer = self._own.buffer = torch.empty(max(size, BLOCK_BYTES), dtype=torch.uint8, pin_memory=pinned)
        return buffer[:size].view(dtype).view(shape)


def _row_bytes(span: Span) -> int:
    return span.nbytes // span.shape[0]


def _read_bytes(path: "os.PathLike[str]", offset: int, into: Tensor) -> None:
    """Fill a contiguous CPU tensor with the bytes of a file; YalmError if there are fewer or the disk fails."""
    view = memoryview(into.view(-1).view(torch.uint8).numpy()) if into.numel() else memoryview(b"")  # type: ignore
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            while view:
                count = os.preadv(file, [view], offset)
                if not count:
                    raise YalmError(f"{path}: is cut off; copy the file again")
                view, offset = view[count:], offset + count
        finally:
            os.close(file)
    except OSError as error:
        raise YalmError(f"{path}: cannot be read ({error.strerror}); copy the file again") from None


@dataclass
class _Slot:
    """A buffer for the tensors of one layer: which layer, and its reads under way."""

    buffer: Tensor
    layer: int = -1
    reads: list["Future[int]"] = field(default_factory=list)
    free: Callable[[], None] = lambda: None
    """Waits until the layer that was here has been used."""


class StreamedLayers(nn.Module):
    """The layers of a body, those in `streamed` on "meta" until their turn; iterate over it to run them in order.

    `prefix(layer)` is what stands before the names of its tensors in the reader's files. A layer is valid until the
    next one is asked for. Not for two threads at a time.
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        streamed: Sequence[int],
        reader: Reader,
        prefix: Callable[[nn.Module], str],
        device: torch.device,
    ) -> None:
        super().__init__()
        self.resident = nn.ModuleDict({str(i): layer for i, layer in enumerate(layers) if i not in set(streamed)})
        self._shells = {i: layers[i] for i in streamed}
        self._count, self._streamed, self._reader, self._prefix = len(layers), list(streamed), reader, prefix
        size = max(buffer_bytes(layer) for layer in self._shells.values())
        self._slots = [_Slot(torch.empty(size, dtype=torch.uint8, device=device)) for _ in range(2)]

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[nn.Module]:
        place = 0
        for index in range(self._count):
            if index not in self._shells:
                yield self.resident[str(index)]
                continue
            slot, other = self._slots if self._slots[0].layer == index else self._slots[::-1]
            if slot.layer != index:  # the first sweep, or the last one was broken off
                self._request(slot, index)
            place += 1
            following = self._streamed[place % len(self._streamed)]
            if other.layer != following:
                self._request(other, following)
            for read in slot.reads:
                read.result()
            layer = self._shells[index]
            layer.load_state_dict(self._views(slot.buffer, layer), assign=True)
            try:
                yield layer
            finally:
                slot.free = _used(slot.buffer.device)
            layer.to("meta")
            afterwards = self._streamed[(place + 1) % len(self._streamed)]
            if slot.layer != afterwards:
                self._request(slot, afterwards)

    def _request(self, slot: _Slot, index: int) -> None:
        """Begin to read a layer into a slot, when the reads that were meant for it have ended."""
        for read in slot.reads:
            read.cancel()
        wait(slot.reads)
        prefix = self._prefix(self._shells[index])
        views = self._views(slot.buffer, self._shells[index])
        tensors = {prefix + name: view for name, view in views.items()}
        slot.layer, slot.reads = index, self._reader.start(tensors, slot.free)

    @staticmethod
    def _views(buffer: Tensor, layer: nn.Module) -> dict[str, Tensor]:
        """The layer's tensors by name as pieces of a buffer."""
        views, end = {}, 0
        for name, spec in layer.state_dict().items():
            views[name] = buffer[end : end + spec.nbytes].view(spec.dtype).view(spec.shape)
            end += -(-spec.nbytes // ALIGNMENT) * ALIGNMENT
        return views


def buffer_bytes(layer: nn.Module) -> int:
    """What the tensors of a layer take in a buffer."""
    return sum(-(-spec.nbytes // ALIGNMENT) * ALIGNMENT for spec in layer.state_dict().values())


def _used(device: torch.device) -> Callable[[], None]:
    """A function that waits until all that was asked of the device so far is done; on CPUs it is already."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
