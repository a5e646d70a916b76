"""DeepSpeed as the engine: the same losses, the same checkpoints, to and fro between engines."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from ranks import run_ranks
from saving import error_of_training, train_rank, train_rank_until
from support import MakeSettings, losses, weights
from yalm.model.verify import verify
from yalm.training.deepspeed import has_async_io
from yalm.training.loop import train

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DEEPSPEED = "compute.engine=deepspeed"
# DeepSpeed compiles parts of itself at their first use: minutes, on a machine with other work many.
run_ranks = partial(run_ranks, seconds=1100)
# Sizes that two ranks do not divide.
ODD = ("model.embedding_size=15", "model.intermediate_size=49")
# Fifty steps of eight sequences; two ranks accumulate over two micro-batches.
FIFTY = (
    *ODD,
    "schedule.tokens=9600",
    "validation.every_steps=25",
    "checkpoint.every_steps=1000",
    "batch.micro_sequences=2",
)


@pytest.mark.parametrize(
    "how",
    [
        ("compute.zero=1", "compute.recompute=selective"),
        ("compute.zero=2", "compute.offload=true"),
        ("compute.zero=3",),
        ("compute.zero=3", "compute.recompute=full", "compute.offload=true", "compute.prefetch=0"),
    ],
    ids=lambda how: " ".join(how),
)
def test_fifty_steps_are_those_of_one_process(make_settings: MakeSettings, how: tuple[str, ...]) -> None:
    alone = make_settings(*FIFTY, output="alone")
    train(alone)
    divided = make_settings(*FIFTY, *how, DEEPSPEED, output="divided")
    run_ranks(2, train_rank, divided)
    assert len(losses(alone)) == 50
    assert losses(divided) == pytest.approx(losses(alone), rel=1e-4)


# Each goes on from the checkpoint of the one before: an engine, a number of ranks, and how.
RELAY = [
    ("native", 1),
    ("deepspeed", 2, "compute.zero=3"),
    ("deepspeed", 1, "compute.zero=2"),
    ("deepspeed", 2, "compute.zero=1", "compute.offload=true"),
    ("deepspeed", 2, "compute.zero=1"),
    ("native", 2),
    ("deepspeed", 2, "compute.zero=3", "compute.offload=true"),
    ("native", 1),
]


def test_a_run_goes_from_engine_to_engine(make_settings: MakeSettings) -> None:
    overrides = (*ODD, "schedule.tokens=3072", "batch.micro_sequences=2", "checkpoint.every_steps=2")
    whole = make_settings(*overrides, output="whole")
    expected = train(whole)
    assert len(losses(whole)) == 16
    for leg, (engine, ranks, *how) in enumerate(RELAY, start=1):
        settings = make_settings(*overrides, *how, f"compute.engine={engine}", output="relay")
        run_ranks(ranks, train_rank_until, settings, 2 * leg)
        assert len(losses(settings)) == 2 * leg
    assert losses(settings) == pytest.approx(losses(whole), rel=1e-4)
    saved, wanted = weights(settings.output / "checkpoints" / expected.checkpoint.name), weights(expected.checkpoint)
    assert all(torch.allclose(saved[name], wanted[name], rtol=0, atol=1e-3) for name in wanted)
    assert verify(settings.output / "checkpoints" / expected.checkpoint.name)["checksums"]


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_the_native_one(make_settings: MakeSettings, precision: str, zero: int) -> None:
    if precision == "fp16" and not torch.ops.mkldnn._is_mkldnn_fp16_supported():
        pytest.skip("DeepSpeed computes in fp16 only where the CPU has instructions for it")
    overrides = (*ODD, "schedule.tokens=3840", f"compute.precision={precision}", f"compute.zero={zero}")
    native, divided = make_settings(*overrides, output="native"), make_settings(*overrides, DEEPSPEED, output="divided")
    for settings in (native, divided):
        run_ranks(2, train_rank, settings)
    assert len(losses(native)) == 20
    assert losses(divided) == pytest.approx(losses(native), rel=3e-3)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_masters_are_not_rounded(make_settings: MakeSettings, zero: int) -> None:
    """A step that changes nothing leaves what was drawn in fp32, of which bf16 has three digits."""
    overrides = (*ODD, "schedule.tokens=192", "schedule.warmup_tokens=0", "optimizer.lr=1e-12", f"compute.zero={zero}")
    drawn = train(make_settings(*overrides, output="alone")).checkpoint
    half = make_settings(*overrides, "compute.precision=bf16", DEEPSPEED, output="half")
    run_ranks(2, train_rank, half)
    saved = weights(half.output / "checkpoints" / drawn.name)
    assert all(torch.allclose(saved[name], tensor, rtol=0, atol=1e-9) for name, tensor in weights(drawn).items())


def test_one_command_under_torchrun(make_settings: MakeSettings, tmp_path: Path) -> None:
    """The engine is one setting away, also for one process without torchrun."""
    settings = make_settings(*ODD, output="run")
    config = tmp_path / "run.toml"
    config.write_text(settings.to_toml())
    alone = [sys.executable, "-m", "yalm", "train", str(config), DEEPSPEED]
    launched = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *alone[1:]]
    for command in (alone, [*launched, "schedule.tokens=4608", "--fresh"]):
        subprocess.run(command, check=True, timeout=300)
        assert losses(settings)[-1] < losses(settings)[0]
    (model,) = (settings.output / "checkpoints").glob("step-00000024")
    generate = [sys.executable, "-m", "yalm", "generate", str(model), "--prompt", "Повар", "--max-tokens", "4"]
    assert subprocess.run(generate, check=True, timeout=120, capture_output=True, text=True).stdout.strip()


def test_the_optimizer_lives_in_files(make_settings: MakeSettings, tmp_path: Path) -> None:
    """Also from checkpoint to checkpoint. DeepSpeed leaves what is below a megabyte in memory: hence the width."""
    wide = ("model.hidden_size=256", "model.intermediate_size=640", "schedule.tokens=1536", "checkpoint.every_steps=4")
    alone = make_settings(*wide, output="alone")
    train(alone)
    how = ("compute.zero=3", "compute.offload=true", f"compute.offload_folder={tmp_path / 'files'}", DEEPSPEED)
    swapped = make_settings(*wide, *how, output="swapped")
    if not has_async_io():
        (told,) = run_ranks(1, error_of_training, [swapped])
        assert told.startswith("compute.offload_folder: DeepSpeed reads and writes files by libaio")
        pytest.skip("DeepSpeed cannot compile with libaio here")
    run_ranks(2, train_rank_until, swapped, 5)
    written = [file.stat().st_size for file in (tmp_path / "files").rglob("*.swp")]
    run_ranks(2, train_rank, swapped)
    assert len(losses(swapped)) == 8
    assert losses(swapped) == pytest.approx(losses(alone), rel=1e-4)
    parameters = sum(tensor.numel() for tensor in weights(swapped.output / "checkpoints" / "step-00000008").values())
    assert sum(written) > 0.9 * 12 * parameters  # fp32 weights and two moments, less the vectors


def test_a_second_run_in_a_process_is_one_line(make_settings: MakeSettings) -> None:
    runs = [make_settings(DEEPSPEED, output=name) for name in ("first", "second")]
    (told,) = run_ranks(1, error_of_training, runs)
    assert told.endswith("one run a process is all it can; start another process")
    assert len(losses(runs[0])) == 12


@pytest.mark.skipif(torch.ops.mkldnn._is_mkldnn_fp16_supported(), reason="this CPU has fp16")
def test_fp16_without_instructions_is_one_line(make_settings: MakeSettings) -> None:
    (told,) = run_ranks(1, error_of_training, [make_settings(DEEPSPEED, "compute.precision=fp16")])
    assert told.startswith("compute.engine deepspeed: no fp16 on this device; take another compute.precision")
