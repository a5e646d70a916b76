"""Doing stages: on which engine, and what a person sees of it."""

import time
from collections.abc import Callable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from yalm.corpus.engine import Engine, Task, TaskFunction, here
from yalm.corpus.stage import Stage, TaskRecord


class Work:
    """Does stages on `engine`, under a bar on the error stream if that is a terminal; `tell` hears of each."""

    def __init__(self, engine: Engine, tell: Callable[[str], None]) -> None:
        self.engine, self.tell = engine, tell

    def do(
        self,
        stage: Stage,
        function: TaskFunction,
        tasks: Mapping[str, Task],
        *,
        spread: bool = True,
        quiet: bool = False,
        watch: Callable[[TaskRecord], None] = lambda record: None,
    ) -> Stage:
        """Do a stage, or find it done. `watch` hears the record of every task.

        Without `spread` the tasks are done in this process, one after the other.
        """
        started = time.monotonic()
        console = Console(stderr=True)
        columns = (TextColumn(stage.name), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
        with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task(stage.name, total=len(tasks), rate="")
            size = 0

            def advance(record: TaskRecord) -> None:
                nonlocal size
                size += sum(file.size for file in record.files)
                rate = f"{size / max(time.monotonic() - started, 1e-9) / 1e6:,.1f} MB/s written"
                progress.update(bar, advance=1, rate=rate)
                watch(record)

            manifest = stage.run(function, tasks, self.engine.map if spread else here, advance)
        if not quiet:
            self.tell(f"{stage.name}: {_counts(manifest.counts)} ({time.monotonic() - started:.1f} s)")
        return stage


def _counts(counts: Mapping[str, int]) -> str:
    """The counts that are not of single rules."""
    return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if "." not in name)
