"""The stages that judge domains: every shard counts its own, Daft adds up, and a table says which fall
(`rules.domains`).
"""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from yalm.atomic import atomic_file
from yalm.corpus.engine import Task
from yalm.corpus.rules import domains as rule
from yalm.corpus.stage import Stage
from yalm.corpus.stages.duplicates import CLUSTERS
from yalm.corpus.tables import row_groups, rows_between
from yalm.corpus.work import Work

DOMAINS_FILE = "domains.parquet"
_COUNTS, _LINES = ".domains.parquet", ".lines.parquet"
_ROWS = 1 << 16  # in a row group: in the order of keys, so that a range of domains is a few of them


def judge_domains(
    work: Work, folder: Path, settings: rule.DomainsSettings, shards: dict[str, Path], clean: Stage, duplicates: Stage
) -> Stage:
    """The stage whose DOMAINS_FILE says of every domain of `shards` what it holds and whether it falls."""
    counted = Stage(folder / "domain-counts", {"shards": sorted(shards)}, {"clean": clean, "duplicates": duplicates})
    clusters = str(duplicates.folder / CLUSTERS)
    tasks: dict[str, Task] = {name: {"shard": str(file), "clusters": clusters} for name, file in shards.items()}
    work.do(counted, count_shard, tasks, quiet=True)
    final = Stage(folder / "domains", {"settings": settings.model_dump(mode="json")}, {"counted": counted})
    task = {
        "settings": final.settings["settings"],
        "domains": _names(counted, _COUNTS),
        "lines": _names(counted, _LINES),
    }
    return work.do(final, judge, {"domains": task}, spread=False)


def _names(stage: Stage, suffix: str) -> list[str]:
    return [str(file) for file in stage.files(suffix)]


def count_shard(task: Task) -> dict[str, Any]:
    """Task: what a shard knows of its domains."""
    files = [f"{task['name']}{suffix}" for suffix in (_COUNTS, _LINES)]
    counts = rule.add_counts(
        [
            rule.count_domains(table, rows_between(task["clusters"], table["uid"], ["uid"]))
            for table in row_groups(Path(task["shard"]))
        ]
    )
    for name, table in zip(files, counts, strict=True):
        with atomic_file(Path(task["folder"], name)) as temporary:
            pq.write_table(table, temporary, compression="zstd", row_group_size=_ROWS)
    return {"files": files, "counts": {}}


def judge(task: Task) -> dict[str, Any]:
    """Task, a plan: all domains and what becomes of them."""
    settings = rule.DomainsSettings.parse(task["settings"], "domains")
    counts, lines = ([Path(name) for name in task[kind]] for kind in ("domains", "lines"))
    table = rule.judge_domains(counts, lines, settings) if counts else rule.DOMAINS.empty_table()
    with atomic_file(Path(task["folder"], DOMAINS_FILE)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    return {
        "files": [DOMAINS_FILE],
        "counts": {"domains": len(table), "dropped": pc.sum(table["dropped"]).as_py() or 0},
    }
