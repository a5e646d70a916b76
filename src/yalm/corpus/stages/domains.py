"""The stages that judge domains: every shard counts its own, counts are merged until they are few files, and a table
says which domains fall (`rules.domains`). What was merged on the way is removed.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from yalm.atomic import atomic_file
from yalm.corpus.engine import Task
from yalm.corpus.rules import domains as rule
from yalm.corpus.stage import Stage
from yalm.corpus.stages.duplicates import CLUSTERS
from yalm.corpus.sums import joined, sums
from yalm.corpus.tables import Tables, row_groups, rows_between
from yalm.corpus.work import Work

DOMAINS_FILE = "domains.parquet"
_COUNTS, _LINES = ".domains.parquet", ".lines.parquet"
_FAN_IN = 16  # files merged at a time
_ROWS = 1 << 13  # in a row group, which is what merging holds of a file: of lines a quarter of a megabyte
_RUN = 1 << 17  # rows of lines, found in some megabytes of text, that are added up before those of a shard are


def judge_domains(
    work: Work, folder: Path, settings: rule.DomainsSettings, shards: dict[str, Path], clean: Stage, duplicates: Stage
) -> Stage:
    """The stage whose DOMAINS_FILE says of every domain of `shards` what it holds and whether it falls."""
    counted = Stage(folder / "domain-counts", {"shards": sorted(shards)}, {"clean": clean, "duplicates": duplicates})
    clusters = str(duplicates.folder / CLUSTERS)
    tasks: dict[str, Task] = {name: {"shard": str(file), "clusters": clusters} for name, file in shards.items()}
    work.do(counted, count_shard, tasks, quiet=True)
    final = Stage(folder / "domains", {"settings": settings.model_dump(mode="json")}, {"counted": counted})
    if final.finished:
        return final
    last = counted
    while len(groups := _groups(last)) > 1:
        last = Stage(folder / f"domain-counts-{len(groups)}", {}, {"before": last})
        work.do(last, merge_counts, {f"{number:05x}": group for number, group in enumerate(groups)}, quiet=True)
    task = {"settings": final.settings["settings"], **groups[0]}
    work.do(final, judge, {"domains": task}, spread=False)
    for merged in folder.glob("domain-counts-*"):
        shutil.rmtree(merged)
    return final


def _groups(stage: Stage) -> list[Task]:
    """The counts of a stage in groups of files that are merged together; at least one, if of nothing."""
    files = {
        kind: [str(file) for file in stage.files(suffix)] for kind, suffix in (("domains", _COUNTS), ("lines", _LINES))
    }
    begins = range(0, max(1, len(files["lines"])), _FAN_IN)
    return [{kind: names[begin : begin + _FAN_IN] for kind, names in files.items()} for begin in begins]


def count_shard(task: Task) -> dict[str, Any]:
    """Task: what a shard knows of its domains."""
    domains: list[list[pa.Table]] = []

    def lines() -> Iterator[pa.Table]:
        for table in row_groups(Path(task["shard"])):
            counts = rule.count_domains(table, rows_between(task["clusters"], table["uid"], ["uid"]))
            domains.append([counts[0]])
            yield counts[1]

    runs = []
    for run in joined(lines(), _RUN):
        added = sums(run, rule.LINE_COUNTS.names[:2], rule.LINE_COUNTS.names[2:])
        runs.append([added[begin : begin + _ROWS] for begin in range(0, len(added), _ROWS)])
    return _write(task, domains, runs)


def merge_counts(task: Task) -> dict[str, Any]:
    """Task: the counts of some shards as those of one."""
    return _write(task, *([row_groups(Path(name)) for name in task[kind]] for kind in ("domains", "lines")))


def _write(task: Task, domains: Sequence[Iterable[pa.Table]], lines: Sequence[Iterable[pa.Table]]) -> dict[str, Any]:
    """Add up runs of counts into the files of a task."""
    files = [f"{task['name']}{suffix}" for suffix in (_COUNTS, _LINES)]
    for name, runs, schema in zip(files, (domains, lines), (rule.DOMAIN_COUNTS, rule.LINE_COUNTS), strict=True):
        with Tables(Path(task["folder"], name)) as out:
            out.write(schema.empty_table())
            for table in joined(rule.add_up(runs, schema), _ROWS):
                out.write(table)
    return {"files": files, "counts": {}}


def judge(task: Task) -> dict[str, Any]:
    """Task: all domains and what becomes of them."""
    settings = rule.DomainsSettings.parse(task["settings"], "domains")
    counts, lines = ([Path(name) for name in task[kind]] for kind in ("domains", "lines"))
    table = rule.judge_domains(counts, lines, settings)
    with atomic_file(Path(task["folder"], DOMAINS_FILE)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return {
        "files": [DOMAINS_FILE],
        "counts": {"domains": len(table), "dropped": pc.sum(table["dropped"]).as_py() or 0},
    }
