"""The benchmarks run: what they measure is not looked at, but that nothing they call has gone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def bench(*arguments: str) -> str:
    """What `python bench/…` prints, without a GPU."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT / "bench", capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_section_of_the_gpu_bench_runs_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    sections = ("kernels", "speed", "switches", "parallel", "decoding")
    bench("gpu.py", *sections, "--device", "cpu", "--quick", "--minutes", "30", "--json", str(file))
    table = json.loads(file.read_text())
    assert table["settings"]["skipped"] == "nothing"
    results: dict[str, list[str]] = {}
    for row in table["rows"]:
        results.setdefault(row["section"], []).append(row["result"])
    assert set(results) == {"peaks", *sections}
    for section, found in results.items():
        measured = [result for result in found if not result.startswith("none")]
        assert len(measured) >= 2, section
        # What a CPU lacks, and what need not be installed.
        reasons = ("needs a GPU", "is not installed")
        assert all(any(reason in result for reason in reasons) for result in found if result not in measured), found
    assert all(result.startswith(("correct", "none: needs a GPU")) for result in results["kernels"])


def test_without_a_gpu_it_says_so_and_ends_well() -> None:
    assert bench("gpu.py").startswith("no NVIDIA GPU here")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "bench")
    import gpu

    return gpu


def test_a_row_that_fails_leaves_the_others_alone(gpu: Any) -> None:
    with gpu.join_world(gpu.ComputeSettings(device="cpu")) as world:
        made = gpu.Bench(world, gpu.QUICK, seconds=60)

        def fail(error: Exception) -> gpu.Row:
            raise error

        assert made.row("a", "memory", lambda: fail(torch.OutOfMemoryError("2 GB")), 1)["failed"] == "out of memory"
        assert made.row("a", "settings", lambda: fail(gpu.YalmError("mend it")), 1)["failed"] == "mend it"
        assert made.row("a", "late", lambda: fail(AssertionError("done")), 100)["failed"] == "no time"
        assert made.row("a", "good", lambda: {"result": "7"}, 1)["result"] == "7"
    assert [row["result"] for row in gpu.table(made.rows)] == ["none: out of memory", "none: mend it", "7"]
    assert made.skipped == ["a late"]


def test_micro_batches_are_halved_until_they_fit(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fits_one(bench: Any, sizes: Any, compute: Any, length: int, sequences: int) -> dict[str, int]:
        tried.append(sequences)
        if sequences > 1:
            raise torch.OutOfMemoryError
        return {"sequences": sequences}

    monkeypatch.setattr(gpu, "_steps", fits_one)
    with gpu.join_world(gpu.ComputeSettings(device="cpu")) as world:
        made = gpu.Bench(world, gpu.QUICK, seconds=60)
        assert gpu.steps(made, None, None, gpu.QUICK.tokens // 5) == {"sequences": 1}
    assert tried == [5, 2, 1]


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "bench")
    from operations import Case, compare

    right = Case("square", [(5, 7)], lambda x: x * x, lambda x: x**2)
    wrong_value = Case("square", [(5, 7)], lambda x: x * x + 0.1, lambda x: x**2)
    wrong_gradient = Case("square", [(5, 7)], lambda x: x * x.detach(), lambda x: x**2)
    for dtype in (torch.float32, torch.bfloat16):
        found = [compare(case, dtype, torch.device("cpu"), 1).correct for case in (right, wrong_value, wrong_gradient)]
        assert found == [True, False, False]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("arguments", "needs"),
    [
        (("convert.py",), "torch"),
        (("quantized.py", "kernels"), "torch"),
        (("generate_vs_transformers.py",), "transformers"),
        (("train.py",), "transformers"),
        (("profiler.py",), "jinja2"),
        (("train_vs_transformers.py", "quality", "speed", "vocab128k", "profile"), "transformers"),
    ],
)
def test_the_others_run(arguments: tuple[str, ...], needs: str) -> None:
    pytest.importorskip(needs)
    assert "|" in bench(*arguments, "--quick")


@pytest.mark.slow
@pytest.mark.timeout(900)  # two ranks of one core each, and whatever else the machine does
def test_gathers_on_a_slow_link_run() -> None:
    launched = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        ROOT / "bench" / "parallel.py",
    ]
    done = subprocess.run(launched, check=True, capture_output=True, text=True)
    assert "zero 3, prefetch 1" in done.stdout


def test_attention_bench_has_a_row_for_each_side() -> None:
    table = bench("attention.py", "--quick")
    assert "| PyTorch |" in table
    assert "| ours |" in table
