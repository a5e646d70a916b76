"""The first stage: sources to shards of documents, and to a file of what could not be read.

A task is a run of files of one part, some tens of megabytes together or one large file. It yields shards of
`shard_bytes` of text, in row groups of some megabytes: what later stages hold in memory is one row group. Shards are
numbered by the task and their place in it, so a document's uid depends on nothing that happens at the same time.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from yalm.atomic import atomic_file
from yalm.corpus.document import Document, Reject, to_table
from yalm.corpus.engine import Task
from yalm.corpus.settings import PartSettings, parse_source
from yalm.corpus.tables import Tables
from yalm.errors import YalmError

ROW_GROUP_BYTES = 1 << 20  # rules count fastest in what the processor's cache holds
SHARDS_OF_A_TASK = 1 << 12
TASKS = 1 << 20
REJECTS = ".rejects.jsonl"
_SAMPLES = 1000  # rejects written out for each task
_SAMPLE_CHARACTERS = 500


def read_tasks(parts: Sequence[PartSettings], shard_bytes: int) -> dict[str, Task]:
    """The tasks of all parts, by name. A file is known by its path, size and time of change: another file, other tasks.

    YalmError for a path that does not exist, and for more than a million tasks.
    """
    tasks: dict[str, Task] = {}
    for part in parts:
        for files in _runs(part.source.files(), shard_bytes):
            number = len(tasks)
            tasks[f"{number:05x}"] = {
                "part": part.name,
                "source": part.source.model_dump(mode="json"),
                "files": files,
                "number": number,
                "shard_bytes": shard_bytes,
            }
    if len(tasks) > TASKS:
        raise YalmError(f"{len(tasks):,} tasks are more than {TASKS:,}; raise shard_bytes, or join small files")
    return tasks


def _runs(files: Sequence[Path], shard_bytes: int) -> Iterator[list[list[Any]]]:
    """Consecutive files that together have `shard_bytes` on disk, as [path, size, time of change]."""
    run: list[list[Any]] = []
    size = 0
    for file in files:
        stat = file.stat()
        run.append([str(file), stat.st_size, stat.st_mtime_ns])
        size += stat.st_size
        if size >= shard_bytes:
            yield run
            run, size = [], 0
    if run:
        yield run


def read_shards(task: Task) -> dict[str, Any]:
    """Task: read its files into shards.

    Counts: documents, bytes (of text), rejects, broken (of these), input_bytes (on disk).
    """
    folder, name = Path(task["folder"]), task["name"]
    rejects = _Rejects()
    counts = Counter({"documents": 0, "bytes": 0})
    files = []
    stream = _row_groups(_documents(task, rejects))
    for number in range(SHARDS_OF_A_TASK):
        first = (task["number"] * SHARDS_OF_A_TASK + number) << 32
        shard = folder / f"{first >> 32:08x}.parquet"
        rows, size = _write_shard(shard, stream, task["part"], first, task["shard_bytes"])
        if not rows:
            break
        files.append(shard.name)
        counts.update(documents=rows, bytes=size)
    else:
        raise YalmError(f"{task['files'][0][0]}: more than {SHARDS_OF_A_TASK:,} shards of one task; raise shard_bytes")
    if rejects.samples:
        with atomic_file(folder / f"{name}{REJECTS}") as temporary, open(temporary, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(sample._asdict(), ensure_ascii=True) + "\n" for sample in rejects.samples)
        files.append(f"{name}{REJECTS}")
    counts.update(
        rejects=rejects.reasons.total(), broken=rejects.broken, input_bytes=sum(size for _, size, _ in task["files"])
    )
    return {"files": files, "counts": dict(counts), "facts": {"part": task["part"], "reasons": dict(rejects.reasons)}}


class _Rejects:
    """How many records were of no use, for which reasons, and the first of them."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.broken = 0
        self.samples: list[Reject] = []

    def add(self, reject: Reject) -> None:
        self.reasons[reject.reason] += 1
        self.broken += reject.broken
        if len(self.samples) < _SAMPLES:
            self.samples.append(reject._replace(sample=reject.sample[:_SAMPLE_CHARACTERS]))


def _documents(task: Task, rejects: _Rejects) -> Iterator[Document]:
    """The documents of all files of a task."""
    source = parse_source(task["source"])
    for path, _, _ in task["files"]:
        for found in source.read(Path(path), lambda size: None):
            if isinstance(found, Reject):
                rejects.add(found)
            else:
                yield found


def _row_groups(documents: Iterator[Document]) -> Iterator[tuple[list[Document], int]]:
    """Documents in lists of about ROW_GROUP_BYTES, each with the bytes of its texts."""
    rows: list[Document] = []
    size = 0
    for document in documents:
        rows.append(document)
        size += len(document.text.encode("utf-8", "surrogatepass"))
        if size >= ROW_GROUP_BYTES:
            yield rows, size
            rows, size = [], 0
    if rows:
        yield rows, size


def _write_shard(
    path: Path, row_groups: Iterator[tuple[list[Document], int]], part: str, first: int, shard_bytes: int
) -> tuple[int, int]:
    """Write row groups until the shard has `shard_bytes` of text; how many documents and bytes, none if there were."""
    group = next(row_groups, None)
    if group is None:
        return 0, 0
    documents = size = 0
    with Tables(path) as shard:
        while group is not None:
            rows, group_size = group
            shard.write(to_table(rows, part, first + documents))
            documents += len(rows)
            size += group_size
            group = next(row_groups, None) if size < shard_bytes else None
    return documents, size
