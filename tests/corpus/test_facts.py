"""The facts of a report against the corpus's files, counted anew in plain Python."""

import json
import math
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.report.distributions import _Bounds, _Histogram
from yalm.corpus.report.examples import SAMPLES
from yalm.corpus.report.facts import corpus_facts
from yalm.corpus.words import mix
from yalm.errors import YalmError
from yalm.tokens.documents import find_files, read_raw


@pytest.fixture(scope="module")
def facts(built: Path) -> dict[str, Any]:
    return corpus_facts(built)


def rows(built: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for file in sorted(built.glob(pattern)) for row in pq.read_table(file).to_pylist()]


@pytest.fixture(scope="module")
def read(built: Path) -> list[dict[str, Any]]:
    return rows(built, "stages/read/*.parquet")


@pytest.fixture(scope="module")
def fallen(built: Path) -> list[dict[str, Any]]:
    return rows(built, "stages/clean/*.dropped.parquet") + rows(built, "documents/*.dropped.parquet")


def test_the_waterfall_is_what_the_files_hold(
    built: Path, facts: dict[str, Any], read: list[dict[str, Any]], fallen: list[dict[str, Any]]
) -> None:
    steps = {step["name"]: step for step in facts["waterfall"]}
    for part in ("web", "books"):
        sizes = [len(row["text"].encode()) for row in read if row["part"] == part]
        assert steps["read"]["parts"][part]["documents"] == len(sizes)
        assert steps["read"]["parts"][part]["bytes"] == sum(sizes)
        for rule in facts["thresholds"]:
            found = [row["bytes"] for row in fallen if (row["part"], row["rule"]) == (part, rule)]
            assert steps[rule]["parts"][part]["dropped_documents"] == len(found)
            assert steps[rule]["parts"][part]["dropped_bytes"] == sum(found)
        texts = [raw.text() for file in find_files([built / "documents" / part]) for raw in read_raw(file)]
        assert steps["kept"]["parts"][part]["documents"] == len(texts)
        assert steps["kept"]["parts"][part]["bytes"] == sum(len(text.encode()) for text in texts)


def test_the_waterfall_loses_nothing(facts: dict[str, Any]) -> None:
    steps = facts["waterfall"]
    assert [step["name"] for step in steps] == ["read", "mended", *facts["thresholds"], "kept"]
    assert list(facts["thresholds"])[-3:] == ["duplicates", "domains", "quality"]
    for before, step in pairwise(steps):
        for what in ("documents", "bytes"):
            assert step[what] == before[what] - step[f"dropped_{what}"]
            assert step[what] == sum(part[what] for part in step["parts"].values())
    assert steps[-1]["dropped_documents"] == steps[-1]["dropped_bytes"] == 0
    assert 0 < steps[-1]["documents"] < steps[0]["documents"]


def test_each_way_to_fall_is_counted(facts: dict[str, Any], fallen: list[dict[str, Any]]) -> None:
    counts = Counter((row["rule"], row["measure"]) for row in fallen)
    assert {(row["rule"], row["measure"]): row["documents"] for row in facts["dropped"]} == counts
    for found in facts["dropped"]:
        values = [row["value"] for row in fallen if (row["rule"], row["measure"]) == (found["rule"], found["measure"])]
        assert (found["lowest"], found["highest"]) == (min(values), max(values))
    assert {"duplicates", "domains", "quality"} < {row["rule"] for row in facts["dropped"]}


def test_histograms_count_every_value_once(built: Path, facts: dict[str, Any], fallen: list[dict[str, Any]]) -> None:
    clean, kept = rows(built, "stages/clean/*.kept.parquet"), rows(built, "documents/*.measures.parquet")
    measures = {name for row in kept for name in row if "." in name}
    assert {item["measure"] for item in facts["distributions"]} == measures
    for item in facts["distributions"]:
        name, counts, edges = item["measure"], item["counts"], item["edges"]
        after = [row[name] for row in kept if math.isfinite(row.get(name, math.nan))]
        cut = [row["value"] for row in fallen if row["measure"] == name]
        judged = [row[name] for row in (clean if name in clean[0] else kept) if math.isfinite(row.get(name, math.nan))]
        assert sum(counts["all"]["kept"]) == len(after)
        assert sum(counts["all"]["fallen"]) == len(cut)
        assert sum(counts["all"]["judged"]) == len(judged) + len(cut)
        assert edges == sorted(edges)
        assert len(edges) == len(counts["all"]["kept"]) + 1
        assert all(
            judged >= kept + cut
            for judged, kept, cut in zip(*(counts["all"][group] for group in ("judged", "kept", "fallen")), strict=True)
        )
        russian = [row for row in kept if row["language"] == "ru" and math.isfinite(row.get(name, math.nan))]
        assert sum(counts.get("ru", {"kept": []})["kept"]) == len(russian)


