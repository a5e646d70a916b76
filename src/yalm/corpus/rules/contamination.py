"""Contamination: documents that hold text a model is going to be evaluated on.

As for GPT-3 (Brown et al. 2020, appendix C), a run of 13 words in common is taken for a copy. The runs of all
evaluation texts are one sorted array of hashes, 8 bytes a run, which every process makes once from the texts; a
document costs one binary search for each of its words. It counts runs, not a share of them: a long page may hold a
whole test set.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from yalm.corpus.rules.rule import Batch, Rule, Verdict, decide, untouched
from yalm.corpus.words import Words, among
from yalm.tokens.documents import find_files, read_texts

_TOGETHER = 1 << 20  # characters of evaluation texts hashed at a time


class Contamination(Rule):
    """Drops documents that share more than `max_shared` runs of `words` words with the evaluation texts.

    An evaluation text of fewer words is found only where it is a whole document. Without texts all is kept.
    """

    name: ClassVar[str] = "contamination"

    texts: tuple[str, ...] = Field(default=(), description="files or folders of evaluation texts")
    text_field: str = Field(default="text", description="the field of their JSON lines that holds the text")
    words: int = Field(default=13, ge=1, description="words in a run")
    max_shared: int = Field(default=0, ge=0, description="runs in common that a document may have")

    @property
    def files(self) -> tuple[Path, ...]:
        """The evaluation files; YalmError if there are none where `texts` says."""
        return tuple(find_files(self.texts)) if self.texts else ()

    @cached_property
    def _runs(self) -> NDArray[np.uint64]:
        """The hashes of all runs of the evaluation texts, ascending, each once."""
        parts = [
            np.unique(Words(part).shingles(self.words).values)
            for part in _parts(read_texts(self.texts, self.text_field))
        ]
        return np.unique(np.concatenate([np.empty(0, np.uint64), *parts]))

    def judge(self, batch: Batch) -> Verdict:
        """Measures `contamination.shared`, how many runs are shared; YalmError if a text cannot be read."""
        if not self.texts:
            return untouched(batch)
        runs = batch.words.shingles(self.words)
        shared = among(runs.values, self._runs)
        before = np.concatenate(([0], np.cumsum(shared)))
        counts = (before[runs.offsets[1:]] - before[runs.offsets[:-1]]).astype(np.float64)
        limit = float(self.max_shared)
        return decide({"contamination.shared": counts}, {"contamination.shared": (None, limit)})


def _parts(texts: Iterable[str]) -> Iterator[pa.LargeStringArray]:
    """The texts in arrays of about a megabyte; lone surrogates become U+FFFD, as they do in documents."""
    part: list[str] = []
    size = 0
    for text in texts:
        part.append(text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"))
        size += len(text)
        if size > _TOGETHER:
            yield pa.array(part, pa.large_string())
            part, size = [], 0
    yield pa.array(part, pa.large_string())
