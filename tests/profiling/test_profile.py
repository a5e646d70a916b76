"""The command: a run is left alone, the files are whole, memory and rooflines are those of the formulas."""

import gzip
import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from yalm.cli import app
from yalm.errors import YalmError
from yalm.model.costs import parameters, saved_bytes
from yalm.model.ops.native import library
from yalm.profiling import roofline
from yalm.profiling.classify import Operation
from yalm.profiling.memory import memory_use
from yalm.profiling.profile import look_at, profile
from yalm.profiling.record import Recorder, Recording
from yalm.profiling.report import memory_areas, page
from yalm.profiling.roofline import Machine, flops_and_bytes, large_operations
from yalm.training.loop import train
from yalm.training.metrics import PHASES
from yalm.training.settings import TrainSettings

MakeRun = Callable[..., TrainSettings]


def contents(folder: Path) -> dict[str, str]:
    """Checksums of all files but the profile's."""
    files = [file for file in folder.rglob("*") if file.is_file() and "profile" not in file.relative_to(folder).parts]
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_command_leaves_a_run_alone_and_its_files_are_whole(make_run: MakeRun, tmp_path: Path) -> None:
    settings = make_run()
    train(settings)
    before = contents(settings.output)
    config = tmp_path / "run.toml"
    config.write_text(settings.to_toml())
    for more in (["--json"], ["model.num_layers=1"]):  # Neither the run nor the first profile is in the way.
        result = CliRunner().invoke(app, ["profile", str(config), "--steps", "1", *more])
        assert result.exit_code == 0, result.output
        if more == ["--json"]:
            facts = json.loads(result.stdout)
    assert contents(settings.output) == before
    assert facts["config"]["num_layers"] == 2
    assert tuple(facts["phases"])[:4] == PHASES
    assert facts["tokens_per_second"] == pytest.approx(settings.tokens_per_step / facts["step_seconds"])
    for title in ("Time by phase", "Time by kind", "Time by module", "Memory", "Large operations", "What to do"):
        assert title in result.stdout
    folder = settings.output / "profile"
    assert sorted(file.name for file in folder.iterdir() if not file.name.startswith(".")) == [
        "metrics.jsonl",
        "profile.html",
        "settings.toml",
        "trace.json.gz",
    ]
    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {f"phase {phase}" for phase in PHASES} <= names
    assert "module model.layers.0.mlp.up_proj" in names
    assert "What to do" in (folder / "profile.html").read_text()


def test_a_run_without_steps_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(YalmError, match="--steps 0: must be at least 1"):
        profile(make_run(), steps=0)


