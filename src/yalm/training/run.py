"""A run's folder: its saved settings, its lock, and the wish to stop.

    RUN/settings.toml  metrics.jsonl  tensorboard/  checkpoints/  report.html

Starting a run again continues it; that the settings are the same ones is checked, since a run that changes its data or
its model half-way is neither. What may change is where and how fast it computes, and how often it reports.
"""

import fcntl
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from yalm.atomic import remove_leftovers, write_text
from yalm.config import read_toml
from yalm.errors import YalmError
from yalm.training.metrics import METRICS_FILE
from yalm.training.settings import TrainSettings

SETTINGS_FILE = "settings.toml"
CHECKPOINTS_FOLDER = "checkpoints"
REPORT_FILE = "report.html"
MAY_CHANGE = ("output", "compute", "validation", "checkpoint", "metrics")


@contextmanager
def open_run(settings: TrainSettings, fresh: bool) -> Iterator[Path]:
    """Lock the run's folder, clear it if `fresh`, check or save its settings; yields the folder.

    Raises YalmError if another process trains there or the folder belongs to a run of other settings.
    """
    folder = settings.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise YalmError(f"output = {str(folder)!r}: cannot write there ({error.strerror}); choose another") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise YalmError(
                f"{folder}: another process is training here; wait for it or choose another output"
            ) from None
        if fresh:
            clear_run(folder)
        elif (folder / SETTINGS_FILE).exists():
            _check_same(folder / SETTINGS_FILE, settings)
        remove_leftovers(folder / CHECKPOINTS_FOLDER)
        write_text(folder / SETTINGS_FILE, settings.to_toml())
        yield folder


def clear_run(folder: Path) -> None:
    """Remove what a run wrote, and nothing else."""
    for name in (CHECKPOINTS_FOLDER, "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (SETTINGS_FILE, METRICS_FILE, REPORT_FILE):
        (folder / name).unlink(missing_ok=True)


def _check_same(file: Path, settings: TrainSettings) -> None:
    saved = _flat(TrainSettings.parse(read_toml(file), str(file)).model_dump(mode="json"))
    wanted = _flat(settings.model_dump(mode="json"))
    for key in sorted(saved.keys() | wanted.keys()):
        if key.split(".")[0] not in MAY_CHANGE and saved.get(key) != wanted.get(key):
            raise YalmError(
                f"{file.parent}: this run was started with {key} = {saved.get(key)!r}, now it is {wanted.get(key)!r}; "
                "restore it, choose another output, or start over with --fresh"
            )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in _flat(item, f"{prefix}{name}.").items()}
    if isinstance(value, list):
        return {key: leaf for i, item in enumerate(value) for key, leaf in _flat(item, f"{prefix}{i}.").items()}
    return {prefix[:-1]: value}


class StopSignal:
    """Turns SIGTERM and Ctrl-C into a wish, granted between two steps; a second one stops at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignal":
        self.previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
