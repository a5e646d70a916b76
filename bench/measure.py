"""What the benchmarks share: time spent, the peaks of this machine, medians with their range, tables.

CPU seconds are those of all threads of the process; with one thread they are the better clock on a shared machine,
since they do not run while another process has the core. A peak is the best that PyTorch's public operations reach
here in fp32 at the current number of threads. Two libraries multiply matrices in it, and they can differ twofold: the
one behind `a @ b` (MKL, where it is built with it), and oneDNN; both are reported, and shares say of which they are.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
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


class Peak(NamedTuple):
    """FLOP/s of fp32 matrix products, by wall time and by CPU time."""

    wall: float
    cpu: float


def matmul_peaks(repetitions: int = 3, size: int = 1536) -> dict[str, Peak]:
    """The peak of each library: "matmul" for `a @ b`, "oneDNN" for its linear layer where this build has it."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    products: dict[str, Callable[[], object]] = {"matmul": lambda: a @ b}
    if torch.backends.mkldnn.is_available():
        products["oneDNN"] = lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
    flops = 2 * size**3
    times = {name: best(product, repetitions) for name, product in products.items()}
    return {name: Peak(flops / seconds.wall, flops / seconds.cpu) for name, seconds in times.items()}


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
    return {"cpu": cpu, "threads": torch.get_num_threads(), "torch": torch.__version__}


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
