"""Batches: sample number n of a mixture as tensors, so that a count of samples is the whole state of the data.

A part's shards are one stream of tokens. Its sequence k is tokens k·T … (k+1)·T inclusive, one more than the
`sequence_length` T: the last token is the target of the last input, and the first input of sequence k + 1. So in an
epoch every token is an input once and a target once; only the stream's first token is never a target, and the last
few, fewer than a sequence, are left out. Documents are packed without padding; `Batch.documents` tells them apart for
whoever wants attention to stop between them.

Samples depend on (seed, parts, n) alone: any rank may ask for any range, and a run stopped after n samples goes on
at n.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from yalm.errors import YalmError
from yalm.tokens.folder import TokenFolder
from yalm.tokens.mixture import Mixture, PartSettings


@dataclass(frozen=True)
class Batch:
    """Sequences of one length.

    `tokens`: int64 (count, seq + 1). `documents`: int64 (count, seq), the number of the document that each input is of,
    counted from 0 in its sequence.
    """

    tokens: Tensor
    documents: Tensor

    @property
    def inputs(self) -> Tensor:
        """The ids to read, a view (count, seq)."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """The ids to predict, one after each input, a view (count, seq)."""
        return self.tokens[:, 1:]


class Batches:
    """The samples of a mixture of token folders.

    YalmError if a folder cannot be opened, or its ids come from another tokenizer than the first part's.
    Attributes: `mixture` (its `report` and `num_samples`), `folders`, `sequence_length`, `vocab_size`,
    `tokenizer_sha256`.
    """

    def __init__(self, parts: Sequence[PartSettings], sequence_length: int, seed: int = 0) -> None:
        if sequence_length < 1:
            raise YalmError(f"sequence_length = {sequence_length}: must be at least 1")
        self.folders = [TokenFolder(part.path) for part in parts]
        for folder in self.folders:
            if folder.manifest.tokenizer_sha256 != self.folders[0].manifest.tokenizer_sha256:
                raise YalmError(
                    f"{folder.path}: made with another tokenizer than {self.folders[0].path}; "
                    "build all parts of a mixture with one tokenizer"
                )
        sizes = [num_windows(folder, sequence_length) for folder in self.folders]
        named = [
            part.model_copy(update={"language": part.language or folder.language})
            for part, folder in zip(parts, self.folders, strict=True)
        ]
        self.mixture = Mixture(named, sizes, sequence_length, seed)
        self.sequence_length = sequence_length
        self.vocab_size = self.folders[0].vocab_size
        self.tokenizer_sha256 = self.folders[0].manifest.tokenizer_sha256

    def sample(self, n: int) -> NDArray[np.int64]:
        """The tokens of sample `n` (from 0), int64 (seq + 1,). YalmError past the mixture's caps."""
        place = self.mixture.place(n)
        return _window(self.folders[place.part], place.sequence, self.sequence_length)[0]

    def batch(self, first: int, count: int, stride: int = 1) -> Batch:
        """Samples first, first + stride, … (`count` of them). YalmError past the mixture's caps."""
        places = [self.mixture.place(n) for n in range(first, first + count * stride, stride)]
        return _stack([_window(self.folders[place.part], place.sequence, self.sequence_length) for place in places])

    def prefetch(self, ranges: Iterable[tuple[int, int]], ahead: int = 2) -> Generator[Batch, None, None]:
        """`batch(first, count)` for each of `ranges`, read by one thread that keeps up to `ahead` batches ready.

        An exception of the thread is raised here, at its batch. Closing the generator ends the thread.
        """
        waiting: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(1, "prefetch") as thread:
            for first, count in ranges:
                waiting.append(thread.submit(self.batch, first, count))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()


def num_windows(folder: TokenFolder, sequence_length: int) -> int:
    """How many sequences of `sequence_length` inputs, each with its targets, a folder's stream holds."""
    return max(folder.num_tokens - 1, 0) // sequence_length


def windows(
    folder: TokenFolder, sequence_length: int, batch_size: int = 1, limit: int | None = None
) -> Iterator[Batch]:
    """The first `limit` (all by default) sequences of a folder in order, in batches of up to `batch_size`.

    For validation: always the same sequences. YalmError, at the first one, if the folder has not one.
    """
    total = num_windows(folder, sequence_length)
    if not total:
        raise YalmError(
            f"{folder.path}: has not one sequence of {sequence_length} tokens; use a shorter sequence_length"
        )
    total = total if limit is None else min(total, limit)
    for first in range(0, total, batch_size):
        numbers = range(first, min(first + batch_size, total))
        yield _stack([_window(folder, number, sequence_length) for number in numbers])


def _window(folder: TokenFolder, number: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sequence `number` of a folder: tokens int64 (length + 1,), document numbers of the inputs int64 (length,)."""
    start = number * length
    documents = np.zeros(length, np.int64)
    documents[folder.document_starts(start + 1, start + length) - start] = 1
    return folder.read(start, start + length + 1).astype(np.int64), np.cumsum(documents)


def _stack(rows: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> Batch:
    tokens, documents = zip(*rows, strict=True)
    return Batch(torch.from_numpy(np.stack(tokens)), torch.from_numpy(np.stack(documents)))
