"""A stage of the corpus: a folder of results that is made once, shard by shard, and never again for the same input.

What a stage makes depends on its settings and on the stages before it; the hash of both is its key. Every task leaves
its files, each by atomic rename, and then a record with the key, the counts and the checksum of each file. The
manifest, which repeats all records, is written last. So after a kill -9 at any moment a task is either recorded, and
its files are compared with their checksums and kept, or not, and done again; and a stage with a manifest of its key
is not even looked through. Other settings make another key, and what was there gives way.
"""

import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from yalm.atomic import remove_leftovers, write_text
from yalm.config import Settings
from yalm.corpus.engine import Task, TaskFunction
from yalm.errors import YalmError

MANIFEST = "manifest.json"
RECORDS = "records"
Apply = Callable[[TaskFunction, Sequence[Task]], Iterable[dict[str, Any]]]


class FileRecord(Settings):
    """A file of a stage: its path below the stage's folder, its size in bytes, its SHA-256 (hex)."""

    name: str
    size: int
    sha256: str


class TaskRecord(Settings):
    """A finished task. `counts` adds up over tasks; `facts` is what else it wants later stages to know."""

    name: str
    key: str
    files: tuple[FileRecord, ...]
    counts: dict[str, int]
    facts: dict[str, Any] = Field(default_factory=dict)


class Manifest(Settings):
    """A finished stage."""

    version: Literal[1] = 1
    stage: str
    key: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int]
    tasks: tuple[TaskRecord, ...]


class Stage:
    """The folder of one stage. `settings` is all that decides its results besides `inputs`, the stages it reads."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], inputs: "Mapping[str, Stage] | None" = None) -> None:
        self.folder, self.name = folder, folder.name
        self.settings = dict(settings)
        self.inputs = {name: stage.digest for name, stage in (inputs or {}).items()}
        self.key = digest([self.name, self.settings, self.inputs])

    @property
    def finished(self) -> bool:
        """Whether the stage has been made, from these inputs with these settings, and its files are there."""
        manifest = self._manifest()
        return manifest is not None and self._whole(manifest)

    @property
    def manifest(self) -> Manifest:
        """The manifest of the finished stage."""
        manifest = self._manifest()
        if manifest is None:
            raise YalmError(f"{self.folder}: this stage is not finished; run `yalm corpus build` again")
        return manifest

    @property
    def digest(self) -> str:
        """A hash of what the finished stage holds."""
        return digest([[file.name, file.sha256] for task in self.manifest.tasks for file in task.files])

    def files(self, suffix: str) -> list[Path]:
        """The files of the finished stage whose names end with `suffix`, in the order of its tasks."""
        names = [file.name for task in self.manifest.tasks for file in task.files]
        return [self.folder / name for name in names if name.endswith(suffix)]

    def run(
        self,
        function: TaskFunction,
        tasks: Mapping[str, Task],
        apply: Apply,
        advance: Callable[[TaskRecord], None] = lambda record: None,
    ) -> Manifest:
        """Do the tasks that are not done, and write the manifest. `advance` hears every record, old ones too.

        `apply` does the work: `Engine.map`, or `engine.here` in this process.

        `function` gets the task with "folder" (where to write) and "name" (how its files' names begin) added, and
        returns {"files": names, "counts": numbers, "facts": anything}. YalmError if the disk is full.
        """
        keys = {name: digest([self.key, name, task]) for name, task in tasks.items()}
        manifest = self._manifest()
        if manifest is not None and {task.name: task.key for task in manifest.tasks} == keys and self._whole(manifest):
            for record in manifest.tasks:
                advance(record)
            return manifest
        with _disk(self.folder):
            (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
            (self.folder / MANIFEST).unlink(missing_ok=True)
            remove_leftovers(self.folder)
            remove_leftovers(self.folder / RECORDS)
        done: dict[str, TaskRecord] = {}
        todo = []
        for name, task in tasks.items():
            old = self._finished_task(name, keys[name])
            if old is not None:
                done[name] = old
                advance(old)
            else:
                todo.append(
                    {
                        "function": f"{function.__module__}:{function.__qualname__}",
                        "key": keys[name],
                        "task": {**task, "folder": str(self.folder), "name": name},
                    }
                )
        for value in apply(run_task, todo):
            record = TaskRecord.model_validate(value)
            done[record.name] = record
            advance(record)
        records = tuple(done[name] for name in tasks)
        self._drop_others(records)
        manifest = Manifest(
            stage=self.name,
            key=self.key,
            settings=self.settings,
            inputs=self.inputs,
            counts=total(record.counts for record in records),
            tasks=records,
        )
        with _disk(self.folder):
            write_text(self.folder / MANIFEST, manifest.model_dump_json(indent=1))
        return manifest

    def _manifest(self) -> Manifest | None:
        """The manifest, if it is whole and of this key."""
        try:
            manifest = Manifest.model_validate_json((self.folder / MANIFEST).read_bytes())
        except (OSError, ValueError):
            return None
        return manifest if manifest.key == self.key else None

    def _whole(self, manifest: Manifest) -> bool:
        """Whether all files are there, to their sizes."""
        return all(
            (file := self.folder / record.name).is_file() and file.stat().st_size == record.size
            for task in manifest.tasks
            for record in task.files
        )

    def _finished_task(self, name: str, key: str) -> TaskRecord | None:
        """The record of a task, if it is of this key and its files are what it says."""
        try:
            record = TaskRecord.model_validate_json((self.folder / RECORDS / f"{name}.json").read_bytes())
        except (OSError, ValueError):
            return None
        whole = record.key == key and all(_file_record(self.folder, file.name) == file for file in record.files)
        return record if whole else None

    def _drop_others(self, records: tuple[TaskRecord, ...]) -> None:
        """Remove files that no task of this key made."""
        kept = {file.name for record in records for file in record.files}
        kept |= {f"{RECORDS}/{record.name}.json" for record in records}
        for file in self.folder.rglob("*"):
            if file.is_file() and str(file.relative_to(self.folder)) not in kept:
                file.unlink()


def run_task(task: Task) -> dict[str, Any]:
    """Run the function a stage named, hash what it wrote, and leave a record; runs in a worker."""
    import importlib

    module, _, function = task["function"].partition(":")
    inner = task["task"]
    folder = Path(inner["folder"])
    with _disk(folder):
        result = getattr(importlib.import_module(module), function)(inner)
        files = tuple(file for name in result["files"] if (file := _file_record(folder, name)) is not None)
        record = TaskRecord(
            name=inner["name"], key=task["key"], files=files, counts=result["counts"], facts=result.get("facts", {})
        )
        write_text(folder / RECORDS / f"{record.name}.json", record.model_dump_json(indent=1))
    return record.model_dump(mode="json")


def total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """The sum of counts, name by name."""
    sums: dict[str, int] = {}
    for count in counts:
        for name, value in count.items():
            sums[name] = sums.get(name, 0) + value
    return sums


def _file_record(folder: Path, name: str) -> FileRecord | None:
    """Size and checksum of a file as it stands; None if it is not there."""
    try:
        with open(folder / name, "rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            return FileRecord(name=name, size=stream.tell(), sha256=sha256)
    except OSError:
        return None


def digest(value: Any) -> str:
    """SHA-256 (hex) of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """What a full or forbidden disk raises, as one line. pyarrow's errors are OSErrors too."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise YalmError(f"{folder}: the disk is full; make room, and run the same command again") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise YalmError(f"{folder}: cannot write here ({error.strerror}); choose another output") from None
        raise
