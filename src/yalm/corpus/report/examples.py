"""Documents to look at: some of those kept and dropped by each rule, of the largest clusters, and the worst domains.

What is shown is chosen from the small tables, one row group at a time; only then are the texts of the chosen fetched.
Memory does not grow with the corpus, except for eight bytes for each document that fell as a duplicate.
"""

import heapq
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from yalm.corpus.report.finished import Finished
from yalm.corpus.stages.domains import DOMAINS_FILE
from yalm.corpus.stages.duplicates import CLUSTERS
from yalm.corpus.stages.select import MEASURES
from yalm.corpus.tables import row_groups
from yalm.corpus.words import mix

SAMPLES = 4  # documents shown of each rule
LARGEST_CLUSTERS, MEMBERS = 10, 2
WORST_DOMAINS = 30
_MEMBERS_HELD = 1000  # of one cluster, before the list is cut to those that may be shown


def samples(corpus: Finished) -> dict[str, list[dict[str, Any]]]:
    """Documents by the rule they fell by, and "kept": those of the lowest hashed uids."""
    chosen: dict[str, pa.Table] = {}

    def choose(name: str, table: pa.Table) -> None:
        table = pa.concat_tables([chosen[name], table]) if name in chosen else table
        order = np.argsort(mix(table["uid"].to_numpy()))[:SAMPLES]
        chosen[name] = table.take(order)

    for table in corpus.tables("documents", MEASURES, ["uid"]):
        choose("kept", table)
    for table in corpus.dropped():
        for rule in pc.unique(table["rule"]).to_pylist():
            choose(rule, table.filter(pc.equal(table["rule"], rule)).select(["uid", "measure", "value"]))
    texts = corpus.originals(uid for table in chosen.values() for uid in table["uid"].to_pylist())
    return {
        name: [texts[row.pop("uid")]._asdict() | _finite(row) for row in chosen[name].to_pylist()]
        for name in ("kept", *corpus.thresholds)
        if name in chosen and chosen[name].num_rows
    }


def clusters(corpus: Finished) -> dict[str, Any]:
    """How much fell as copies and near copies, and of the largest clusters the members least like their survivor."""
    [file] = corpus.files("duplicates", CLUSTERS)
    survivors = pq.read_table(file, columns=["survivor"])["survivor"].to_numpy()
    uids, sizes = np.unique(survivors, return_counts=True)
    largest = np.lexsort((uids, -sizes))[:LARGEST_CLUSTERS]
    members: dict[int, list[tuple[float, int, str]]] = {int(uid): [] for uid in uids[largest]}
    for table in row_groups(file):
        shown = table.filter(pc.is_in(table["survivor"], value_set=pa.array(list(members), pa.uint64())))
        for row in shown.to_pylist():
            found = members[row["survivor"]]
            found.append((row["similarity"], row["uid"], row["kind"]))
            if len(found) > _MEMBERS_HELD:
                found[:] = heapq.nsmallest(MEMBERS, found)
    members = {uid: heapq.nsmallest(MEMBERS, found) for uid, found in members.items()}
    texts = corpus.originals([*members, *(uid for found in members.values() for _, uid, _ in found)])
    return {
        "clusters": len(uids),
        "documents": dict(sorted(corpus.value_counts("duplicates", CLUSTERS, "kind").items())),
        "largest": [
            {
                "size": int(sizes[place]) + 1,
                "survivor": texts[int(uids[place])]._asdict(),
                "members": [
                    texts[uid]._asdict() | {"similarity": similarity, "kind": kind}
                    for similarity, uid, kind in members[int(uids[place])]
                ],
            }
            for place in largest
        ],
    }


def domains(corpus: Finished) -> dict[str, Any]:
    """How many domains there are and how many fell, and those of them that held the most text."""
    worst: list[dict[str, Any]] = []
    count = fallen = 0
    for table in corpus.tables("domains", DOMAINS_FILE):
        count += table.num_rows
        table = table.filter(table["dropped"]).drop_columns(["dropped"])
        fallen += table.num_rows
        table = table.sort_by([("bytes", "descending"), ("domain", "ascending")]).slice(0, WORST_DOMAINS)
        worst = sorted([*worst, *table.to_pylist()], key=lambda row: (-row["bytes"], row["domain"]))[:WORST_DOMAINS]
    return {"domains": count, "dropped": fallen, "worst": worst}


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """The row with null for what JSON cannot say."""
    return {key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in row.items()}
