"""One NVIDIA GPU, all that is promised of it: correct kernels, what each setting brings, speed beside transformers.

    python bench/gpu.py [SECTION ...] [--minutes 7.5] [--json FILE]
    python bench/gpu.py --device cpu --quick              # tiny sizes, to see that all of it runs

kernels   Every operation of ours beside the plain one in fp32 and bf16: error against fp32, and times.
speed     Training steps of 1.3b, 125m and 3b, sequences of 1,024 and 2,048, beside a GPT-NeoX of as many parameters:
          tokens/s, MFU. Each side's micro-batch is halved until it fits. 3b is recomputed, in bf16 and in fp8.
switches  The same steps of 125m with one setting changed: compilation, fused kernels, recomputation, precision.
parallel  Losses over some steps beside fp32, for what one device can do of docs/parallelism.md and precision.md.
decoding  Tokens/s of generation in bf16, for 1 and 8 texts, and its share of the memory's bandwidth.

The first three run by default. Whatever runs, the peaks come first: matrix products by type, and copying in memory.
MFU counts the FLOPs of `yalm.model.costs`, recomputation not, against the bf16 peak of the GPU's data sheet; "of
measured" is against the one measured here (on a CPU, in fp32). Times are the device's own, medians of whole steps
after one to warm up. A row that fails or does not fit says so and leaves the others alone; rows for which too little
of --minutes is left are skipped and named. transformers computes under autocast with SDPA attention, at the first size
also compiled; where it is not installed, that is said.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from contender import Contender, ours, random_batch, theirs
from measure import copy_bandwidth, device_peaks, median, report
from neox import same_parameters
from operations import cases, compare
from yalm.errors import YalmError
from yalm.inference.engine import Request, run
from yalm.inference.sampling import SamplingSettings
from yalm.model.config import ModelConfig
from yalm.model.costs import weight_bytes
from yalm.model.network import build, initialize
from yalm.model.presets import preset
from yalm.tokens.tokenizer import Tokenizer
from yalm.training.metrics import BF16_PEAKS
from yalm.training.parallel import World, join_world
from yalm.training.settings import ComputeSettings, OptimizerSettings

GOLDEN_TOKENIZER = Path(__file__).resolve().parents[1] / "tests" / "golden" / "yalm-tiny" / "vocab.sp"
TARGETS = "targets: 1.3b in bf16 at 55 % MFU and 1.5 times transformers"
Row = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large everything is; `QUICK` is for seeing that it runs."""

    runs: tuple[tuple[str, str, str, int], ...]
    """Of speed: preset, precision, recompute, tokens of a sequence; those that matter most first."""
    small: str
    """The preset of kernels, switches and parallel."""
    tokens: int
    """Of a micro-batch, at most."""
    micro_batches: int
    repetitions: int
    steps: int
    """Of parallel."""
    product: int
    """Side of the matrices of peaks."""
    copied: int
    """Bytes."""
    decoded: str
    new_tokens: int


FULL = Scale(
    runs=(
        ("1.3b", "bf16", "none", 1024),
        ("1.3b", "bf16", "none", 2048),
        ("125m", "bf16", "none", 1024),
        ("125m", "bf16", "none", 2048),
        ("3b", "bf16", "full", 1024),
        ("3b", "bf16", "full", 2048),
        ("3b", "fp8", "full", 1024),
        ("3b", "fp8", "full", 2048),
    ),
    small="125m",
    tokens=16_384,
    micro_batches=4,
    repetitions=4,
    steps=20,
    product=8192,
    copied=2**30,
    decoded="1.3b",
    new_tokens=64,
)
QUICK = Scale(
    runs=(("demo", "fp32", "none", 32), ("demo", "bf16", "full", 64), ("demo", "fp8", "full", 64)),
    small="demo",
    tokens=64,
    micro_batches=2,
    repetitions=1,
    steps=3,
    product=64,
    copied=2**16,
    decoded="demo",
    new_tokens=4,
)


