"""Training beside a GPT-NeoX from transformers: how well, how fast, and what a large vocabulary costs.

    python bench/train_vs_transformers.py [quality] [speed] [vocab128k] [profile] [--quick] [--json FILE]

quality    A config (configs/25m.toml) and a GPT-NeoX of as many parameters learn from the same samples in the same
           order, by the same optimizer and schedule, in turns of a few steps, so that a drift of the machine meets
           both. Validation loss by language at equal tokens, tokens/s, share of the matmul peak.
speed      One thread, CPU seconds: FLOP/s of a whole training step at 25 and 110 million parameters, in turns.
vocab128k  A vocabulary of 128,000, the same layers, ours with a narrow embedding: tokens/s, memory, and the ratio
           that the FLOPs predict. Each run has a process of its own.
profile    Where the CPU time of our step goes, by operation.

Both sides go through the same step (bench/contender.py). The limits: one seed and one learning rate, chosen for ours
unless --neox-lr says otherwise; batches are read in the step, not ahead; eager fp32 only.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from contender import Contender, ours, random_batch, theirs
from measure import matmul_peaks, median, ranged, report, spent
from neox import NeoxSizes, same_layers, same_parameters
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.presets import PRESETS, preset
from yalm.tokens.batches import Batch, Batches
from yalm.training.metrics import PHASES
from yalm.training.optimizer import learning_rate
from yalm.training.parallel import join_world
from yalm.training.settings import ComputeSettings, OptimizerSettings, TrainSettings
from yalm.training.validation import ValidationPart, validate

ROOT = Path(__file__).resolve().parents[1]
SIZES = {
    "25m": PRESETS["25m"],
    "110m": PRESETS["125m"].model_copy(update={"vocab_size": 16_384, "embedding_size": 512, "num_layers": 14}),
}


def quality(options: argparse.Namespace) -> None:
    """The same tokens for both, by turns; losses along the way and at the end."""
    if options.quick and options.corpus is None:
        with TemporaryDirectory() as folder:
            options.corpus = quick_corpus(Path(folder))
            return quality(options)
    settings = TrainSettings.load(options.config, [*corpus_overrides(options), *options.set])
    if not settings.data.cross_documents:
        raise YalmError("data.cross_documents must be true here: GPT-NeoX knows no borders of documents")
    data = Batches(settings.data.parts, settings.data.sequence_length, settings.seed)
    config = settings.model.config(data.vocab_size)
    length, sequences, micro = settings.data.sequence_length, settings.batch.sequences, settings.batch.micro_sequences
    their_settings = settings.optimizer.model_copy(update={"lr": options.neox_lr or settings.optimizer.lr})

    with join_world(settings.compute) as world:

        def reads(step: int) -> list[Callable[[], Batch]]:
            first = step * sequences
            return [lambda n=n: data.batch(n, micro) for n in range(first, first + sequences, micro)]  # type: ignore[misc]

        def start() -> list[Contender]:
            return [
                ours(config, length, settings.optimizer, world, settings.seed),
                theirs(same_parameters(config), length, their_settings, world, settings.seed),
            ]

        if options.minutes:
            seconds = max(median(contender.step_seconds(reads(0), 4)) for contender in start())
            steps = max(1, int(60 * options.minutes / seconds))
            schedule = settings.schedule.model_copy(
                update={
                    "tokens": steps * settings.tokens_per_step,
                    "warmup_tokens": steps * settings.tokens_per_step // 10,
                }
            )
            settings = settings.model_copy(update={"schedule": schedule})
        data.mixture.require(settings.total_steps * sequences)
        contenders, validation = start(), [ValidationPart.open(part) for part in settings.data.validation]
        peaks: list[dict[str, float]] = []
        curve: list[dict[str, Any]] = []
        for first in range(0, settings.total_steps, options.slice):
            last = min(first + options.slice, settings.total_steps)
            peaks.append({name: peak.wall for name, peak in matmul_peaks(1).items()})
            for contender in contenders:
                for step in range(first, last):
                    tokens = (step + 1) * settings.tokens_per_step
                    lr = learning_rate(tokens, contender.settings.lr, settings.schedule)
                    run = spent(lambda c=contender, s=step, lr=lr: c.step(reads(s), lr))  # type: ignore[misc]
                    if step >= 3:
                        contender.runs.append(run)
            if last == settings.total_steps or last // options.validate_every > first // options.validate_every:
                row: dict[str, Any] = {"tokens": last * settings.tokens_per_step}
                for contender in contenders:
                    losses = validate(
                        contender.model,  # type: ignore[arg-type]
                        validation,
                        world,
                        sequence_length=length,
                        sequences=settings.validation.sequences,
                        micro_sequences=micro,
                        cross_documents=True,
                    )
                    for language, loss in losses.items():
                        row[f"{contender.name} {language} nats/token"] = loss["nats_per_token"]
                        row[f"{contender.name} {language} bits/byte"] = loss["bits_per_byte"]
                curve.append(row)
                print(
                    f"{row['tokens']:,} tokens: " + ", ".join(f"{k} {v:.3f}" for k, v in row.items() if k != "tokens")
                )
    facts = {
        "tokens": settings.total_steps * settings.tokens_per_step,
        "batch": f"{sequences} x {length}",
        "validation tokens a language": settings.validation.sequences * length,
        "lr": f"{settings.optimizer.lr:g}, GPT-NeoX {their_settings.lr:g}",
        "turns": f"{options.slice} steps",
    }
    rows = [speed_row(contender, settings.tokens_per_step, peaks, "wall") for contender in contenders]
    report("Validation loss at equal tokens", curve, options.json, **facts)
    report("Speed of the same run", rows, options.json, **facts)


def speed_row(contender: Contender, tokens: int, peaks: Sequence[dict[str, float]], clock: str) -> dict[str, Any]:
    """Medians and ranges over steps; shares are of the median of the peaks measured in between."""
    seconds = [getattr(run, clock) for run in contender.runs]
    gflops = [contender.flops_per_token * tokens / second / 1e9 for second in seconds]
    phases = contender.phase.take()
    row: dict[str, Any] = {"model": contender.name, "shape": contender.shape, "parameters": contender.parameters}
    row["MFLOP/token"] = contender.flops_per_token / 1e6
    row["tokens/s"] = ranged([tokens / run.wall for run in contender.runs])
    row["tokens/CPU-s"] = ranged([tokens / run.cpu for run in contender.runs])
    unit = "s" if clock == "wall" else "CPU-s"
    row[f"GFLOP/{unit}"] = ranged(gflops, 1)
    for name in peaks[0]:
        peak = median([sample[name] for sample in peaks]) / 1e9
        row[f"{name} peak"] = f"{peak:,.1f}"
        row[f"share of {name}"] = f"{median(gflops) / peak:.1%}"
    row["batch/forward/backward/step"] = "/".join(f"{phases[name] / sum(phases.values()):.0%}" for name in PHASES)
    return row


def speed(options: argparse.Namespace) -> None:
    """Whole steps on random ids, one thread, in turns with the matmul peak."""
    length, sequences, repetitions = (128, 2, 2) if options.quick else (512, 2, options.repetitions)
    with join_world(ComputeSettings(threads=1)) as world:
        for name in ["25m"] if options.quick else SIZES:
            config = SIZES[name]
            settings = OptimizerSettings()
            contenders = [
                ours(config, length, settings, world),
                theirs(same_parameters(config), length, settings, world),
            ]
            rows = speed_rows(contenders, config.vocab_size, length, sequences, repetitions)
            batches = f"{sequences} x {length}"
            report(f"A training step, {name}, one thread", rows, options.json, batch=batches, repetitions=repetitions)


def speed_rows(
    contenders: Sequence[Contender], vocab_size: int, length: int, sequences: int, repetitions: int
) -> list[dict[str, Any]]:
    """CPU seconds of steps on random ids, contenders and the matmul peak taking turns; two rounds to warm up."""
    batch = random_batch(vocab_size, sequences, length)
    peaks: list[dict[str, float]] = []
    for repetition in range(-2, repetitions):
        peaks.append({key: peak.cpu for key, peak in matmul_peaks(2).items()})
        for contender in contenders:
            run = spent(lambda c=contender: c.step([lambda: batch], 1e-4))  # type: ignore[misc]
            if repetition >= 0:
                contender.runs.append(run)
    rows = [speed_row(contender, sequences * length, peaks, "cpu") for contender in contenders]
    for row, contender in zip(rows, contenders, strict=True):
        row["least CPU-s a step"] = min(run.cpu for run in contender.runs)
    return rows


def vocab128k(options: argparse.Namespace) -> None:
    """Each run in a fresh process, in turns; the first steps of a process are not counted."""
    base, length, sequences = preset("25m").model_copy(update={"vocab_size": 128_000}), 512, 2
    rounds, steps = 3, 6
    if options.quick:
        base, length, sequences = base.model_copy(update={"vocab_size": 32_000, "num_layers": 2}), 128, 1
        rounds, steps = 1, 2
    narrow = base.model_copy(update={"embedding_size": base.embedding_size // 2})
    sizes: list[ModelConfig | NeoxSizes] = [base, narrow, same_layers(base)]
    results: list[list[dict[str, Any]]] = [[] for _ in sizes]
    threads = options.threads or torch.get_num_threads()
    for _ in range(rounds):
        for size, runs in zip(sizes, results, strict=True):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                runs.append(process.submit(measure_steps, size, sequences, length, steps, threads).result())
    rows: list[dict[str, Any]] = []
    theirs_rate = median([rate for run in results[-1] for rate in run["rates"]])
    for runs in results:
        rates = [rate for run in runs for rate in run["rates"]]
        row: dict[str, Any] = {key: runs[0][key] for key in ("model", "shape", "parameters")}
        row["MFLOP/token"] = runs[0]["flops"] / 1e6
        row["tokens/s"] = ranged(rates)
        row["tokens/CPU-s"] = ranged([rate for run in runs for rate in run["cpu_rates"]])
        row["tokens/s, times GPT-NeoX"] = f"{median(rates) / theirs_rate:.2f}"
        row["predicted by FLOPs"] = f"{results[-1][0]['flops'] / runs[0]['flops']:.2f}"
        row["peak memory, GB"] = median([run["peak_bytes"] for run in runs]) / 1e9
        rows.append(row)
    title = f"A vocabulary of {base.vocab_size:,}, the same layers"
    report(title, rows, options.json, batch=f"{sequences} x {length}", processes=rounds, threads=threads)


def measure_steps(
    size: ModelConfig | NeoxSizes, sequences: int, length: int, steps: int, threads: int
) -> dict[str, Any]:
    """Rates and peak memory of a process that only trains this model."""
    with join_world(ComputeSettings(threads=threads)) as world:
        make = ours if isinstance(size, ModelConfig) else theirs
        contender = make(size, length, OptimizerSettings(), world)  # type: ignore[arg-type]
        batch = random_batch(size.vocab_size, sequences, length)
        runs = [spent(lambda: contender.step([lambda: batch], 1e-4)) for _ in range(steps + 2)][2:]
    return {
        "model": contender.name,
        "shape": contender.shape,
        "parameters": contender.parameters,
        "flops": contender.flops_per_token,
        "rates": [sequences * length / run.wall for run in runs],
        "cpu_rates": [sequences * length / run.cpu for run in runs],
        "peak_bytes": peak_bytes(),
    }


def peak_bytes() -> int:
    """The most memory this process has had resident (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0])


