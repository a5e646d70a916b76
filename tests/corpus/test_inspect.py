"""What `inspect` says of each document against the tables of the stages."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from yalm.corpus.report.facts import corpus_facts
from yalm.corpus.report.inspect import why_dropped
from yalm.errors import YalmError


def table(built: Path, pattern: str) -> dict[int, dict[str, object]]:
    return {row["uid"]: row for file in built.glob(pattern) for row in pq.read_table(file).to_pylist()}


def test_every_document_is_explained(built: Path) -> None:
    fallen = table(built, "stages/clean/*.dropped.parquet") | table(built, "documents/*.dropped.parquet")
    kept = table(built, "documents/*.measures.parquet")
    read = table(built, "stages/read/*.parquet")
    clusters = table(built, "stages/duplicates/clusters.parquet")
    thresholds = corpus_facts(built)["thresholds"]
    assert fallen.keys() | kept.keys() == read.keys()
    assert not fallen.keys() & kept.keys()
    for uid, original in read.items():
        [fate] = [fate for fate in why_dropped(built, str(original["id"])) if fate.uid == uid]
        assert (fate.id, fate.part, fate.text) == (original["id"], original["part"], str(original["text"])[:600])
        assert fate.kept == (uid in kept)
        if fate.kept:
            assert fate.rule == fate.measure == ""
            assert fate.value is fate.survivor is None
            finite = {name: x for name, x in kept[uid].items() if "." in name and isinstance(x, float) and x == x}
            assert fate.measures == finite
            continue
        row = fallen[uid]
        assert (fate.rule, fate.measure, fate.value) == (row["rule"], row["measure"], row["value"])
        assert fate.thresholds == thresholds[fate.rule]
        assert (fate.survivor is not None) == (fate.rule == "duplicates")
        if fate.survivor is not None:
            survivor = read[clusters[uid]["survivor"]]
            assert fate.similarity == fate.value == clusters[uid]["similarity"]
            assert (fate.survivor.uid, fate.survivor.id) == (survivor["uid"], survivor["id"])
            assert fate.survivor.text == str(survivor["text"])[:600]


def test_all_documents_of_an_id_are_found(built: Path) -> None:
    assert [(fate.id, fate.part) for fate in why_dropped(built, "good-3")] == [("good-3", "web"), ("good-3", "books")]


def test_a_uid_finds_its_document(built: Path) -> None:
    for fate in why_dropped(built, "good-4"):
        assert why_dropped(built, str(fate.uid)) == [fate]


def test_plain_values(built: Path) -> None:
    [fate] = why_dropped(built, "near")
    values = fate.as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["id"] == "near"
    assert values["survivor"]["id"].startswith("copy-")


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [("god-13", "near it are 'good-13'"), ("???", "look like 'good-0'"), (str(1 << 63), "look like")],
)
def test_an_unknown_id_is_an_error_with_a_hint(built: Path, wanted: str, hint: str) -> None:
    with pytest.raises(YalmError, match="no document has the id or uid") as error:
        why_dropped(built, wanted)
    assert hint in str(error.value)
