"""The contamination rule: planted copies, and the count of shared runs against plain Python."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, to_table
from yalm.corpus.rules.contamination import Contamination
from yalm.corpus.rules.rule import Batch
from yalm.errors import YalmError

QUESTION = {
    "en": "A farmer has seventeen sheep and all but nine of them run away, so how many does the farmer have left?",
    "ru": "У фермера семнадцать овец, все, кроме девяти, убежали, и теперь вопрос: сколько овец осталось у фермера?",
}
OTHER = {
    "en": "The farmer counted his sheep twice that evening, for a storm was coming and the fence had fallen again.",
    "ru": "Вечером фермер дважды пересчитал своих овец, потому что надвигалась гроза, а забор опять упал.",
}
texts = st.lists(st.text(st.sampled_from("abв ."), max_size=20), max_size=6)


def batch(values: Sequence[str]) -> Batch:
    return Batch(to_table((Document(text, str(i), "web") for i, text in enumerate(values)), "web", 0))


def write(folder: Path, values: Sequence[str], field: str = "text") -> str:
    path = folder / "test.jsonl"
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in values))
    return str(path)


def plain_runs(text: str, size: int) -> list[tuple[str, ...]]:
    words = text.replace(".", " ").split()
    return [tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))] if words else []


@given(texts, texts, st.integers(1, 4), st.integers(0, 6))
def test_shared_runs_are_those_counted_in_plain_python(
    evaluation: list[str], values: list[str], size: int, at: int
) -> None:
    with TemporaryDirectory() as folder:
        rule = Contamination(texts=(write(Path(folder), evaluation),), words=size, max_shared=1)
        whole, parts = rule.judge(batch(values)), [rule.judge(batch(values[:at])), rule.judge(batch(values[at:]))]
    known = {run for text in evaluation for run in plain_runs(text, size)}
    expected = [sum(run in known for run in plain_runs(text, size)) for text in values]
    assert whole.measures["contamination.shared"].tolist() == expected
    assert whole.drop.tolist() == [count > 1 for count in expected]
    assert whole.drop.tolist() == [drop for part in parts for drop in part.drop.tolist()]


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_copy_inside_a_page_falls_however_it_is_written(tmp_path: Path, language: str) -> None:
    rule = Contamination(texts=(write(tmp_path, [QUESTION["en"], QUESTION["ru"]]),))
    copied = QUESTION[language].upper().replace(", ", " —\n ")
    twelve = " ".join(QUESTION[language].split()[:12])
    page = [OTHER[language], f"{OTHER[language]} {copied} {OTHER[language]}", f"{OTHER[language]} {twelve} etc."]
    assert rule.judge(batch(page)).drop.tolist() == [False, True, False]


def test_runs_do_not_go_on_from_one_text_to_the_next(tmp_path: Path) -> None:
    words = QUESTION["en"].split()
    rule = Contamination(texts=(write(tmp_path, [" ".join(words[:10]), " ".join(words[10:])]),))
    assert not rule.judge(batch([QUESTION["en"]])).drop.any()
    rule = Contamination(texts=(write(tmp_path, [QUESTION["en"]]),))
    assert not rule.judge(batch([" ".join(words[:10]), " ".join(words[10:])])).drop.any()


def test_more_evaluation_texts_than_are_hashed_together(tmp_path: Path) -> None:
    many = [f"{QUESTION['en']} {number} " + f"x{number} " * 40_000 for number in range(12)]
    rule = Contamination(texts=(write(tmp_path, many),), words=3)
    assert rule.judge(batch([f"left {number} x{number}" for number in range(13)])).drop.tolist() == [True] * 12 + [
        False
    ]


def test_folders_compressed_files_and_other_fields(tmp_path: Path) -> None:
    write(tmp_path, [QUESTION["en"]], "question")
    with gzip.open(tmp_path / "more.jsonl.gz", "wt") as file:
        file.write(json.dumps({"question": QUESTION["ru"] + "\ud800"}))
    rule = Contamination(texts=(str(tmp_path),), text_field="question")
    assert rule.files == (tmp_path / "more.jsonl.gz", tmp_path / "test.jsonl")
    assert rule.judge(batch([QUESTION["en"], QUESTION["ru"], OTHER["ru"]])).drop.tolist() == [True, True, False]


def test_without_texts_all_stays_and_with_missing_ones_nothing_is_judged(tmp_path: Path) -> None:
    assert Contamination().files == ()
    assert not Contamination().judge(batch([QUESTION["en"]])).drop.any()
    missing = Contamination(texts=(str(tmp_path / "none.jsonl"),))
    with pytest.raises(YalmError, match=r"none\.jsonl"):
        missing.judge(batch([""]))
    with pytest.raises(YalmError, match=r"none\.jsonl"):
        _ = missing.files


def test_a_document_at_the_limit_stays(tmp_path: Path) -> None:
    path = write(tmp_path, [QUESTION["en"]])
    shared = Contamination(texts=(path,)).judge(batch([QUESTION["en"]])).measures["contamination.shared"]
    np.testing.assert_array_equal(shared, [len(QUESTION["en"].split()) - 12])
    limit = int(shared[0])
    assert not Contamination(texts=(path,), max_shared=limit).judge(batch([QUESTION["en"]])).drop[0]
    assert Contamination(texts=(path,), max_shared=limit - 1).judge(batch([QUESTION["en"]])).drop[0]