def test_a_profile_that_a_signal_ends_says_so(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recorder, "step", lambda self: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(YalmError, match="stopped before all steps were recorded; run yalm profile again"):
        profile(make_run(), steps=1)


class Page(HTMLParser):
    """Checks that every element is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "polygon"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_names_stay_text_in_the_page(make_run: MakeRun) -> None:
    facts = profile(make_run(), steps=1)
    assert facts is not None
    facts["run"] = "<script>run</script>"
    written = page(facts)
    Page(written)
    assert "<script>" not in written
    assert written.count("<polygon") == len(facts["memory_kinds"])
    for advice in facts["advice"]:
        assert advice["rule"] in written


def test_memory_is_that_of_the_formulas(recorded: Callable[..., Recording]) -> None:
    sizes = ("model.hidden_size=64", "model.intermediate_size=160", "model.num_layers=4")
    recording = recorded(*sizes, "batch.micro_sequences=8")
    memory = look_at(recording)[1]["phases"]
    config, total = recording.config, 4 * parameters(recording.config)["total"]
    assert {kinds["parameters"] for kinds in memory.values()} == {total}
    assert all(kinds["optimizer"] == pytest.approx(2 * total, rel=0.01) for kinds in memory.values())
    # The first gradients are complete after the forward pass, all of them before the optimizer's step.
    assert memory["forward"]["gradients"] == 0
    assert memory["step"]["gradients"] == total
    saved = saved_bytes(config, 8, 24, native_attention=library("attention") is not None)
    kept = config.num_layers * saved["layer"] + saved["rest"]
    logits = 2 * 4 * 8 * 24 * config.vocab_size
    assert 0.97 * kept < memory["forward"]["activations"] < 1.03 * (kept + logits)
    assert memory["step"]["activations"] < 0.02 * kept


def test_gradients_of_shards_are_there_after_the_first_backward_pass(recorded: Callable[..., Recording]) -> None:
    recording = recorded("compute.precision=bf16")
    memory = look_at(recording)[1]["phases"]
    total = 4 * parameters(recording.config)["total"]
    assert memory["step"]["gradients"] == memory["forward"]["gradients"] == total  # of the second micro-batch
    assert recording.state_bytes["gradients"] == total


def test_an_empty_trace_has_no_memory() -> None:
    nothing = memory_use([], [], {"parameters": 1, "gradients": 1, "optimizer": 2})
    assert nothing == {"phases": {}, "series": []}
    assert memory_areas([]) == []


OP = Operation("aten::mm", "matmul", "forward", "m", False, False, 1e-3, ((8, 32), (32, 16)), ("float", "float"))
ATTENTION = ((2, 4, 10, 8),) * 3
SHAPES: list[tuple[str, str, Any, Any, float, float]] = [
    ("aten::mm", "matmul", ((8, 32), (32, 16)), ("float",) * 2, 2 * 8 * 32 * 16, 4 * (8 * 32 + 32 * 16 + 8 * 16)),
    ("aten::addmm", "matmul", ((16,), (8, 32), (32, 16)), ("c10::BFloat16",) * 3, 8192, 2 * (256 + 512 + 128)),
    ("aten::bmm", "matmul", ((3, 8, 32), (3, 32, 16)), ("float",) * 2, 3 * 8192, 4 * 3 * (256 + 512 + 128)),
    ("mkldnn::_linear_pointwise", "matmul", ((8, 32), (16, 32), (16,)), ("float",) * 3, 8192, 4 * (256 + 512 + 128)),
    ("aten::addmm", "matmul", ((8, 16), (8, 32), (32, 16), (8, 16)), ("float",) * 4, 8192, 4 * (256 + 512 + 128)),
    ("aten::_flash_attention", "attention", ATTENTION, ("float",) * 3, 4 * 2 * 4 * 8 * 55, 4 * 4 * 640),
    ("aten::_flash_attention_backward", "attention", ATTENTION, ("float",) * 3, 10 * 2 * 4 * 8 * 55, 8 * 4 * 640),
    ("yalm::rotary_attention", "attention", ((2, 10, 4, 3, 8),), ("float",), 4 * 2 * 4 * 8 * 55, 4 * 4 * 640),
    ("aten::add", "element-wise", ((8, 32), (32,), ()), ("float", "float", "Scalar"), 0, 4 * (256 + 32 + 256)),
    ("aten::empty", "element-wise", ((), ()), ("ScalarList", ""), 0, 0),
]


@pytest.mark.parametrize(("name", "kind", "shapes", "dtypes", "flops", "size"), SHAPES)
def test_flops_and_bytes(name: str, kind: str, shapes: Any, dtypes: Any, flops: float, size: float) -> None:
    op = replace(OP, name=name, kind=kind, shapes=shapes, dtypes=dtypes)
    assert flops_and_bytes(op) == (flops, size)


def test_rooflines_are_of_the_nearer_peak(recorded: Callable[..., Recording], monkeypatch: pytest.MonkeyPatch) -> None:
    timeline = look_at(recorded())[0].timeline
    monkeypatch.setattr(roofline, "LARGE", 0)
    slow = {row["name"]: row for row in large_operations(timeline, Machine(1.0, 1e30))}
    assert {row["bound"] for row in slow.values() if row["kind"] == "matmul"} == {"compute"}
    for row in large_operations(timeline, Machine(1e30, 1.0)):
        assert row["bound"] == "memory"
        assert row["roof"] == pytest.approx(row["bytes_per_second"])
    monkeypatch.setattr(roofline, "LARGE", 0.02)
    large = large_operations(timeline, Machine(1.0, 1.0))
    assert all(row["share"] >= 0.02 for row in large)
    assert [row["seconds"] for row in large] == sorted((row["seconds"] for row in large), reverse=True)
