"""Where the work is done: tasks handed out by Daft, on this machine or on a Ray cluster.

A task is a pure function of one JSON object, files to files, so that it runs in any process of any machine that sees
the same file system. Daft hands tasks out one by one: its native runner to worker processes here, its Ray runner to
the cluster. Joins and sums over all shards are tasks too, for Daft's own hold their tables in memory. With one worker
on the native runner tasks run in this process, for there is nothing to hand out.
"""

import importlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from yalm.errors import YalmError

Runner = Literal["native", "ray"]
Task = dict[str, Any]
TaskFunction = Callable[[Task], dict[str, Any]]


class Engine:
    """Runs tasks. `workers` is how many tasks run at once; all cores of the machine or cluster if not given.

    `address` is that of a running Ray cluster ("host:6379" or "auto"); without one, Ray is started here. Daft has one
    runner a process: YalmError if another was chosen before, or if Ray is not installed.
    """

    def __init__(self, runner: Runner = "native", address: str | None = None, workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise YalmError(f"workers = {workers}: at least 1 is needed")
        if address is not None and runner != "ray":
            raise YalmError("an address is that of a Ray cluster; add --engine ray, or leave the address out")
        self.runner = runner
        cores = _connect(address) if runner == "ray" else len(os.sched_getaffinity(0))
        self.workers = workers or cores
        self.daft = _daft(runner)

    def map(self, function: TaskFunction, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        """`function` of each task, in any order, as they are done. The function stands at the top of a module of ours.

        A YalmError of a task is raised here; any other exception is too, with its traceback.
        """
        if not tasks:
            return
        if self.runner == "native" and self.workers == 1:
            yield from here(function, tasks)
            return
        daft = self.daft
        name = f"{function.__module__}:{function.__qualname__}"

        class Worker:
            def run(self, tasks: Any) -> list[str]:
                return [_run(name, task) for task in tasks.to_pylist()]

        one_by_one = daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
        Worker.run = one_by_one(Worker.run)  # type: ignore[method-assign]
        processes = True if self.runner == "native" else None  # Ray's are processes of their own
        worker = daft.cls(Worker, max_concurrency=min(self.workers, len(tasks)), use_process=processes)()
        frame = daft.from_pydict({"task": [json.dumps(task) for task in tasks]})
        if self.runner == "ray":
            frame = frame.into_partitions(len(tasks))
        for row in frame.select(worker.run(frame["task"]).alias("result")).iter_rows():
            result = json.loads(row["result"])
            if "error" in result:
                raise YalmError(result["error"])
            yield result["value"]


def here(function: TaskFunction, tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
    """`function` of each task in this process: for what is one task, and not worth handing out."""
    for task in tasks:
        yield function(task)


def _run(name: str, task: str) -> str:
    """One task in a worker; an error that a person can mend comes back as its one line."""
    module, _, function = name.partition(":")
    try:
        return json.dumps({"value": getattr(importlib.import_module(module), function)(json.loads(task))})
    except YalmError as error:
        return json.dumps({"error": str(error)})


def _connect(address: str | None) -> int:
    """Join the Ray cluster, or start one here; how many cores it has."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise YalmError("--engine ray needs Ray; pip install 'openyalm[cluster]'") from None
    try:
        ray.init(address, ignore_reinit_error=True, log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise YalmError(f"{address}: no Ray cluster answers here ({error}); start it with `ray start --head`") from None
    resources: dict[str, float] = ray.cluster_resources()
    return int(resources.get("CPU", 1))


def _daft(runner: Runner) -> Any:
    """The daft package with its runner set; it reports nothing to its makers, and draws no bars of its own."""
    os.environ.update(DAFT_ANALYTICS_ENABLED="0", DO_NOT_TRACK="1", DAFT_RUNNER=runner)
    os.environ.setdefault("DAFT_PROGRESS_BAR", "0")
    try:
        import daft
    except ImportError:
        raise YalmError("the corpus needs the packages of its extra; pip install 'openyalm[corpus]'") from None
    other = daft.get_or_create_runner().name
    if other != runner:
        raise YalmError(f"this process works on Daft's {other} runner already; use another for {runner}")
    return daft
