"""Quality: how much a document reads like those that people thought worth passing on.

YaLM's last filter is a classifier taught on pages linked from posts that got an answer, against random pages. Here it
is logistic regression on hashed words and word pairs of the beginning of a document, which `corpus.classifier`
trains. A linear model cannot tell how words hang together, only which ones they are; in return it scores tens of
megabytes a second on one core, in NumPy over whole batches, and its file is one vector that is safe to load.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, FiniteFloat

from yalm.atomic import atomic_file
from yalm.config import Settings
from yalm.corpus.rules.rule import Batch, Rule, Verdict
from yalm.corpus.words import Words, mix, span_hashes, utf8_buffer
from yalm.errors import YalmError

_METADATA = "yalm_quality"  # all in one entry, for the order of entries varies


@dataclass(frozen=True)
class Terms:
    """The terms of documents, one after the other: those of document i lie at offsets[i] : offsets[i + 1].

    buckets  (terms,) which weight each goes with
    values   (terms,) float16, of Euclidean length 1 in each document that has any
    """

    buckets: NDArray[np.uint32]
    values: NDArray[np.float16]
    offsets: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """How many terms each document has."""
        return np.diff(self.offsets)

    def take(self, documents: NDArray[np.int64]) -> "Terms":
        """The terms of these documents, in this order."""
        counts = self.counts[documents]
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][documents] - offsets[:-1], counts)
        return Terms(self.buckets[places], self.values[places], offsets)

    @classmethod
    def joined(cls, parts: "Sequence[Terms]") -> "Terms":
        """The terms of all parts' documents, in order."""
        counts = np.concatenate([part.counts for part in parts])
        return cls(
            np.concatenate([part.buckets for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate((np.zeros(1, np.int64), np.cumsum(counts))),
        )

    def scores(self, weights: NDArray[np.floating[Any]], bias: float) -> NDArray[np.float64]:
        """weights · values + bias of each document."""
        sums = np.zeros(len(self.offsets) - 1)
        full = self.counts > 0
        if full.any():
            sums[full] = np.add.reduceat(weights[self.buckets] * self.values, self.offsets[:-1][full])
        return sums + bias


class Features(Settings):
    """How a text becomes a vector: words and word pairs of its first `characters`, hashed to 2^bits buckets."""

    bits: int = Field(default=18, ge=8, le=24)
    characters: int = Field(default=4000, ge=1)

    def of(self, texts: pa.LargeStringArray) -> Terms:
        """The terms of each text: 1 + log of how often each occurs, divided by the length of that vector."""
        words = Words(pc.utf8_slice_codeunits(texts, 0, self.characters))
        shift = np.uint64(64 - self.bits)
        keys = np.concatenate(
            [
                np.repeat(np.arange(len(texts), dtype=np.uint64), hashes.counts) << np.uint64(self.bits)
                | hashes.values >> shift
                for hashes in (words.hashes, words.shingles(2))
            ]
        )
        keys.sort()
        firsts = np.flatnonzero(np.concatenate((np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1])))
        values = 1 + np.log(np.diff(firsts, append=len(keys)))
        documents = (keys[firsts] >> np.uint64(self.bits)).astype(np.int64)
        squares = np.bincount(documents, np.square(values), minlength=len(texts))
        return Terms(
            (keys[firsts] & np.uint64((1 << self.bits) - 1)).astype(np.uint32),
            (values / np.sqrt(squares)[documents]).astype(np.float16),
            np.searchsorted(documents, np.arange(len(texts) + 1)).astype(np.int64),
        )


class Header(Settings):
    """What the file of a model says beside its weights. P(good) = sigmoid(slope · score + intercept).

    P(good) is for as many good as random documents; `training` is what the training says of itself.
    """

    version: Literal[1] = 1
    features: Features
    bias: FiniteFloat
    slope: FiniteFloat
    intercept: FiniteFloat
    training: Mapping[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class QualityModel:
    """A trained classifier: a weight for each bucket, float32."""

    header: Header
    weights: NDArray[np.float32]

    def probabilities(self, texts: pa.LargeStringArray) -> NDArray[np.float64]:
        """P(good) of each text."""
        scores = self.header.features.of(texts).scores(self.weights, self.header.bias)
        return sigmoid(self.header.slope * scores + self.header.intercept)

    def save(self, path: Path) -> None:
        """Write one safetensors file, atomically; the same model gives the same bytes."""
        from safetensors.numpy import save_file

        with atomic_file(path) as temporary:
            save_file({"weights": self.weights}, temporary, {_METADATA: self.header.model_dump_json()})

    @classmethod
    def load(cls, path: Path) -> "QualityModel":
        """Read what `save` wrote; YalmError for a file that is missing, broken or something else."""
        from safetensors import SafetensorError, safe_open

        mend = "train one with yalm corpus classifier train"
        try:
            with safe_open(path, "np") as file:
                header = json.loads((file.metadata() or {}).get(_METADATA, "null"))
                weights = file.get_tensor("weights")
        except OSError as error:
            raise YalmError(f"{path}: cannot read the classifier ({error.strerror or error}); {mend}") from None
        except (SafetensorError, ValueError, TypeError) as error:  # a TypeError for numbers that NumPy lacks
            raise YalmError(f"{path}: not a quality classifier, or a broken one ({error}); {mend}") from None
        if not isinstance(header, dict):
            raise YalmError(f"{path}: not a quality classifier; {mend}")
        model = cls(Header.parse(header, str(path)), weights)
        buckets = 1 << model.header.features.bits
        if weights.dtype != np.float32 or weights.shape != (buckets,) or not np.isfinite(weights).all():
            raise YalmError(f"{path}: the weights are not {buckets} finite numbers of 32 bits; {mend}")
        return model


def sigmoid(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(values))
    return np.asarray(np.where(values >= 0, 1.0, small) / (1 + small))


class Quality(Rule):
    """Drops documents whose P(good) plus noise is below `threshold`.

    model      file of the classifier for all languages that `models` does not name; documents without one are kept
    models     files by language
    noise      "pareto" adds a draw of the Lomax distribution with exponent `alpha`, a hash of the document's id being
               the dice. With threshold 1 and alpha 9 that is the rule of GPT-3 (Brown et al. 2020, appendix A), which
               keeps most of what is good and some of everything.

    The default threshold keeps what is rather good than random, had both been as frequent.
    """

    name: ClassVar[str] = "quality"

    model: str | None = None
    models: Mapping[str, str] = Field(default_factory=dict)
    threshold: float = Field(default=0.5, ge=0, le=1)
    noise: Literal["none", "pareto"] = "none"
    alpha: float = Field(default=9, gt=0)

    @property
    def files(self) -> tuple[Path, ...]:
        """The classifiers."""
        return tuple(Path(path) for path in (self.model, *self.models.values()) if path is not None)

    @cached_property
    def _loaded(self) -> dict[str, QualityModel]:
        """The models by language, that of all others under the empty name."""
        paths = {"": self.model, **self.models} if self.model is not None else self.models
        return {language: QualityModel.load(Path(path)) for language, path in paths.items()}

    def judge(self, batch: Batch) -> Verdict:
        """Measures `quality.probability`; YalmError if a model cannot be read."""
        probability = np.full(len(batch), np.nan)
        own = np.where(np.isin(batch.languages, list(self.models)), batch.languages, "")
        for language, model in self._loaded.items():
            rows = np.flatnonzero(own == language)
            probability[rows] = model.probabilities(batch.texts.take(pa.array(rows)))
        kept = probability
        if self.noise == "pareto":
            kept = probability + lomax(batch.table["id"].combine_chunks(), self.alpha)
        drop = kept < self.threshold
        cause = np.where(drop, "quality.probability", "")
        return Verdict(drop, cause, {"quality.probability": probability})


def lomax(ids: pa.StringArray, alpha: float) -> NDArray[np.float64]:
    """A draw for each id, the same each time, of the distribution P(X > x) = (1 + x)^-alpha."""
    data, offsets = utf8_buffer(ids.cast(pa.large_string()))
    hashes = mix(span_hashes(data, offsets[:-1], offsets[1:]))
    uniform = ((hashes >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(uniform ** (-1 / alpha) - 1)
