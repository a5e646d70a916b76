"""The second stage: each shard through the rules on single documents; what is kept, and why the rest fell.

The kept documents carry on the measures they were judged by; of a dropped one the row says the rule, the measure and
its value, and its uid leads back to its text in the first stage.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from yalm.corpus.engine import Task
from yalm.corpus.rules.chain import RulesSettings, judge
from yalm.corpus.tables import Tables, count_dropped, count_rows, row_groups

DROPPED = ".dropped.parquet"
KEPT = ".kept.parquet"


def clean_shard(task: Task) -> dict[str, Any]:
    """Task: judge the documents of the file task["shard"] by task["rules"], but for those named in task["skip"]."""
    rules = RulesSettings.parse(task["rules"], "rules").rules()
    folder, name = Path(task["folder"]), task["name"]
    counts: Counter[str] = Counter()
    with Tables(folder / f"{name}{KEPT}") as kept, Tables(folder / f"{name}{DROPPED}") as dropped:
        for table in row_groups(Path(task["shard"])):
            judged = judge(rules, table, task["skip"])
            kept.write(judged.kept)
            dropped.write(judged.dropped)
            counts.update(count_rows("kept", judged.kept))
            counts.update(count_dropped(judged.dropped))
    return {"files": [f"{name}{KEPT}", f"{name}{DROPPED}"], "counts": dict(counts), "facts": {"part": task["part"]}}
