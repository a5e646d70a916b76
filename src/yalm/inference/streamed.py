"""Weights from disk to where they are used: all at once, or layer by layer while the model runs.

A model that does not fit the memory can still be run: every pass reads the layers that have no place, one after the
other, into one of two buffers, while the layer in the other computes. One sweep over the weights serves all the texts
under way, so its price is shared by the batch. The network does not know: its `layers` become a sequence that hands
out each layer when its weights are there. At the end of a sweep the first layers of the next are read already.

Files are read in blocks, by a few threads. What is too large to stay in the system's cache from one sweep to the next
is read past it, straight into the buffers (`shards.read_bytes`): through the cache, which never has it, the same bytes
cost a copy and an eviction, ten times the processor time. Through a memory map they arrive page by page, at a tenth of
the speed on a virtual machine, and count as memory of the process.

The price: the memory of two layers, and two layers read in vain when no further sweep comes. Past the cache, ranks of
one machine that hold columns of the same matrix each read it whole.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from threading import Lock, local

import torch
from torch import Tensor, nn

from yalm.inference.parallel import Slice
from yalm.model.shards import PAGE, Span, read_bytes
from yalm.model.weights import Weights

# Small enough to share a tensor's read between threads, large enough that their switching costs nothing; whole pages.
BLOCK_BYTES = 8 * 2**20
# Reads under way at a time: a disk needs several to show its speed, the system's cache two.
READERS = 4
# Tensors in a buffer begin at multiples of this, for vector instructions: products of 8 and 4 bits that begin elsewhere
# were measured 1.1 to 1.3 times as long, of 16 bits 1.1 times, of 32 no longer.
ALIGNMENT = 64


class Reader:
    """Fills tensors in memory, of any type and on any device, from the files of `source`, several blocks at a time.

    `part(name, shape)` says which part of a stored tensor this process holds, None being all of it. Tensors in `held`
    are copied from there and not read. With `direct` files are read past the system's cache, where that can be.
    """

    def __init__(
        self,
        source: Weights,
        part: Callable[[str, Sequence[int]], Slice | None] | None = None,
        direct: bool = False,
    ) -> None:
        self.source, self.direct = source, direct
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
            self._pool.submit(self._run, job, ready)
            for name, into in tensors.items()
            for job in self._jobs(name, into.detach())
        ]

    def find(self, name: str, spec: Tensor) -> Span | None:
        """Where the bytes of such a tensor lie in a file just as they are to be; None if they do not."""
        span = None if name in self.held else self._span(name)
        if span is None or span.dtype != spec.dtype or span.offset % spec.dtype.itemsize:
            return None
        part = self._part(name, span.shape) or Slice(0, 0, span.shape[0], span.shape[0])
        if part.dim or (part.stop - part.start, *span.shape[1:]) != spec.shape:
            return None
        return Span(span.path, span.offset + part.start * _row_bytes(span), spec.dtype, tuple(spec.shape))

    @staticmethod
    def _run(job: Callable[[], int], ready: Callable[[], None]) -> int:
        ready()
        with torch.inference_mode():
            return job()

    def _jobs(self, name: str, into: Tensor) -> Iterator[Callable[[], int]]:
        """What fills the tensor, block by block; each returns its bytes."""
        span = self.find(name, into)
        if span is None or into.device.type != "cpu" or not into.is_contiguous():
            for rows in self._blocks(name, into):
                yield partial(self._fill, name, into, rows)
            return
        flat = into.view(-1).view(torch.uint8)
        first = -span.offset % PAGE or BLOCK_BYTES
        for start, stop in pairwise((0, *range(first, len(flat), BLOCK_BYTES), len(flat))):
            yield partial(read_bytes, span.path, span.offset + start, flat[start:stop], self.direct)

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

    def _fill(self, name: str, into: Tensor, rows: slice) -> int:
        """Fill the `rows` of a tensor with what is somewhere else or otherwise; returns their bytes."""
        with self._copying(into.device):
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
                shape, stored = span.shape, partial(self._rows, span, into.is_cuda)
            part = self._part(name, shape) or Slice(0, 0, shape[0], shape[0])
            if part.dim == 0:
                rows = slice(*(min(part.start + row, part.stop) for row in (rows.start, rows.stop)))
            found = stored(rows)
            if part.dim == 1:
                found = found[:, part.start : part.stop]
            filled = target[tuple(slice(size) for size in found.shape)]
            if filled.shape != target.shape:
                target.zero_()
            filled.copy_(found)
            return target.nbytes

    def _rows(self, span: Span, pinned: bool, rows: slice) -> Tensor:
        """Stored rows, whole, in this thread's own piece of memory."""
        place, shape = span.offset + rows.start * _row_bytes(span), (rows.stop - rows.start, *span.shape[1:])
        found = self._stage(shape, span.dtype, place, pinned)
        read_bytes(span.path, place, found, self.direct)
        return found

    def _copying(self, device: torch.device) -> "torch.cuda.StreamContext | nullcontext[None]":
        """On a GPU a stream of this thread's own, so that copies do not wait behind the model's work."""
        if device.type != "cuda":
            return nullcontext()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._own.stream)

    def _stage(self, shape: Sequence[int], dtype: torch.dtype, place: int, pinned: bool) -> Tensor:
        """This thread's own piece of memory, as a tensor, that can be read into from that place of a file."""
        size = torch.Size(shape).numel() * dtype.itemsize
        buffer: Tensor | None = getattr(self._own, "buffer", None)
        if buffer is None or len(buffer) < size + PAGE or (pinned and not buffer.is_pinned()):
            size_at_least = max(size, BLOCK_BYTES) + PAGE
            buffer = self._own.buffer = torch.empty(size_at_least, dtype=torch.uint8, pin_memory=pinned)
        start = 0 if place % dtype.itemsize else (place - buffer.data_ptr()) % PAGE
        return buffer[start : start + size].view(dtype).view(shape)


