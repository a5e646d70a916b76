"""Checkpoints: the work of many ranks, written while they go on, whole or not at all, continued on any number."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from ranks import run_ranks
from saving import (
    memory_of_saving,
    memory_of_starting,
    train_rank,
    train_until_a_rank_is_killed,
    train_until_the_disk_is_full,
)
from support import GOLDEN, MakeSettings, losses, weights
from yalm.errors import YalmError
from yalm.model.verify import verify
from yalm.training import checkpoint, loop
from yalm.training.loop import train
from yalm.training.settings import TrainSettings

MESH = ["compute.tensor=2", "compute.pipeline=2"]


def back_to(settings: TrainSettings, step: int) -> None:
    """Remove the checkpoints after `step`."""
    for folder in (settings.output / "checkpoints").iterdir():
        if folder.name > f"step-{step:08d}":
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("division", "micro"), [(MESH, 2), pytest.param([], 1, marks=pytest.mark.slow)], ids=["mesh", "sharded"]
)
def test_four_ranks_continue_on_any_mesh(make_settings: MakeSettings, division: list[str], micro: int) -> None:
    overrides = ("batch.sequences=12", f"batch.micro_sequences={micro}", "checkpoint.keep=3")
    four = make_settings(*overrides, *division, output="four")
    run_ranks(4, train_rank, four)
    meshes = ((1, ()), (2, ()), (3, ()), (2, ("compute.tensor=2",)), (4, ("compute.pipeline=2",)))
    for number, (ranks, other) in enumerate(meshes):
        moved = make_settings(*overrides, *other, output=str(number))
        shutil.copytree(four.output, moved.output)
        back_to(moved, step=4)
        run_ranks(ranks, train_rank, moved)
        assert len(losses(moved)) == len(losses(four)) == 8
        assert losses(moved) == pytest.approx(losses(four), rel=1e-5)


def test_no_rank_holds_half_of_the_model(tmp_path: Path) -> None:
    for rise, size in run_ranks(4, memory_of_saving, tmp_path / "saved", GOLDEN / "vocab.sp"):
        assert rise < size / 2
    saved = tmp_path / "saved" / "step-00000001"
    assert verify(saved)["checksums"]
    for found in run_ranks(4, memory_of_starting, saved):
        assert found["held"] < found["whole"] / 3.9
        assert found["read"] == found["held"]
        assert found["drawing"] < found["whole"] / 3
        assert found["reading"] < found["whole"] / 8


def test_steps_go_on_while_it_is_written(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer begins when the weights are two steps further; what it writes is as it was."""
    settings = make_settings("checkpoint.keep=3")
    steps, two_further = [], threading.Event()
    write, learning_rate = checkpoint.write_shard, loop.learning_rate

    def wait_and_write(*arguments: Any) -> str:
        assert two_further.wait(60)
        return write(*arguments)

    def count(*arguments: Any) -> float:
        steps.append(arguments)
        if len(steps) == 7:
            two_further.set()
        return learning_rate(*arguments)

    monkeypatch.setattr(checkpoint, "write_shard", wait_and_write)
    monkeypatch.setattr(loop, "learning_rate", count)
    result = train(settings)
    expected, final = losses(settings), weights(result.checkpoint)
    back_to(settings, step=4)
    assert train(settings).checkpoint == result.checkpoint
    assert losses(settings) == expected
    assert all(tensor.equal(final[name]) for name, tensor in weights(result.checkpoint).items())


@pytest.mark.parametrize("what", ["weights", "state"])
def test_a_full_disk_of_one_rank_stops_all(make_settings: MakeSettings, what: str) -> None:
    settings = make_settings()
    for error in run_ranks(2, train_until_the_disk_is_full, settings, what):
        assert "step-00000008: the checkpoint could not be written (rank" in error
        assert "OSError: [Errno 28] No space left on device); make room" in error
        assert "\n" not in error
    assert len(losses(settings)) == 9
    assert [path.name for path in (settings.output / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_rank_killed_while_it_writes_costs_the_steps_since(make_settings: MakeSettings) -> None:
    whole, killed = make_settings(output="whole"), make_settings(output="killed")
    run_ranks(2, train_rank, whole)
    with pytest.raises((RuntimeError, YalmError)):  # of the one that is killed, or of the one that misses it
        run_ranks(2, train_until_a_rank_is_killed, killed)
    assert [path.name for path in (killed.output / "checkpoints").glob("step-*")] == ["step-00000004"]
    run_ranks(2, train_rank, killed)
    assert losses(killed) == losses(whole)
    names = {path.name for path in (killed.output / "checkpoints").iterdir()}
    assert names == {"step-00000008", "step-00000012"}