@dataclass
class Bench:
    """The rows so far, the device they are measured on, and the time that is left for more."""

    world: World
    scale: Scale
    seconds: float
    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    peaks: dict[str, float] = field(default_factory=dict)
    bandwidth: float = 0.0

    def __post_init__(self) -> None:
        self.end = time.monotonic() + self.seconds

    def row(self, section: str, case: str, work: Callable[[], Row], seconds: float) -> Row:
        """Do the work of a row if about `seconds` for it are left; what it returns, or why there is nothing."""
        row: Row = {"section": section, "case": case}
        if time.monotonic() + seconds > self.end:
            self.skipped.append(f"{section} {case}")
            return row | {"failed": "no time"}
        try:
            row |= work()
        except torch.OutOfMemoryError:
            row["failed"] = "out of memory"
        except ImportError as error:
            row["failed"] = f"{error.name} is not installed"
        except (YalmError, RuntimeError) as error:
            row["failed"] = str(error).strip().splitlines()[0][:120]
        self.release()
        self.rows.append(row)
        print(f"{section:9} {case:40} " + ", ".join(map(str, list(row.values())[2:])), file=sys.stderr, flush=True)
        return row

    def release(self) -> None:
        """Give back what the last work held, also what it compiled."""
        gc.collect()
        torch.compiler.reset()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def compute(self, **settings: Any) -> ComputeSettings:
        """Settings on this device; compiled on GPUs, as by default."""
        return ComputeSettings(device=str(self.world.device), **settings)


# --- sections -----------------------------------------------------------------------------------------------------


def peaks(bench: Bench) -> None:
    """What the rows of all sections are shares of."""
    bench.peaks = device_peaks(bench.world.device, bench.scale.product)
    bench.bandwidth = copy_bandwidth(bench.world.device, bench.scale.copied)
    for name, peak in bench.peaks.items():
        bench.row("peaks", f"product, {name}", lambda peak=peak: {"result": f"{peak / 1e12:,.2f} TFLOP/s"}, 0)  # type: ignore[misc]
    bench.row("peaks", "copy", lambda: {"result": f"{bench.bandwidth / 1e9:,.1f} GB/s"}, 0)