def profile(options: argparse.Namespace) -> None:
    """Self CPU time by operation over a few steps of ours, one thread."""
    length, sequences = (128, 2) if options.quick else (512, 2)
    with join_world(ComputeSettings(threads=1)) as world:
        for name in ["25m"] if options.quick else SIZES:
            contender = ours(SIZES[name], length, OptimizerSettings(), world)
            batch = random_batch(SIZES[name].vocab_size, sequences, length)
            contender.step([lambda b=batch: b], 1e-4)  # type: ignore[misc]
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
                for _ in range(3):
                    contender.step([lambda b=batch: b], 1e-4)  # type: ignore[misc]
            events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
            total = sum(event.self_cpu_time_total for event in events)
            rows = [
                {
                    "operation": event.key,
                    "calls a step": event.count // 3,
                    "ms a step": round(event.self_cpu_time_total / 3e3, 1),
                    "share": f"{event.self_cpu_time_total / total:.1%}",
                }
                for event in events[:25]
            ]
            report(f"Where a step of {name} goes, one thread", rows, options.json, batch=f"{sequences} x {length}")


def quick_corpus(folder: Path) -> Path:
    """Token folders of this repository's own source files, to see that all of it runs."""
    from yalm.tokens.build import build_shards

    sources = [path.read_text() for path in sorted((ROOT / "src").rglob("*.py"))]
    for number, name in enumerate(("ru/train", "en/train", "ru/validation", "en/validation")):
        texts = folder / f"{number}.jsonl"
        texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in sources[number::4]))
        build_shards([texts], ROOT / "tests" / "golden" / "yalm-tiny" / "vocab.sp", folder / name, language=name[:2])
    return folder


