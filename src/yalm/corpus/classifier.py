"""Teaching the quality classifier: good documents against random ones.

Documents are read once. A hash of its text decides for each whether it is among the at most `max_documents` of its
class, whether it trains, calibrates or tests, and where it stands in the order of training; so nothing depends on the
order of files, and copies of a text are one document on one side of every split. What is kept of a document are its
terms, about 8 kB at the default of 4,000 characters, and twice that while they are put together: 50,000 of each class
take up to 1.5 GB.

The weights are logistic regression by AdaGrad (Duchi, Hazan and Singer 2011) over minibatches, with the two classes
weighted equally; their L2 penalty is that of the mean loss. Then probabilities are calibrated by Platt's two numbers
on documents not trained on, and everything reported is of documents neither saw.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from yalm.config import Settings
from yalm.corpus.rules.quality import Features, Header, QualityModel, Terms, sigmoid
from yalm.corpus.words import mix
from yalm.errors import YalmError
from yalm.progress import byte_progress
from yalm.tokens.documents import RawDocument, find_files, read_raw

_BATCH = 4 << 20  # bytes of (cut) text whose terms are found at a time
_BINS = 15
_THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_FEWEST = 20  # documents of each class in each split, below which no figure means anything


class ClassifierSettings(Settings):
    """How to teach. `calibration` and `test` are shares of the documents, the rest trains."""

    features: Features = Features()
    text_field: str = "text"
    max_documents: int = Field(default=50_000, ge=1)
    calibration: float = Field(default=0.1, gt=0, lt=0.5)
    test: float = Field(default=0.1, gt=0, lt=0.5)
    epochs: int = Field(default=5, ge=1)
    batch: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1, gt=0)
    l2: float = Field(default=1e-6, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**63)


class Cut(Settings):
    """What a threshold does to the test documents; `precision` is that of classes of equal size."""

    threshold: float
    precision: float
    good_kept: float  # which is the recall
    random_kept: float


class ReliabilityBin(Settings):
    """Test documents whose probabilities lie near each other: their mean and how many of them are good indeed."""

    probability: float
    good: float
    weight: float


class ClassifierReport(Settings):
    """What was taught on and how well it went; all figures on the test documents, both classes weighted equally.

    train, calibration, test  how many good and random documents
    auc                       probability that a good document scores above a random one, ties counting half
    calibration_error         mean distance of the probability from the share that is good, over bins
    """

    train: tuple[int, int]
    calibration: tuple[int, int]
    test: tuple[int, int]
    auc: float
    log_loss: float
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]
    cuts: tuple[Cut, ...]


def train(
    good: Sequence[str | Path],
    random: Sequence[str | Path],
    output: str | Path,
    settings: ClassifierSettings | None = None,
) -> ClassifierReport:
    """Teach on files or folders of good and of random documents (.jsonl, .zst, .gz, .txt); write the model `output`.

    YalmError for files that cannot be read or too few documents.
    """
    settings = settings or ClassifierSettings()
    good_files, random_files = find_files(good), find_files(random)
    both = set(good_files) & set(random_files)
    if both:
        raise YalmError(f"{min(both)}: named among the good and the random documents; name it once")
    names = {str(file) for file in good_files}
    return _train(good_files + random_files, lambda raw: raw.file in names, Path(output), settings)


def train_labelled(
    inputs: Sequence[str | Path],
    good_labels: Sequence[str],
    output: str | Path,
    settings: ClassifierSettings | None = None,
    label_field: str = "label",
) -> ClassifierReport:
    """The same from JSON lines that say in `label_field` what they are; all labels but `good_labels` are random.

    YalmError also for a line without a label.
    """

    def is_good(raw: RawDocument) -> bool:
        record = json.loads(raw.data) if raw.line else {}
        if not isinstance(record, dict) or label_field not in record:
            raise YalmError(f"{raw.file}:{raw.line}: no field {label_field!r}; name the field that holds the label")
        return str(record[label_field]) in good_labels

    return _train(find_files(inputs), is_good, Path(output), settings or ClassifierSettings())


class _Examples(NamedTuple):
    """Documents of both classes; `keys` are hashes of their texts and the seed."""

    terms: Terms
    good: NDArray[np.bool_]
    keys: NDArray[np.uint64]

    def take(self, rows: NDArray[np.int64]) -> "_Examples":
        return _Examples(self.terms.take(rows), self.good[rows], self.keys[rows])


def _train(
    files: Sequence[Path], is_good: Callable[[RawDocument], bool], output: Path, settings: ClassifierSettings
) -> ClassifierReport:
    examples = _read(files, is_good, settings)
    order = np.lexsort((examples.good, examples.keys))  # a shuffle, for keys are hashes, whatever the order of files
    place = mix(examples.keys[order]) / 2.0**64
    splits = np.searchsorted((settings.test, settings.test + settings.calibration), place, "right")
    rows = {purpose: order[splits == split] for split, purpose in enumerate(("test", "calibrate", "train"))}
    sizes = {}
    for purpose, its_rows in rows.items():
        good = int(examples.good[its_rows].sum())
        sizes[purpose] = (good, len(its_rows) - good)
        if min(sizes[purpose]) < _FEWEST:
            raise YalmError(
                f"too few documents to {purpose} on: {good} good, {len(its_rows) - good} random, and at least "
                f"{_FEWEST} of each are needed; give more documents"
            )
    weights, bias = _fit(examples, rows["train"], settings)
    calibration, test = examples.take(rows["calibrate"]), examples.take(rows["test"])
    slope, intercept = platt(calibration.terms.scores(weights, bias), calibration.good)
    probabilities = sigmoid(slope * test.terms.scores(weights, bias) + intercept)
    report = assess(probabilities, test.good, sizes["train"], sizes["calibrate"])
    record = {"settings": settings.model_dump(mode="json"), "report": report.model_dump(mode="json")}
    header = Header(features=settings.features, bias=bias, slope=slope, intercept=intercept, training=record)
    QualityModel(header, weights).save(output)
    return report


def _read(files: Sequence[Path], is_good: Callable[[RawDocument], bool], settings: ClassifierSettings) -> _Examples:
    """Those documents of each class whose keys are least, without repeats."""
    limits = {True: 2**64 - 1, False: 2**64 - 1}
    held: list[_Examples] = []
    fresh = 0
    for batch in _batches(files, is_good, limits, settings):
        held.append(batch)
        fresh += len(batch.keys)
        if fresh >= settings.max_documents:
            limits.update(_prune(held, settings.max_documents))
            fresh = 0
    _prune(held, settings.max_documents)
    keys, good = np.concatenate([part.keys for part in held]), np.concatenate([part.good for part in held])
    return _Examples(Terms.joined([part.terms for part in held]), good, keys)


def _prune(held: list[_Examples], most: int) -> dict[bool, int]:
    """Leave of each class the `most` documents with the least keys, each key once; say which keys are too great now."""
    keys, good = np.concatenate([part.keys for part in held]), np.concatenate([part.good for part in held])
    kept = np.zeros(len(keys), bool)
    limits = {}
    for kind in (True, False):
        of_kind = np.flatnonzero(good == kind)
        least, firsts = np.unique(keys[of_kind], return_index=True)
        kept[of_kind[firsts[:most]]] = True
        if len(least) >= most:
            limits[kind] = int(least[most - 1])
    begin = 0
    for i, part in enumerate(held):
        end = begin + len(part.keys)
        held[i] = part.take(np.flatnonzero(kept[begin:end]))
        begin = end
    return limits


def _batches(
    files: Sequence[Path],
    is_good: Callable[[RawDocument], bool],
    limits: Mapping[bool, int],
    settings: ClassifierSettings,
) -> Iterator[_Examples]:
    """Examples of the documents whose keys are within the limits (which may fall meanwhile), some thousands each."""
    seed = settings.seed.to_bytes(8, "little")
    texts: list[bytes] = []
    good: list[bool] = []
    keys: list[int] = []

    def examples() -> _Examples:
        column = pa.array(texts, pa.large_binary()).view(pa.large_string())
        return _Examples(settings.features.of(column), np.array(good, bool), np.array(keys, np.uint64))

    size = 0
    with byte_progress("reading", sum(file.stat().st_size for file in files)) as advance:
        for file in files:
            for raw in read_raw(file, advance):
                text, kind = raw.text(settings.text_field), is_good(raw)
                digest = blake2b(text.encode("utf-8", "replace"), digest_size=8, key=seed).digest()
                key = int.from_bytes(digest, "little")
                if key > limits[kind]:
                    continue
                texts.append(text[: settings.features.characters].encode("utf-8", "replace"))
                good.append(kind)
                keys.append(key)
                size += len(texts[-1])
                if size >= _BATCH:
                    yield examples()
                    texts, good, keys, size = [], [], [], 0
    yield examples()


def _fit(
    examples: _Examples, rows: NDArray[np.int64], settings: ClassifierSettings
) -> tuple[NDArray[np.float32], float]:
    """Weights and bias of least mean log loss + l2 / 2 · |weights|², taught on these rows of the examples."""
    size = 1 << settings.features.bits
    parameters, squares = np.zeros(size + 1), np.full(size + 1, 1e-12)  # the last one is the bias
    balance = _balanced(examples.good[rows]) * len(rows)
    generator = np.random.default_rng(settings.seed)
    for _ in range(settings.epochs):
        order = generator.permutation(len(rows))
        for start in range(0, len(order), settings.batch):
            chosen = order[start : start + settings.batch]
            terms, good = examples.terms.take(rows[chosen]), examples.good[rows[chosen]]
            scores = terms.scores(parameters[:-1], parameters[-1])
            errors = balance[chosen] * (sigmoid(scores) - good) / len(chosen)
            of_terms = terms.values * np.repeat(errors, terms.counts)
            gradient = np.bincount(terms.buckets, of_terms, size + 1).astype(np.float64)
            gradient[:-1] += settings.l2 * parameters[:-1]
            gradient[-1] = errors.sum()
            squares += np.square(gradient)
            parameters -= settings.learning_rate * gradient / np.sqrt(squares)
    return parameters[:-1].astype(np.float32), float(parameters[-1])


def platt(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept for which sigmoid(slope · score + intercept) is P(good), by Newton's method.

    Targets are drawn in from 0 and 1 as by Platt (1999); a step that does not lower the loss is halved, as by Lin, Lin
    and Weng (2007). Both classes weigh the same.
    """
    weights, positive = _balanced(good), int(good.sum())
    target = np.where(good, (positive + 1) / (positive + 2), 1 / (len(good) - positive + 2))
    inputs = np.stack((scores, np.ones(len(scores))))

    def loss(at: NDArray[np.float64]) -> float:
        values = at @ inputs
        return float(weights @ (np.logaddexp(0, values) - target * values))

    found = np.zeros(2)
    for _ in range(100):
        probabilities = sigmoid(found @ inputs)
        gradient = inputs @ (weights * (probabilities - target))
        hessian = (inputs * (weights * probabilities * (1 - probabilities))) @ inputs.T + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        while loss(found - step) > loss(found) and np.abs(step).max() > 1e-12:
            step /= 2
        found -= step
        if np.abs(step).max() <= 1e-9:
            break
    return float(found[0]), float(found[1])


