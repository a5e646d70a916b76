"""What an operation could take at least, by the FLOPs and bytes of its shapes and the peaks of this machine.

A roofline (Williams et al. 2009, "Roofline: An Insightful Visual Performance Model"): no operation is faster than its
FLOPs at the peak of products, nor than its bytes at the bandwidth of memory. Both peaks are measured here, the first by
the network's own product in the run's type, the second by a copy too large for caches. Operations on what is still in a
cache can be faster than that, and then have a share above one.

FLOPs follow `yalm.model.costs`: two for a multiply-add, half the square of causal attention. Bytes are those of inputs
and results once each; an operation that is no product is taken to write one result as large as its largest input.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from yalm.model.ops.linear import product
from yalm.planning.time import ATTENTION_BACKWARD
from yalm.profiling.classify import Operation, Timeline
from yalm.training.metrics import measured_peak

# As the profiler calls types; what it does not name here is no tensor of numbers that matter.
TYPE_BYTES = {
    "double": 8,
    "long int": 8,
    "float": 4,
    "int": 4,
    "c10::BFloat16": 2,
    "c10::Half": 2,
    "c10::Float8_e4m3fn": 1,
    "c10::Float8_e5m2": 1,
    "bool": 1,
}
COPIED_BYTES = 256 << 20
# Operations below this share of the step are not worth a line.
LARGE = 0.01


@dataclass(frozen=True)
class Machine:
    """The measured peaks of one device."""

    flops: float
    """FLOP/s of products in the run's type."""
    bandwidth: float
    """Bytes a second of its memory, read and written."""


def measure(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure the peaks."""
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device)
    return Machine(measured_peak(device, dtype), 2 * COPIED_BYTES / seconds)


def product_rate(device: torch.device, dtype: torch.dtype, rows: int, width: int, columns: int) -> float:
    """FLOP/s of the product (rows, width) · (columns, width)ᵀ here."""
    a = torch.ones(rows, width, device=device, dtype=dtype)
    b = torch.ones(columns, width, device=device, dtype=dtype)
    return 2.0 * rows * width * columns / _best(lambda: product(a, b), device)


def _best(work: Callable[[], object], device: torch.device, repetitions: int = 6) -> float:
    """The least seconds of some calls."""
    least = float("inf")
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        least = min(least, time.perf_counter() - start)
    return least


def flops_and_bytes(op: Operation) -> tuple[float, float]:
    """FLOPs (0 for what is no product) and bytes of one run of an operation, by its shapes."""
    tensors = [
        (shape, TYPE_BYTES[dtype])
        for shape, dtype in zip(op.shapes, op.dtypes, strict=False)
        if shape and dtype in TYPE_BYTES
    ]
    if not tensors:
        return 0.0, 0.0
    if op.kind == "attention":
        shape, size = next(tensor for tensor in tensors if len(tensor[0]) >= 4)
        if len(shape) == 5:  # ours takes the projection as it is
            batch, length, heads, _, width = shape
        else:
            batch, heads, length, width = shape
        backward = "backward" in op.name
        flops = 4.0 * batch * heads * width * length * (length + 1) / 2 * (ATTENTION_BACKWARD if backward else 1)
        return flops, (8.0 if backward else 4.0) * batch * heads * length * width * size
    if op.kind == "matmul":
        # What addmm and baddbmm add to comes first; the second matrix of oneDNN's is the transposed one.
        first = 1 if op.name in ("aten::addmm", "aten::baddbmm") else 0
        (a, size), (b, _) = tensors[first : first + 2]
        rows, inner = prod(a[:-1]), a[-1]
        columns = b[-1] if op.name.startswith("aten::") else b[-2]
        return 2.0 * rows * inner * columns, size * (rows * inner + prod(b) + rows * columns)
    sizes = [prod(shape) * size for shape, size in tensors]
    return 0.0, float(sum(sizes) + max(sizes))


def large_operations(timeline: Timeline, machine: Machine) -> list[dict[str, Any]]:
    """Operations of one name, module and shapes that take a share of LARGE or more, the largest first.

    `seconds` and `calls` are those of a step, `roof` the share of the speed that the roofline allows, `bound` what the
    roofline says would limit it: `compute` or `memory`.
    """
    groups: dict[tuple[Any, ...], list[Operation]] = defaultdict(list)
    for op in timeline.operations:
        groups[op.name, op.kind, op.module, op.phase, op.shapes].append(op)
    rows = []
    for (name, kind, module, phase, shapes), ops in groups.items():
        seconds = sum(op.seconds for op in ops) / timeline.steps
        if seconds < LARGE * timeline.seconds:
            continue
        flops, size = (len(ops) / timeline.steps * number for number in flops_and_bytes(ops[0]))
        computing, moving = flops / machine.flops, size / machine.bandwidth
        rows.append(
            {
                "name": name,
                "kind": kind,
                "module": module,
                "phase": phase,
                "shapes": [list(shape) for shape in shapes if shape],
                "calls": len(ops) / timeline.steps,
                "seconds": seconds,
                "share": seconds / timeline.seconds,
                "flops_per_second": flops / seconds,
                "bytes_per_second": size / seconds,
                "bound": "compute" if computing > moving else "memory",
                "roof": max(computing, moving) / seconds,
            }
        )
    return sorted(rows, key=lambda row: -row["seconds"])