def corpus_overrides(options: argparse.Namespace) -> list[str]:
    """The token folders of --corpus in place of the config's; a short run on small batches for --quick."""
    if options.corpus is None:
        return []

    def parts(split: str) -> str:
        weighed = [
            (name, options.corpus.resolve() / code / split) for name, code in (("russian", "ru"), ("english", "en"))
        ]
        return "[" + ", ".join(f'{{ name = "{name}", path = "{path}", weight = 1 }}' for name, path in weighed) + "]"

    overrides = [f"data.parts={parts('train')}", f"data.validation={parts('validation')}"]
    if options.quick:
        overrides += ["model.preset=demo", "data.sequence_length=64", "schedule.tokens=10000", "validation.sequences=8"]
    return overrides


def main() -> None:
    benchmarks = {"quality": quality, "speed": speed, "vocab128k": vocab128k, "profile": profile}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help="quality, speed, vocab128k, profile")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every table to FILE, a JSON object a line")
    parser.add_argument("--threads", type=int, default=0, help="of quality and vocab128k; PyTorch's choice by default")
    parser.add_argument("--repetitions", type=int, default=10, help="of speed")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "25m.toml", help="of quality")
    parser.add_argument("--set", nargs="*", default=[], metavar="SECTION.KEY=VALUE", help="override the config")
    parser.add_argument(
        "--corpus", type=Path, help="a folder of bench/prepare.py, in place of the config's token folders"
    )
    parser.add_argument("--minutes", type=float, help="of quality, for each model; sets schedule.tokens")
    parser.add_argument("--slice", type=int, default=25, help="steps of a turn")
    parser.add_argument("--validate-every", type=int, default=200, help="steps")
    parser.add_argument("--neox-lr", type=float, help="another learning rate for GPT-NeoX")
    options = parser.parse_args()
    if unknown := set(options.benchmarks) - set(benchmarks):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(benchmarks)}")
    for name, run in benchmarks.items():
        if name in (options.benchmarks or ["quality", "speed", "vocab128k"]):
            run(options)


if __name__ == "__main__":
    main()
