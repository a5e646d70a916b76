"""Everything the report of a corpus says, as one JSON object.

Counts come from the manifests; what needs single documents comes from the small tables beside the texts, one row group
at a time, so that the report of a large corpus takes no more memory than that of a small one. Nothing depends on the
clock: the same corpus has the same facts.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from yalm.corpus.mixture import MIXTURE
from yalm.corpus.report.distributions import distributions
from yalm.corpus.report.examples import clusters, domains, samples
from yalm.corpus.report.finished import Finished
from yalm.corpus.stages.clean import KEPT
from yalm.corpus.stages.read import REJECTS
from yalm.corpus.stages.select import MEASURES

REASONS, REJECT_SAMPLES = 50, 2


def corpus_facts(output: Path) -> dict[str, Any]:
    """The facts of the corpus at `output`; YalmError if it is none, or not finished.

    name, settings    the folder, and the settings as TOML
    parts             composition: what each part read and kept, and its share of the mixture by weight
    waterfall         steps in order, of name, documents, bytes (what is left), dropped_documents, dropped_bytes and
                      the same four by part; bytes are of text in UTF-8. "mended" is what rules cut from texts or added
    rejected          records that are no documents, by part and reason, with samples
    dropped           documents by rule and measure, with the range of its values
    thresholds        settings by rule
    languages         documents by language, as read (by the source's word), clean and kept
    distributions     see `distributions`
    clusters          number of clusters and of what fell in them, and the largest, with texts
    domains           number of domains, and those dropped with most text
    samples           by rule, and of what was kept: documents with the beginnings of their texts as they were read
    mixture           tokens by part, null if none were made
    """
    corpus = Finished(output)
    return {
        "name": corpus.output.resolve().name,
        "settings": corpus.settings.to_toml(),
        "parts": parts(corpus),
        "waterfall": waterfall(corpus),
        "rejected": rejected(corpus),
        "dropped": dropped(corpus),
        "thresholds": corpus.thresholds,
        "languages": languages(corpus),
        "distributions": distributions(corpus),
        "clusters": clusters(corpus),
        "domains": domains(corpus),
        "samples": samples(corpus),
        "mixture": mixture(corpus),
    }


def parts(corpus: Finished) -> list[dict[str, Any]]:
    """The parts in the order of the settings."""
    read, kept = _counts(corpus, "read"), _counts(corpus, "documents")
    weights = sum(part.weight for part in corpus.settings.parts)
    return [
        {
            "name": part.name,
            "kind": part.source.kind,
            "language": part.language,
            "weight_percent": 100 * part.weight / weights,
            "max_epochs": part.max_epochs,
            "skip": list(part.skip),
            "input_bytes": read[part.name]["input_bytes"],
            "read_documents": read[part.name]["documents"],
            "read_bytes": read[part.name]["bytes"],
            "kept_documents": kept[part.name]["kept"],
            "kept_bytes": kept[part.name]["kept_bytes"],
        }
        for part in corpus.settings.parts
    ]


def waterfall(corpus: Finished) -> list[dict[str, Any]]:
    """What is left of documents and bytes after each step, and what fell there; in total and by part."""
    names = [part.name for part in corpus.settings.parts]
    read, clean, documents = (_counts(corpus, stage) for stage in ("read", "clean", "documents"))
    left = {name: (read[name]["documents"], read[name]["bytes"]) for name in names}
    steps = [_step("read", left, left)]

    def fall(step: str, fallen: dict[str, tuple[int, int]]) -> None:
        nonlocal left
        before = left
        left = {name: (before[name][0] - fallen[name][0], before[name][1] - fallen[name][1]) for name in names}
        steps.append(_step(step, before, left))

    mended = {}
    for name in names:
        size = sum(
            count for key, count in clean[name].items() if key.startswith("dropped_bytes.") or key == "kept_bytes"
        )
        mended[name] = (0, read[name]["bytes"] - size)
    fall("mended", mended)
    for rule in corpus.thresholds:
        counts = {name: clean[name] + documents[name] for name in names}
        fall(rule, {name: (counts[name][f"dropped.{rule}"], counts[name][f"dropped_bytes.{rule}"]) for name in names})
    kept = {name: (documents[name]["kept"], documents[name]["kept_bytes"]) for name in names}
    return [*steps, _step("kept", left, kept)]


def _step(name: str, before: dict[str, tuple[int, int]], left: dict[str, tuple[int, int]]) -> dict[str, Any]:
    of_parts = {
        part: {
            "documents": left[part][0],
            "bytes": left[part][1],
            "dropped_documents": before[part][0] - left[part][0],
            "dropped_bytes": before[part][1] - left[part][1],
        }
        for part in left
    }
    keys = ("documents", "bytes", "dropped_documents", "dropped_bytes")
    return {"name": name, **{key: sum(part[key] for part in of_parts.values()) for key in keys}, "parts": of_parts}


def _counts(corpus: Finished, stage: str) -> dict[str, Counter[str]]:
    """The counts of a stage, by part."""
    counts = {part.name: Counter[str]() for part in corpus.settings.parts}
    for record in corpus.manifests[stage].tasks:
        counts[record.facts["part"]].update(record.counts)
    return counts


def rejected(corpus: Finished) -> dict[str, Any]:
    """Records that became no documents: how many, how many of them broken, and the most frequent reasons."""
    reasons: Counter[tuple[str, str]] = Counter()
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in corpus.manifests["read"].tasks:
        part = record.facts["part"]
        reasons.update({(part, reason): count for reason, count in record.facts["reasons"].items()})
        for file in record.files:
            if file.name.endswith(REJECTS):
                with open(corpus.folder("read") / file.name, encoding="utf-8") as lines:
                    for reject in map(json.loads, lines):
                        of_reason = found.setdefault((part, reject["reason"]), [])
                        if len(of_reason) < REJECT_SAMPLES:
                            of_reason.append({key: reject[key] for key in ("where", "sample", "broken")})
    frequent = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))[:REASONS]
    counts = corpus.manifests["read"].counts
    return {
        "records": counts.get("rejects", 0),
        "broken": counts.get("broken", 0),
        "reasons": [
            {"part": key[0], "reason": key[1], "records": count, "samples": found.get(key, [])}
            for key, count in frequent
        ],
    }


def dropped(corpus: Finished) -> list[dict[str, Any]]:
    """Documents by the rule and the measure they fell by, in the order of rules, the most frequent measure first."""
    sums: dict[tuple[str, str], dict[str, Any]] = {}
    aggregates = [("uid", "count"), ("bytes", "sum"), ("value", "min"), ("value", "max")]
    for table in corpus.dropped():
        for row in table.group_by(["rule", "measure"]).aggregate(aggregates).to_pylist():
            found = sums.setdefault((row["rule"], row["measure"]), {"documents": 0, "bytes": 0, "values": []})
            found["documents"] += row["uid_count"]
            found["bytes"] += row["bytes_sum"]
            values = [row[key] for key in ("value_min", "value_max") if row[key] is not None and np.isfinite(row[key])]
            found["values"] = [f([*found["values"], *values]) for f in (min, max)] if values else found["values"]
    order = list(corpus.thresholds)
    return [
        {
            "rule": rule,
            "measure": measure,
            "documents": found["documents"],
            "bytes": found["bytes"],
            "lowest": found["values"][0] if found["values"] else None,
            "highest": found["values"][1] if found["values"] else None,
        }
        for (rule, measure), found in sorted(
            sums.items(), key=lambda item: (order.index(item[0][0]), -item[1]["documents"], item[0][1])
        )
    ]


def languages(corpus: Finished) -> dict[str, dict[str, int]]:
    """Documents by language, most frequent first, under "read", "clean" and "kept"; an empty name is not known."""
    suffixes = {"read": ("read", ".parquet"), "clean": ("clean", KEPT), "kept": ("documents", MEASURES)}
    counts = {name: corpus.value_counts(*where, "language") for name, where in suffixes.items()}
    return {name: dict(sorted(of.items(), key=lambda item: (-item[1], item[0]))) for name, of in counts.items()}


def mixture(corpus: Finished) -> dict[str, Any] | None:
    """The mixture as it was written when tokens were made; None if they were not."""
    file = corpus.output / "tokens" / MIXTURE
    if not file.is_file():
        return None
    table: dict[str, Any] = json.loads(file.read_bytes())
    return table
