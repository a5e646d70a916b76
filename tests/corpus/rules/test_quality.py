"""The quality rule: terms and scores against plain Python, the model's file, the noise."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from yalm.corpus.document import Document, to_table
from yalm.corpus.rules.quality import Features, Header, Quality, QualityModel, lomax
from yalm.corpus.rules.rule import Batch
from yalm.corpus.words import Words
from yalm.errors import YalmError

texts = st.lists(st.text(st.sampled_from("ab б,. "), max_size=30), max_size=6)


def column(values: list[str]) -> pa.LargeStringArray:
    return pa.array(values, pa.large_string())


def made_model(seed: int = 0, bits: int = 10, characters: int = 20) -> QualityModel:
    weights = np.random.default_rng(seed).normal(size=1 << bits).astype(np.float32)
    features = Features(bits=bits, characters=characters)
    return QualityModel(Header(features=features, bias=0.25, slope=1.5, intercept=-0.5, training={"a": [1]}), weights)


def plain_probability(model: QualityModel, text: str) -> float:
    """P(good) of one text, term by term."""
    header = model.header
    words = Words(column([text[: header.features.characters]]))
    hashes = words.hashes.values.tolist() + words.shingles(2).values.tolist()
    counts = Counter(number >> (64 - header.features.bits) for number in hashes)
    values = {bucket: 1 + np.log(count) for bucket, count in counts.items()}
    length = np.sqrt(sum(value**2 for value in values.values()))
    score = header.bias + sum(model.weights[bucket] * value / length for bucket, value in values.items())
    return float(1 / (1 + np.exp(-(header.slope * score + header.intercept))))


def batch(values: list[str], languages: list[str] | None = None) -> Batch:
    languages = languages or [""] * len(values)
    rows = zip(range(len(values)), values, languages, strict=True)
    documents = (Document(text, f"id {i}", "web", language) for i, text, language in rows)
    return Batch(to_table(documents, "web", 0))


@given(texts)
def test_a_batch_scores_as_its_texts_one_by_one_in_plain_python(values: list[str]) -> None:
    model = made_model()
    expected = [plain_probability(model, text) for text in values]
    np.testing.assert_allclose(model.probabilities(column(values)), expected, rtol=2e-3)


@given(texts, st.data())
def test_terms_taken_and_joined_are_those_of_the_texts_taken_and_joined(values: list[str], data: st.DataObject) -> None:
    features = Features(bits=10)
    rows = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=8)) if values else []
    taken = features.of(column(values)).take(np.array(rows, np.int64))
    joined = taken.joined([features.of(column([])), *(features.of(column([values[row]])) for row in rows)])
    expected = features.of(column([values[row] for row in rows]))
    for terms in (taken, joined):
        for name in ("buckets", "values", "offsets"):
            assert getattr(terms, name).tolist() == getattr(expected, name).tolist()


def test_a_model_comes_back_from_its_file(tmp_path: Path) -> None:
    model = made_model()
    model.save(tmp_path / "model.safetensors")
    found = QualityModel.load(tmp_path / "model.safetensors")
    assert found.weights.tolist() == model.weights.tolist()
    assert found.header == model.header


def metadata(**changes: object) -> dict[str, str]:
    header = {"version": 1, "features": {"bits": 8}, "bias": 0, "slope": 1, "intercept": 0}
    return {"yalm_quality": json.dumps(header | changes)}


@pytest.mark.parametrize(
    ("header", "size", "dtype"),
    [
        (metadata(version=2), 256, np.float32),
        (metadata(features={"bits": 99}), 256, np.float32),
        (metadata(features=3), 256, np.float32),
        (metadata(slope=None), 256, np.float32),
        (metadata(slope=float("nan")), 256, np.float32),
        (metadata(hidden=1), 256, np.float32),
        ({"yalm_quality": "[1"}, 256, np.float32),
        ({"yalm_quality": "[1]"}, 256, np.float32),
        ({"format": "pt"}, 256, np.float32),
        (metadata(), 255, np.float32),
        (metadata(), 256, np.float64),
    ],
)
def test_a_file_that_is_something_else_is_refused(
    tmp_path: Path, header: dict[str, str], size: int, dtype: type[np.floating]
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weights": np.zeros(256, np.float32)}, path, metadata())
    assert QualityModel.load(path).header.slope == 1
    save_file({"weights": np.zeros(size, dtype)}, path, header)
    with pytest.raises(YalmError, match=r"model\.safetensors"):
        QualityModel.load(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    save_file({"weights": np.full(256, np.nan, np.float32)}, tmp_path / "model", metadata())
    with pytest.raises(YalmError, match="finite"):
        QualityModel.load(tmp_path / "model")


def test_a_file_cut_short_missing_or_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    made_model().save(path)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole[:100], b"", b"\x80\x04pickle"):
        path.write_bytes(broken)
        with pytest.raises(YalmError, match="train one"):
            QualityModel.load(path)
    save_file({"other": np.zeros(256, np.float32)}, path, metadata())
    with pytest.raises(YalmError, match="not a quality classifier"):
        QualityModel.load(path)
    with pytest.raises(YalmError, match="cannot read"):
        QualityModel.load(tmp_path / "none.safetensors")


def test_each_language_has_its_model_and_documents_without_one_are_kept(tmp_path: Path) -> None:
    models = {language: made_model(seed) for seed, language in enumerate(("", "ru"))}
    paths = {language: str(tmp_path / f"{language}.safetensors") for language in models}
    for language, model in models.items():
        model.save(Path(paths[language]))
    values, languages = ["a b б", "b, б a", "", "aa bb"], ["ru", "en", "ru", ""]
    both = Quality(model=paths[""], models={"ru": paths["ru"]}).judge(batch(values, languages))
    expected = [
        plain_probability(models["ru" if language == "ru" else ""], text)
        for text, language in zip(values, languages, strict=True)
    ]
    np.testing.assert_allclose(both.measures["quality.probability"], expected, rtol=2e-3)
    assert both.drop.tolist() == [value < 0.5 for value in expected]
    russian = Quality(models={"ru": paths["ru"]}, threshold=1).judge(batch(values, languages))
    assert np.isnan(russian.measures["quality.probability"]).tolist() == [False, True, False, True]
    assert russian.drop.tolist() == [True, False, True, False]
    assert not Quality().judge(batch(values)).drop.any()


def test_noise_is_the_lomax_distribution_and_the_same_each_time() -> None:
    ids = pa.array([f"document {i}" for i in range(20_000)])
    draws = lomax(ids, 9)
    for x in (0.01, 0.1, 0.3):
        assert (draws > x).mean() == pytest.approx((1 + x) ** -9, abs=0.012)
    assert lomax(ids[100:110], 9).tolist() == draws[100:110].tolist()


def test_with_noise_some_documents_of_each_probability_stay(tmp_path: Path) -> None:
    header = Header(features=Features(bits=8), bias=0, slope=1, intercept=float(np.log(4)))
    QualityModel(header, np.zeros(256, np.float32)).save(tmp_path / "model.safetensors")
    rule = Quality(model=str(tmp_path / "model.safetensors"), threshold=1, noise="pareto")
    documents = batch(["x"] * 5000)
    kept = ~rule.judge(documents).drop  # at P(good) = 0.8 the rule of GPT-3 keeps P(draw > 0.2)
    assert kept.mean() == pytest.approx(1.2**-9, abs=0.025)
    assert rule.judge(documents).drop.tolist() == (~kept).tolist()


def test_what_is_as_good_as_random_stays(tmp_path: Path) -> None:
    for intercept, falls in ((0, False), (-1e-9, True)):
        header = Header(features=Features(bits=8), bias=0, slope=1, intercept=intercept)
        QualityModel(header, np.zeros(256, np.float32)).save(tmp_path / "model.safetensors")
        verdict = Quality(model=str(tmp_path / "model.safetensors")).judge(batch(["x", ""]))
        assert verdict.drop.tolist() == [falls, falls]