@given(st.lists(st.floats(-1e12, 1e12) | st.integers(-30, 30).map(float), min_size=1))
def test_bins_hold_all_values(values: list[float]) -> None:
    array = np.array(values)
    bounds = _Bounds()
    for value in values:
        bounds.update(np.array([value]))
    histogram = _Histogram(bounds.edges())
    histogram.add("all", "judged", array)
    assert histogram.counts["all"]["judged"].sum() == len(values)
    assert 1 <= len(histogram.edges) - 1 <= 41
    assert (np.diff(histogram.edges) > 0).all()


def test_samples_are_those_of_lowest_hash(
    built: Path, facts: dict[str, Any], read: list[dict[str, Any]], fallen: list[dict[str, Any]]
) -> None:
    texts = {row["uid"]: row["text"] for row in read}
    members = {rule: [row["uid"] for row in fallen if row["rule"] == rule] for rule in facts["thresholds"]}
    members["kept"] = [row["uid"] for row in rows(built, "documents/*.measures.parquet")]
    assert set(facts["samples"]) == {rule for rule, uids in members.items() if uids}
    for rule, shown in facts["samples"].items():
        expected = sorted(members[rule], key=lambda uid: int(mix(np.array([uid], np.uint64))[0]))[:SAMPLES]
        assert [item["uid"] for item in shown] == expected
        assert [item["text"] for item in shown] == [texts[uid][:600] for uid in expected]


def test_the_largest_cluster_is_shown(built: Path, facts: dict[str, Any], read: list[dict[str, Any]]) -> None:
    members = rows(built, "stages/duplicates/clusters.parquet")
    [(survivor, size)] = Counter(row["survivor"] for row in members).most_common(1)
    largest = facts["clusters"]["largest"][0]
    assert largest["survivor"]["uid"] == survivor
    assert largest["size"] == size + 1
    texts = {row["uid"]: row["text"] for row in read}
    lowest = sorted((row["similarity"], row["uid"]) for row in members if row["survivor"] == survivor)[:2]
    assert [(row["similarity"], row["uid"], row["text"]) for row in largest["members"]] == [
        (similarity, uid, texts[uid][:600]) for similarity, uid in lowest
    ]
    assert sum(facts["clusters"]["documents"].values()) == len(members)


def test_rejects_domains_languages_and_mixture(built: Path, facts: dict[str, Any], read: list[dict[str, Any]]) -> None:
    assert facts["rejected"]["records"] == 2
    assert sum(reason["records"] for reason in facts["rejected"]["reasons"]) == 2
    assert {sample["sample"] for reason in facts["rejected"]["reasons"] for sample in reason["samples"]} == {
        "<script>alert(1)</script> is no JSON",
        "[]",
    }
    assert [row["domain"] for row in facts["domains"]["worst"]] == ["shop.example"]
    assert facts["languages"]["read"] == dict(Counter(row["language"] for row in read).most_common())
    assert sum(facts["languages"]["kept"].values()) == facts["waterfall"][-1]["documents"]
    assert facts["mixture"] == json.loads((built / "tokens" / "mixture.json").read_text())


def spoil(built: Path, target: Path) -> Path:
    """A copy of a corpus, without the tokens."""
    return Path(shutil.copytree(built, target / "out", ignore=shutil.ignore_patterns("tokens")))


def test_tokens_may_not_have_been_made(built: Path, tmp_path: Path) -> None:
    assert corpus_facts(spoil(built, tmp_path))["mixture"] is None


@pytest.mark.parametrize("stage", ["stages/read", "stages/clean", "stages/duplicates", "stages/domains", "documents"])
def test_a_build_that_was_interrupted_is_not_reported(built: Path, tmp_path: Path, stage: str) -> None:
    output = spoil(built, tmp_path)
    (output / stage / "manifest.json").unlink()
    with pytest.raises(YalmError, match="not finished"):
        corpus_facts(output)


@pytest.mark.parametrize("change", [("similarity = 0.8", "similarity = 0.7"), ("threshold = 0.4", "threshold = 0.5")])
def test_stages_of_other_settings_are_not_reported(built: Path, tmp_path: Path, change: tuple[str, str]) -> None:
    output = spoil(built, tmp_path)
    settings = output / "settings.toml"
    changed = settings.read_text().replace(*change)
    assert changed != settings.read_text()
    settings.write_text(changed)
    with pytest.raises(YalmError, match="not finished"):
        corpus_facts(output)


def test_a_stage_made_anew_without_those_after_it_is_not_reported(built: Path, tmp_path: Path) -> None:
    output = spoil(built, tmp_path)
    manifest = output / "stages" / "clean" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["tasks"][0]["files"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with pytest.raises(YalmError, match="not finished"):
        corpus_facts(output)


def test_a_folder_that_is_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="no corpus"):
        corpus_facts(tmp_path)