def _row_bytes(span: Span) -> int:
    return span.nbytes // span.shape[0]


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
            prefix = self._prefix(layer)
            pieces = laid_out(layer, prefix, slot.buffer, self._reader)
            layer.load_state_dict({name.removeprefix(prefix): piece for name, piece in pieces.items()}, assign=True)
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
        layer = self._shells[index]
        tensors = laid_out(layer, self._prefix(layer), slot.buffer, self._reader)
        slot.layer, slot.reads = index, self._reader.start(tensors, slot.free)


def laid_out(layer: nn.Module, before: str, buffer: Tensor, reader: Reader) -> dict[str, Tensor]:
    """The tensors of a layer as pieces of a buffer of `buffer_bytes`, by their names with `before` in front.

    Where a CPU's are read past the system's cache, each begins as far into a page as in its file, for that is the
    condition; reading takes longer than a product that begins so.
    """
    pieces, end = {}, 0
    for name, spec in layer.state_dict(prefix=before).items():
        span = reader.find(name, spec) if reader.direct and buffer.device.type == "cpu" else None
        start = end if span is None else end + (span.offset - buffer.data_ptr() - end) % PAGE
        pieces[name] = buffer[start : start + spec.nbytes].view(spec.dtype).view(spec.shape)
        end = -(-(start + spec.nbytes) // ALIGNMENT) * ALIGNMENT
    return pieces


def buffer_bytes(layer: nn.Module) -> int:
    """What the tensors of a layer take in a buffer at most."""
    return sum(spec.nbytes + PAGE + ALIGNMENT for spec in layer.state_dict().values())


def _used(device: torch.device) -> Callable[[], None]:
    """A function that waits until all that was asked of the device so far is done; on CPUs it is already."""
    if device.type != "cuda":
        return lambda: None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event.synchronize
