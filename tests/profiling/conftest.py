"""Profiles of small runs, each made once."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from support import settings_values
from yalm.config import apply_override
from yalm.profiling import profile as profiling
from yalm.profiling.advice import Profile
from yalm.profiling.profile import look_at
from yalm.profiling.record import Recording, record
from yalm.tokens.folder import MANIFEST, Manifest, read_record, write_record
from yalm.training.settings import TrainSettings

MakeRun = Callable[..., TrainSettings]


@pytest.fixture(scope="session", autouse=True)
def measured_once() -> Iterator[None]:
    """The machine is the same for all profiles, and its peaks take a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profiling, "measure", cache(profiling.measure))
        yield


@pytest.fixture(scope="session")
def make_run(token_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Settings of the tiny run with overrides; `vocabulary` is the size that its token folders say to have."""

    def make(*overrides: str, vocabulary: int | None = None) -> TrainSettings:
        root = tmp_path_factory.mktemp("run")
        values = settings_values(token_folders, root / "run")
        for override in overrides:
            apply_override(values, override)
        if vocabulary is not None:
            for part in values["data"]["parts"]:
                part["path"] = str(pretend(Path(part["path"]), root / part["name"], vocabulary))
        return TrainSettings.parse(values, "test")

    return make


def pretend(folder: Path, copy: Path, vocabulary: int) -> Path:
    """A folder of the same tokens whose manifest tells of a larger vocabulary."""
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file)
    (copy / MANIFEST).unlink()
    manifest = read_record(folder / MANIFEST, Manifest)
    write_record(copy / MANIFEST, manifest.model_copy(update={"vocab_size": vocabulary}))
    return copy


@pytest.fixture(scope="session")
def recorded(make_run: MakeRun) -> Callable[..., Recording]:
    """The recording of two steps of such a run; the same one for the same arguments."""
    known: dict[object, Recording] = {}

    def get(*overrides: str, vocabulary: int | None = None) -> Recording:
        if (overrides, vocabulary) not in known:
            recording = record(make_run(*overrides, vocabulary=vocabulary), steps=2)
            assert recording is not None
            known[overrides, vocabulary] = recording
        return known[overrides, vocabulary]

    return get


@pytest.fixture(scope="session")
def profiled(recorded: Callable[..., Recording]) -> Callable[..., Profile]:
    """The profile of two steps of such a run."""

    def get(*overrides: str, vocabulary: int | None = None) -> Profile:
        return look_at(recorded(*overrides, vocabulary=vocabulary))[0]

    return get