def kernels(bench: Bench) -> None:
    """Errors and times, an operation a row."""
    config, device = preset(bench.scale.small), bench.world.device
    length = min(1024, config.max_positions)
    for dtype in (torch.float32, torch.bfloat16):
        for case in cases(config, max(1, bench.scale.tokens // length // 4), length, device):

            def work(case: Any = case, dtype: torch.dtype = dtype) -> Row:
                if case.needs_gpu and device.type != "cuda":
                    raise YalmError("needs a GPU")
                found = compare(case, dtype, device, bench.scale.repetitions)
                return {
                    "result": f"{'correct' if found.correct else 'WRONG'}, error {found.error:.1e}",
                    "beside": f"plain error {found.plain_error:.1e}",
                    "ratio": f"{found.plain_seconds / found.seconds:.2f} x",
                    "more": f"{1e3 * found.seconds:.3f} ms, plain {1e3 * found.plain_seconds:.3f} ms",
                }

            bench.row("kernels", f"{case.name}, {str(dtype).removeprefix('torch.')}", work, 5)


def speed(bench: Bench) -> None:
    """Ours and theirs by turns of a row each; at the first size, theirs compiled too."""
    for name, precision, recompute, length in bench.scale.runs:
        config = preset(name).model_copy(update={"max_positions": max(length, preset(name).max_positions)})
        compute = bench.compute(precision=precision, recompute=recompute)
        case = f"{name} {precision}, {length:,}" + (f", recompute {recompute}" if recompute != "none" else "")
        # By 1.3b's time on an H100, with compiling; a slower GPU finds out by what is left.
        seconds = {"125m": 25, "1.3b": 40, "3b": 60}.get(name, 1)
        row = bench.row("speed", f"{case}, yalm", lambda n=config, c=compute, s=length: steps(bench, n, c, s), seconds)  # type: ignore[misc]
        if precision == "fp8":  # transformers has no fp8 training of its own
            continue
        rates = []
        first = (name, precision, recompute, length) == bench.scale.runs[0]
        for mode in ("off", "on") if first and bench.world.device.type == "cuda" else ("off",):
            changed, beside = compute.model_copy(update={"compile": mode}), same_parameters(config)
            label = f"{case}, GPT-NeoX" + (" compiled" if mode == "on" else "")
            other = bench.row("speed", label, lambda n=beside, c=changed, s=length: steps(bench, n, c, s), seconds)  # type: ignore[misc]
            rates.append(other.get("tokens/s", 0.0))
        if max(rates, default=0) and "tokens/s" in row:
            row |= {"beside": f"GPT-NeoX {max(rates):,.0f} tokens/s", "ratio": f"{row['tokens/s'] / max(rates):.2f} x"}


def steps(bench: Bench, sizes: Any, compute: ComputeSettings, length: int) -> Row:
    """Training steps at the largest micro-batch that fits: tokens/s, MFU, memory."""
    sequences = max(1, bench.scale.tokens // length)
    while True:
        try:
            return _steps(bench, sizes, compute, length, sequences)
        except torch.OutOfMemoryError:
            if sequences == 1:
                raise
        # Outside of the handler, whose traceback holds what is to be freed.
        bench.release()
        sequences //= 2


def _steps(bench: Bench, sizes: Any, compute: ComputeSettings, length: int, sequences: int) -> Row:
    make = ours if isinstance(sizes, ModelConfig) else theirs
    contender = make(sizes, length, OptimizerSettings(), bench.world, compute=compute)  # type: ignore[arg-type]
    batch, micro_batches = random_batch(sizes.vocab_size, sequences, length), bench.scale.micro_batches
    seconds = contender.step_seconds([lambda: batch] * micro_batches, bench.scale.repetitions)
    rate = sequences * length * micro_batches / median(seconds)
    more = [*utilization(bench, contender, rate), f"micro-batch {sequences} x {length}", *memory(bench.world)]
    return {"tokens/s": rate, "result": f"{rate:,.0f} tokens/s", "more": ", ".join(more)}


def utilization(bench: Bench, contender: Contender, rate: float) -> list[str]:
    """The share of the peak, by the data sheet where it is known, and of what was measured."""
    flops, device = rate * contender.flops_per_token, bench.world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    sheet = [f"MFU {flops / peak:.1%}" for part, peak in BF16_PEAKS.items() if part in name]
    return [*sheet[:1], f"{flops / bench.peaks['bf16' if name else 'fp32']:.1%} of measured"]


def memory(world: World) -> list[str]:
    """The most that tensors have had of a GPU since the last row."""
    if world.device.type != "cuda":
        return []
    return [f"{torch.cuda.max_memory_allocated(world.device) / 1e9:,.1f} GB"]


def switches(bench: Bench) -> None:
    """Beside the first row, which is how `yalm train` runs in bf16, one setting changed in each."""
    compiled = bench.world.device.type == "cuda"
    base: dict[str, Any] = {"precision": "bf16"}
    changes: list[dict[str, Any]] = [
        {},
        {"compile": "off"},
        {"compile": "off", "fused": False},
        {"recompute": "selective"},
        {"recompute": "full"},
        {"precision": "fp8"},
        {"precision": "tf32"},
    ]
    config = preset(bench.scale.small)
    rates: list[float] = []
    for change in changes:
        if not set(change) <= set(ComputeSettings.model_fields):
            continue
        settings = bench.compute(**base | change)
        label = ", ".join(f"{key} {value}" for key, value in change.items()) or "as by default in bf16"
        row = bench.row(
            "switches", label, lambda s=settings: steps(bench, config, s, config.max_positions), 15 if compiled else 1
        )  # type: ignore[misc]
        rates.append(row.get("tokens/s", 0.0))
        if rates[0] and rates[-1] and change:
            row |= {"beside": f"{rates[0]:,.0f} tokens/s", "ratio": f"{rates[-1] / rates[0]:.2f} x"}


def parallel(bench: Bench) -> None:
    """The same few batches again and again, so that there is something to learn; losses beside fp32's."""
    compiled = bench.world.device.type == "cuda"  # elsewhere it takes half a minute each
    cases: list[dict[str, Any]] = [
        {"precision": "fp32"},
        {"precision": "tf32"},
        {"precision": "bf16"},
        *({"precision": "bf16", "zero": zero} for zero in (0, 1, 2)),
        *({"precision": "bf16", "recompute": recompute} for recompute in ("selective", "full")),
        {"precision": "bf16", "offload": True},
    ]
    if compiled:
        cases += [
            {"precision": "bf16", "recompute": recompute, "compile": "on"}
            for recompute in ("none", "selective", "full")
        ]
    cases += [{"precision": "fp8", "compile": "on" if compiled else "off"}]
    exact: list[float] = []
    for case in cases:
        label = ", ".join(f"{key} {value}" for key, value in case.items())

        def work(case: dict[str, Any] = case) -> Row:
            found = losses(bench, bench.compute(**{"compile": "off"} | case))
            if case is cases[0]:
                exact.extend(found)
            if not exact:
                raise YalmError("fp32 has no losses to hold it against")
            worst = max(abs(a / b - 1) for a, b in zip(found, exact, strict=True))
            return {
                "result": f"loss {found[0]:.4f} to {found[-1]:.4f}",
                "beside": f"fp32 {exact[0]:.4f} to {exact[-1]:.4f}",
                "more": ", ".join([f"{worst:.2%} apart at most", *memory(bench.world)]),
            }

        bench.row("parallel", label, work, 15 if compiled else 1)


def losses(bench: Bench, compute: ComputeSettings) -> list[float]:
    """The loss of each step of a run from the same weights on the same batches."""
    config = preset(bench.scale.small)
    length = config.max_positions
    contender = ours(config, length, OptimizerSettings(), bench.world, compute=compute)
    sequences = max(1, bench.scale.tokens // length // 4)
    batches = [random_batch(config.vocab_size, sequences, length, seed) for seed in range(2)]
    return [
        float(contender.step([lambda step=step: batches[step % 2]], 1e-3))  # type: ignore[misc]
        for step in range(bench.scale.steps)
    ]


def decoding(bench: Bench) -> None:
    """Greedy, without an end: what a call for N + 1 tokens takes beyond one for a single token, over N."""
    config, new = preset(bench.scale.decoded), bench.scale.new_tokens
    tokenizer = Tokenizer(GOLDEN_TOKENIZER)

    def work(batch: int) -> Row:
        model = initialize(build(config, bench.world.device), seed=0).to(torch.bfloat16)
        with torch.no_grad():
            model.lm_head.bias[tokenizer.eos_id] = -1e4
        prompts = [Request([1] + [5 + (row + place) % 50 for place in range(31)], row) for row in range(batch)]

        def seconds(count: int) -> float:
            start = time.perf_counter()
            made = sum(
                1 for _ in run(model, tokenizer, prompts, SamplingSettings(temperature=0, max_tokens=count), batch)
            )
            assert made == batch * count
            return time.perf_counter() - start  # each token has come to the host: nothing is under way

        seconds(new)
        steps = new / max(seconds(new + 1) - seconds(1), 1e-9)
        share = steps * weight_bytes(config, "bf16") / bench.bandwidth
        return {
            "result": f"{batch * steps:,.0f} tokens/s",
            "more": ", ".join([f"{share:.1%} of the copy bandwidth", *memory(bench.world)]),
        }

    for batch in (1, 8):
        bench.row(
            "decoding", f"{bench.scale.decoded} bf16, {batch} at a time", lambda b=batch: work(b), 20 if new > 4 else 1
        )  # type: ignore[misc]


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "kernels": kernels,
    "speed": speed,
    "switches": switches,
    "parallel": parallel,
    "decoding": decoding,
}
DEFAULT = ("kernels", "speed", "switches")


def table(rows: list[Row]) -> Iterator[Row]:
    """The rows as they are printed: one table for all sections."""
    for row in rows:
        result = row.get("result", f"none: {row.get('failed')}")
        yield {"section": row["section"], "case": row["case"], "result": result} | {
            column: row.get(column, "") for column in ("beside", "ratio", "more")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--device", default="cuda", help="cpu is only for seeing that it runs, with --quick")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--minutes", type=float, default=7.5, help="for all of it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the table to FILE, a JSON object on a line")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("no NVIDIA GPU here: nothing was measured (--device cpu --quick shows that the benchmark runs)")
        return
    start = time.monotonic()
    with join_world(ComputeSettings(device=options.device)) as world:
        bench = Bench(world, QUICK if options.quick else FULL, 60 * options.minutes)
        peaks(bench)
        for name, section in SECTIONS.items():
            if name in (options.sections or DEFAULT):
                section(bench)
    report(
        f"One {options.device} device; {TARGETS}",
        list(table(bench.rows)),
        options.json,
        seconds=round(time.monotonic() - start),
        skipped=", ".join(bench.skipped) or "nothing",
    )
    if wrong := [row["case"] for row in bench.rows if "WRONG" in row.get("result", "")]:
        sys.exit(f"wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
