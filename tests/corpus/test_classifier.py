"""Teaching the classifier: figures against their definitions, and a made-up class of texts that can be told apart."""

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.classifier import ClassifierSettings, assess, platt, roc_auc, train, train_labelled
from yalm.corpus.rules.quality import Features, QualityModel
from yalm.errors import YalmError

SMALL = ClassifierSettings(features=Features(bits=12), calibration=0.2, test=0.2)
judged = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({good for _, good in rows}) == 2
)


def made_texts(seed: int, count: int, good: bool) -> list[str]:
    """Texts whose words are the same in both classes, but one class uses those of the upper half more often."""
    generator = random.Random(f"{seed} {good}")
    return [
        " ".join(
            f"слово{generator.randrange(100) + 100 * (generator.random() < (0.65 if good else 0.35))}"
            for _ in range(generator.randrange(5, 30))
        )
        for _ in range(count)
    ]


def write(path: Path, texts: list[str], **fields: str) -> Path:
    lines = "".join(json.dumps({"text": text, **fields}, ensure_ascii=False) + "\n" for text in texts)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())
    return path


@given(judged)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    pairs = [(a, b) for a, first in rows if first for b, second in rows if not second]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in pairs) / len(pairs)
    scores, good = np.array([float(score) for score, _ in rows]), np.array([good for _, good in rows])
    assert roc_auc(scores, good) == pytest.approx(expected)
    assert roc_auc(-scores, good) == pytest.approx(1 - expected)


@given(judged)
def test_cuts_are_counts(rows: list[tuple[int, bool]]) -> None:
    probabilities, good = np.array([score / 6 for score, _ in rows]), np.array([good for _, good in rows])
    report = assess(probabilities, good)
    assert report.test == (int(good.sum()), int((~good).sum()))
    for cut in report.cuts:
        kept_good = sum(p >= cut.threshold for p, is_good in zip(probabilities, good, strict=True) if is_good)
        kept_random = sum(p >= cut.threshold for p, is_good in zip(probabilities, good, strict=True) if not is_good)
        share_good, share_random = kept_good / good.sum(), kept_random / (~good).sum()
        assert (cut.good_kept, cut.random_kept) == pytest.approx((share_good, share_random))
        if kept_good + kept_random:
            assert cut.precision == pytest.approx(share_good / (share_good + share_random))
    assert sum(bin.weight for bin in report.reliability) == pytest.approx(1)


def test_platt_finds_the_numbers_that_made_the_labels_and_calibrates() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=100_000) * 3
    true = 1 / (1 + np.exp(-(0.7 * scores + 0.2)))
    good = generator.random(len(scores)) < true
    slope, intercept = platt(scores, good)
    prior = np.log((~good).sum() / good.sum())  # both classes are weighted to a half
    assert (slope, intercept - prior) == pytest.approx((0.7, 0.2), abs=0.02)
    assert assess(1 / (1 + np.exp(-(slope * scores + intercept))), good).calibration_error < 0.01
    assert assess(np.clip(true**4, 0, 1), good).calibration_error > 0.1


@given(st.floats(-1e3, 1e3), st.floats(0, 1e3), st.integers(1, 20), st.integers(1, 20))
def test_platt_is_finite_for_classes_that_do_not_overlap(low: float, gap: float, good: int, others: int) -> None:
    scores = np.array([low + gap] * good + [low] * others)
    assert np.isfinite(platt(scores, np.arange(good + others) < good)).all()


def test_it_learns_and_says_truly_how_well(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl.gz", made_texts(1, 800, True))
    others = write(tmp_path / "random.jsonl", made_texts(1, 1200, False))
    report = train([good], [others], tmp_path / "model.safetensors", SMALL)
    assert sum(report.train + report.calibration + report.test) == 2000
    assert report.auc > 0.85
    assert report.calibration_error < 0.1
    model = QualityModel.load(tmp_path / "model.safetensors")
    assert model.header.training["report"] == report.model_dump(mode="json")
    fresh = made_texts(2, 1000, True) + made_texts(2, 1000, False)
    found = assess(model.probabilities(pa.array(fresh, pa.large_string())), np.arange(2000) < 1000)
    assert (found.auc, found.log_loss) == pytest.approx((report.auc, report.log_loss), abs=0.05)


def test_the_order_of_files_repeats_and_labels_change_nothing(tmp_path: Path) -> None:
    common = made_texts(2, 20, True)
    good, others = made_texts(1, 300, True) + common, made_texts(1, 300, False) + common
    files = [write(tmp_path / "good.jsonl", good), write(tmp_path / "random.jsonl", others)]
    train(files[:1], files[1:], tmp_path / "first", SMALL)
    halves = [write(tmp_path / "b.jsonl", others[100:]), write(tmp_path / "a.jsonl", others[:150])]
    twice = write(tmp_path / "twice.jsonl", good[::-1] + good)
    train([twice], halves, tmp_path / "second", SMALL)
    labelled = [write(tmp_path / "l.jsonl", others, label="web"), write(tmp_path / "k.jsonl", good, label="books")]
    train_labelled(labelled, ["books"], tmp_path / "third", SMALL)
    first = (tmp_path / "first").read_bytes()
    assert first == (tmp_path / "second").read_bytes() == (tmp_path / "third").read_bytes()
    train(files[:1], files[1:], tmp_path / "other", SMALL.model_copy(update={"seed": 1}))
    assert first != (tmp_path / "other").read_bytes()


def test_of_many_documents_a_sample_is_taken_that_does_not_depend_on_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write(tmp_path / "good.jsonl", made_texts(1, 700, True))
    others = write(tmp_path / "random.jsonl", made_texts(1, 2500, False))
    limited = SMALL.model_copy(update={"max_documents": 400})
    report = train([good], [others], tmp_path / "whole", limited)
    parts = (report.train, report.calibration, report.test)
    assert [sum(part[kind] for part in parts) for kind in (0, 1)] == [400, 400]
    monkeypatch.setattr("yalm.corpus.classifier._BATCH", 1000)
    train([good], [others], tmp_path / "pieces", limited)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "pieces").read_bytes()


def test_what_cannot_be_taught_on_is_an_error(tmp_path: Path) -> None:
    good = write(tmp_path / "good.jsonl", made_texts(1, 300, True))
    few = write(tmp_path / "few.jsonl", made_texts(1, 10, False))
    output = tmp_path / "model"
    with pytest.raises(YalmError, match="too few documents to test on: 60 good, 3 random"):
        train([good], [few], output, SMALL)
    with pytest.raises(YalmError, match="named among the good and the random"):
        train([good], [good, few], output, SMALL)
    with pytest.raises(YalmError, match=r"good\.jsonl:1: no field 'label'"):
        train_labelled([good], ["books"], output, SMALL)
    assert not output.exists()