def roc_auc(scores: NDArray[np.float64], good: NDArray[np.bool_]) -> float:
    """The share of pairs (good, random) in which the good one scores higher, ties counting half (Mann and Whitney)."""
    others = np.sort(scores[~good])
    below = np.searchsorted(others, scores[good], "left").astype(np.int64)
    not_above = np.searchsorted(others, scores[good], "right").astype(np.int64)
    return float((below + not_above).sum() / (2 * len(others) * int(good.sum())))


def assess(
    probabilities: NDArray[np.float64],
    good: NDArray[np.bool_],
    training: tuple[int, int] = (0, 0),
    calibration: tuple[int, int] = (0, 0),
) -> ClassifierReport:
    """All figures of the report for the probabilities that documents of known class were given."""
    weights = _balanced(good)
    bins = np.minimum((probabilities * _BINS).astype(np.int64), _BINS - 1)
    mass = np.bincount(bins, weights, _BINS)
    filled = np.flatnonzero(mass)
    predicted = np.bincount(bins, weights * probabilities, _BINS)[filled] / mass[filled]
    observed = np.bincount(bins, weights * good, _BINS)[filled] / mass[filled]
    cuts = []
    for threshold in _THRESHOLDS:
        good_kept, random_kept = (float((probabilities[kind] >= threshold).mean()) for kind in (good, ~good))
        kept = good_kept + random_kept
        precision = good_kept / kept if kept else 1.0
        cuts.append(Cut(threshold=threshold, precision=precision, good_kept=good_kept, random_kept=random_kept))
    of_truth = np.clip(np.where(good, probabilities, 1 - probabilities), 1e-15, 1)
    return ClassifierReport(
        train=training,
        calibration=calibration,
        test=(int(good.sum()), int((~good).sum())),
        auc=roc_auc(probabilities, good),
        log_loss=float(-(weights @ np.log(of_truth))),
        calibration_error=float(mass[filled] @ np.abs(predicted - observed)),
        reliability=tuple(
            ReliabilityBin(probability=float(p), good=float(g), weight=float(m))
            for p, g, m in zip(predicted, observed, mass[filled], strict=True)
        ),
        cuts=tuple(cuts),
    )


def _balanced(good: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Weights that sum to a half in each class."""
    return np.where(good, 0.5 / max(1, int(good.sum())), 0.5 / max(1, int((~good).sum())))
