"""Stages: done once, never believed when interrupted, never done again for the same input."""

import errno
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.atomic import write_text
from yalm.corpus.engine import Task, TaskFunction, here
from yalm.corpus.stage import MANIFEST, RECORDS, Stage, TaskRecord, total
from yalm.errors import YalmError

calls: list[str] = []


def write_number(task: Task) -> dict[str, Any]:
    """A task of one file."""
    calls.append(task["name"])
    if task.get("fails"):
        raise OSError(task["fails"], "injected")
    name = f"{task['name']}.txt"
    write_text(Path(task["folder"], name), str(task["number"]))
    return {"files": [name], "counts": {"sum": task["number"]}, "facts": {"half": task["number"] / 2}}


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


def tasks(*numbers: int) -> dict[str, Task]:
    return {f"t{i}": {"number": number} for i, number in enumerate(numbers)}


def run(stage: Stage, of: dict[str, Task]) -> list[str]:
    """Names of the tasks that were done, not found."""
    calls.clear()
    stage.run(write_number, of, here)
    return list(calls)


def test_a_stage_is_made_once(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "s", {"a": 1})
    assert run(stage, tasks(1, 2, 3)) == ["t0", "t1", "t2"]
    assert stage.manifest.counts == {"sum": 6}
    assert [file.read_text() for file in stage.files(".txt")] == ["1", "2", "3"]
    assert [task.facts["half"] for task in stage.manifest.tasks] == [0.5, 1, 1.5]
    heard: list[TaskRecord] = []
    calls.clear()
    Stage(tmp_path / "s", {"a": 1}).run(write_number, tasks(1, 2, 3), here, heard.append)
    assert not calls
    assert [record.name for record in heard] == ["t0", "t1", "t2"]


def test_only_a_task_that_changed_is_done_again(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "s", {})
    run(stage, tasks(1, 2, 3))
    assert run(stage, tasks(1, 5, 3, 4)) == ["t1", "t3"]
    assert stage.manifest.counts == {"sum": 13}
    assert run(stage, tasks(1)) == []
    assert sorted(file.name for file in (tmp_path / "s").glob("*.txt")) == ["t0.txt"]


def test_other_settings_make_everything_again(tmp_path: Path) -> None:
    run(Stage(tmp_path / "s", {"a": 1}), tasks(1, 2))
    assert not Stage(tmp_path / "s", {"a": 2}).finished
    assert run(Stage(tmp_path / "s", {"a": 2}), tasks(1, 2)) == ["t0", "t1"]


def test_a_stage_depends_on_what_the_one_before_holds(tmp_path: Path) -> None:
    before = Stage(tmp_path / "before", {})
    run(before, tasks(1))
    run(Stage(tmp_path / "after", {}, {"before": before}), tasks(1))
    assert Stage(tmp_path / "after", {}, {"before": before}).finished
    run(before, tasks(2))
    assert not Stage(tmp_path / "after", {}, {"before": before}).finished


@given(st.data())
def test_damage_to_an_unfinished_stage_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever happens to a recorded file, its task is done again, and no other."""
    folder = tmp_path_factory.mktemp("stage") / "s"
    stage = Stage(folder, {})
    run(stage, tasks(1, 2, 3))
    (folder / MANIFEST).unlink()
    victim = data.draw(st.sampled_from(["t0", "t1", "t2"]))
    harm = data.draw(st.sampled_from(["cut", "changed", "gone", "record cut", "record gone"]))
    target = folder / RECORDS / f"{victim}.json" if "record" in harm else folder / f"{victim}.txt"
    if "gone" in harm:
        target.unlink()
    else:
        content = target.read_bytes()
        target.write_bytes(content[:-1] if "cut" in harm else b"9")
    assert run(stage, tasks(1, 2, 3)) == [victim]
    assert [file.read_text() for file in stage.files(".txt")] == ["1", "2", "3"]


def test_a_task_without_a_record_is_not_believed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "s", {})

    def killed(function: TaskFunction, todo: Sequence[Task]) -> Iterable[dict[str, Any]]:
        yield function(todo[0])
        write_text(tmp_path / "s" / "t1.txt", "half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.run(write_number, tasks(1, 2), killed)
    assert not stage.finished
    with pytest.raises(YalmError, match="not finished"):
        _ = stage.manifest
    assert run(stage, tasks(1, 2)) == ["t1"]
    assert [file.read_text() for file in stage.files(".txt")] == ["1", "2"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EACCES, "cannot write")],
)
def test_a_disk_that_refuses_is_one_line(tmp_path: Path, number: int, words: str) -> None:
    stage = Stage(tmp_path / "s", {})
    with pytest.raises(YalmError, match=words):
        stage.run(write_number, {"t0": {"number": 1}, "t1": {"number": 2, "fails": number}}, here)
    assert run(stage, {"t0": {"number": 1}, "t1": {"number": 2}}) == ["t1"]


def test_a_manifest_of_another_time_is_no_manifest(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "s", {})
    run(stage, tasks(1))
    (tmp_path / "s" / MANIFEST).write_text(json.dumps({"version": 99}))
    assert not stage.finished
    assert run(stage, tasks(1)) == []


@given(st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9))))
def test_counts_add_up(counts: list[dict[str, int]]) -> None:
    sums = total(counts)
    for name in "abc":
        assert sums.get(name, 0) == sum(count.get(name, 0) for count in counts)
