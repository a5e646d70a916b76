"""What a run says of itself: metrics.jsonl, TensorBoard, a progress bar, and the time of each phase of the step.

metrics.jsonl has one JSON object a line: `{"step", "tokens", "loss", …}` for training, `{"step", "validation": …}`
for validation. A resumed run first drops the lines after its checkpoint, so a step stands there once.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.profiler import record_function

from yalm.atomic import write_text
from yalm.model.ops.linear import product

PHASES = ("batch", "forward", "backward", "step")
METRICS_FILE = "metrics.jsonl"
# Dense bf16 tensor-core peaks in FLOP/s, from NVIDIA's data sheets; matched by part of the device's name.
BF16_PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40": 181e12,
    "4090": 165e12,
    "3090": 71e12,
    "V100": 125e12,
}


class PhaseTimer:
    """Seconds spent in each phase since the last `take`. On GPUs a phase ends when its kernels have: `synchronize`
    makes the times true for the price of a short bubble between phases."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Time the block as `phase`, one of PHASES."""
        start = time.perf_counter()
        with record_function(f"phase {phase}"):  # for whoever profiles; else it costs a microsecond
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        self.seconds[phase] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """The seconds by phase, and start again from zero."""
        taken, self.seconds = self.seconds, dict.fromkeys(PHASES, 0.0)
        return taken


def peak_flops(device: torch.device) -> float:
    """The peak of matrix products in FLOP/s: a GPU's bf16 one from its data sheet, else one measured in fp32."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in BF16_PEAKS.items():
            if part in name:
                return peak
    return _measured_peak_once(device, torch.get_num_threads())


@cache
def _measured_peak_once(device: torch.device, threads: int) -> float:
    return measured_peak(device, torch.float32)


def measured_peak(device: torch.device, dtype: torch.dtype, size: int = 1536) -> float:
    """FLOP/s of the network's own kind of product on square matrices of that type."""
    a = torch.ones(size, size, device=device, dtype=dtype)
    product(a, a)  # the first one loads what it needs, or compiles it
    seconds: list[float] = []
    while sum(seconds) < 1 / 3:  # the best of that time: other work on the machine must not pass for its limit
        start = time.perf_counter()
        product(a, a)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


class Metrics:
    """The records and the progress bar of a run; only the main rank has one that writes."""

    def __init__(self, folder: Path, step: int, total_steps: int, *, enabled: bool, tensorboard: bool) -> None:
        self.enabled = enabled
        self.console = Console(stderr=True, quiet=not enabled)
        self.interactive = enabled and self.console.is_terminal
        self.total_steps = total_steps
        self.writer: Any = None
        if not enabled:
            return
        keep_until(folder / METRICS_FILE, step)
        self.file = (folder / METRICS_FILE).open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=not self.interactive)
        self.task = self.progress.add_task("train", total=total_steps, completed=step, status="")

    def __enter__(self) -> Self:
        if self.enabled:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.enabled:
            self.progress.stop()
            self.file.close()
            if self.writer is not None:
                self.writer.close()

    def advance(self, step: int) -> None:
        """Move the bar."""
        if self.enabled:
            self.progress.update(self.task, completed=step)

    def training(self, record: dict[str, Any]) -> None:
        """A training record: step, tokens, loss, lr, grad_norm, tokens_per_second, mfu, seconds by phase."""
        if self.enabled:
            rate, mfu = record["tokens_per_second"], record["mfu"]
            status = f"loss {record['loss']:.3f}  {rate:,.0f} tokens/s  {mfu:.0%} of peak"
            self.progress.update(self.task, status=status)
            self._write(record, {key: value for key, value in record.items() if key not in ("step", "tokens")})

    def validation(self, step: int, tokens: int, results: dict[str, dict[str, float]]) -> None:
        """Validation results by language: nats_per_token and bits_per_byte."""
        if self.enabled:
            self._write({"step": step, "tokens": tokens, "validation": results}, {"validation": results})
            scores = ", ".join(f"{name} {result['bits_per_byte']:.3f}" for name, result in results.items())
            self.say(f"step {step}/{self.total_steps}: validation bits per byte {scores}")

    def say(self, line: str) -> None:
        """A line above the bar."""
        self.console.print(line, highlight=False)

    def _write(self, record: dict[str, Any], scalars: dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        if self.writer is not None:
            for name, value in _flat(scalars):
                self.writer.add_scalar(name, value, record["step"])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All whole records of a run, in order; a line cut by a crash is left out."""
    path = folder / METRICS_FILE
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`, and a last line that a crash cut short."""
    if path.exists():
        records = [record for record in read_metrics(path.parent) if record["step"] <= step]
        write_text(path, "".join(json.dumps(record) + "\n" for record in records))


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value
