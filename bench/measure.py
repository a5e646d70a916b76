"""What the benchmarks share: time spent, the peaks of this machine, medians with their range, tables.

CPU seconds are those of all threads of the process; with one thread they are the better clock on a shared machine,
since they do not run while another process has the core. A peak is the best that a square product reaches here in fp32
at the current number of threads. PyTorch has two libraries for it, and they can differ twofold: the one behind `a @ b`
(MKL, where it is built with it), and oneDNN. Both are reported, and shares say of which they are.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Spent(NamedTuple):
    """Seconds of wall time and of CPU time."""

    wall: float
    cpu: float


def spent(work: Callable[[], object]) -> Spent:
    """What one call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def best(work: Callable[[], object], repetitions: int) -> Spent:
    """The least of each clock over some calls, after one to warm up."""
    work()
    runs = [spent(work) for _ in range(repetitions)]
    return Spent(min(run.wall for run in runs), min(run.cpu for run in runs))


def device_seconds(work: Callable[[], object], device: torch.device, repetitions: int) -> list[float]:
    """Seconds of each of some calls by the device's own clock, after one to warm up.

    On a GPU the calls are queued one after another and their ends are marked in its stream, so that what the host does
    in between counts only where the GPU waits for it; elsewhere it is wall time.
    """
    work()
    if device.type != "cuda":
        return [spent(work).wall for _ in range(repetitions)]
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repetitions + 1)]
    torch.cuda.synchronize(device)
    marks[0].record()
    for mark in marks[1:]:
        work()
        mark.record()
    torch.cuda.synchronize(device)
    return [first.elapsed_time(second) / 1e3 for first, second in pairwise(marks)]


class Peak(NamedTuple):
    """FLOP/s of fp32 matrix products, by wall time and by CPU time."""

    wall: float
    cpu: float


def matmul_peaks(repetitions: int = 3, size: int = 1536) -> dict[str, Peak]:
    """The peak of each library: "matmul" for `a @ b`, "oneDNN" where this build has it."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    products: dict[str, Callable[[], object]] = {"matmul": lambda: a @ b}
    if torch.backends.mkldnn.is_available():
        products["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    flops = 2 * size**3
    times = {name: best(product, repetitions) for name, product in products.items()}
    return {name: Peak(flops / seconds.wall, flops / seconds.cpu) for name, seconds in times.items()}


def device_peaks(device: torch.device, size: int) -> dict[str, float]:
    """FLOP/s of square matrix products on the device by type, the best of thirty; a type that it lacks is left out."""
    peaks = {}
    for name, product in _products(device, size).items():
        torch.set_float32_matmul_precision("high" if name == "tf32" else "highest")
        try:
            peaks[name] = 2 * size**3 / min(device_seconds(product, device, 30))
        except (RuntimeError, NotImplementedError):
            continue
        finally:
            torch.set_float32_matmul_precision("highest")
    return peaks


def _products(device: torch.device, size: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator) for _ in range(2))
    half_a, half_b = a.bfloat16(), b.bfloat16()
    products: dict[str, Callable[[], object]] = {"fp32": lambda: a @ b, "bf16": lambda: half_a @ half_b}
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        products["tf32"] = lambda: a @ b
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        small_a, small_b, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t(), torch.ones((), device=device)
        products["fp8"] = lambda: torch._scaled_mm(
            small_a, small_b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    return products


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Bytes/s read and written together while `size` bytes are copied within the device's memory, the best of ten."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / min(device_seconds(lambda: target.copy_(source), device, 10))


def gemv_bandwidth(rows: int = 27_308, columns: int = 2_560, repetitions: int = 20) -> float:
    """Bytes/s (wall) of fp32 weights through a matrix-vector product: what bounds decoding at batch 1."""
    weight, vector = torch.randn(rows, columns), torch.randn(columns)
    return 4 * rows * columns / best(lambda: torch.mv(weight, vector), repetitions).wall


def median(values: Sequence[float]) -> float:
    """The median, 0 of nothing."""
    return statistics.median(values) if values else 0.0


def ranged(values: Sequence[float], digits: int = 0) -> str:
    """`median (min-max)`."""
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f}-{max(values):,.{digits}f})"


def machine() -> dict[str, Any]:
    """The settings that every figure depends on; no names of hosts."""
    cpu = platform.processor() or "unknown"
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        cpu = f"{fields.get('model name', cpu)}, family {fields.get('cpu family', '?')}"
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"cpu": cpu, **gpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


def report(title: str, rows: Sequence[Mapping[str, Any]], file: Path | None = None, **facts: Any) -> None:
    """Print a Markdown table and what it depends on; append both to `file` as one JSON object on a line."""
    settings = machine() | facts
    print(f"\n### {title}\n\n" + "; ".join(f"{name} {value}" for name, value in settings.items()) + "\n")
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |")
    print(flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"title": title, "settings": settings, "rows": list(rows)}, default=str) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
