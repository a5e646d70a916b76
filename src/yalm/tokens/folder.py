"""A folder of token shards: the manifest that says what is in it, and its shards as one long stream.

`manifest.json` is written last by `build.build_shards`, so a folder without one is unfinished. It holds every count and
checksum; opening a folder reads only it (and checks each shard's size when that shard is first read), while `verify`
reads every byte. A `shard-….json` record beside each shard lets an interrupted build go on.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from yalm.atomic import write_text
from yalm.config import Settings
from yalm.errors import YalmError
from yalm.tokens.shards import Shard, Tokens

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"

_Record = TypeVar("_Record", bound=Settings)


class SourceRecord(Settings):
    """An input file: its path as it was given, its size in bytes and SHA-256 (hex) as it stood."""

    file: str
    size: int
    sha256: str


class ShardRecord(Settings):
    """A finished shard: what it was made from (`content_sha256`: documents, tokenizer, field) and what came out."""

    name: str
    content_sha256: str
    documents: int
    empty_documents: int
    tokens: int
    text_bytes: int
    bin_sha256: str
    idx_sha256: str


class Manifest(Settings):
    """What a folder of tokens holds. `text_bytes` counts the documents' text in UTF-8; tokens include `<s>`, `</s>`."""

    version: Literal[1] = 1
    tokenizer_sha256: str
    vocab_size: int
    dtype: str
    text_field: str
    language: str | None = None
    documents: int
    empty_documents: int
    tokens: int
    text_bytes: int
    sources: tuple[SourceRecord, ...]
    shards: tuple[ShardRecord, ...]


class TokenFolder:
    """All shards of a folder as one stream of ids with document boundaries.

    YalmError if the folder has no (valid) manifest. Attributes: `path`, `manifest`; shards are opened when first read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / MANIFEST).exists():
            raise YalmError(f"{path}: no {MANIFEST}, so no finished token folder; build it with `yalm tokens build`")
        self.manifest = read_record(self.path / MANIFEST, Manifest)
        self._ends = list(accumulate(shard.tokens for shard in self.manifest.shards))
        self._shards: dict[int, Shard] = {}

    @property
    def num_tokens(self) -> int:
        """Length of the stream."""
        return self.manifest.tokens

    @property
    def num_documents(self) -> int:
        """Number of documents in the stream."""
        return self.manifest.documents

    @property
    def text_bytes(self) -> int:
        """Size of the documents' text in UTF-8, which makes bits per byte of a loss."""
        return self.manifest.text_bytes

    @property
    def language(self) -> str | None:
        """The language named when the folder was built."""
        return self.manifest.language

    @property
    def vocab_size(self) -> int:
        """Size of the vocabulary that the ids are from."""
        return self.manifest.vocab_size

    @property
    def tokenizer_file(self) -> Path:
        """The copy of the tokenizer that made the ids."""
        return self.path / TOKENIZER

    def read(self, start: int, stop: int) -> Tokens:
        """Ids start…stop of the stream, `(stop - start,)`, in the type on disk; a view unless it spans shards.

        IndexError if the range does not lie in the stream.
        """
        parts = [shard.read(first, last) for _, shard, first, last in self._spans(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros(0, self.manifest.dtype)

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Positions p of the stream with start ≤ p < stop at which a document begins, ascending, int64."""
        parts = [shard.document_starts(first, last) + base for base, shard, first, last in self._spans(start, stop)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def documents(self) -> Iterator[Tokens]:
        """The ids of each document in order, `<s>` and `</s>` included."""
        for number in range(len(self._ends)):
            shard = self._shard(number)
            for document in range(shard.num_documents):
                yield shard.document(document)

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, Shard, int, int]]:
        """The shards that start…stop touches: (position of the shard in the stream, shard, first, last within it)."""
        if not 0 <= start <= stop <= self.num_tokens:
            raise IndexError(f"tokens {start}…{stop} of {self.num_tokens} in {self.path}")
        number = bisect_right(self._ends, start)
        while start < stop:
            base = self._ends[number] - self.manifest.shards[number].tokens
            last = min(stop, self._ends[number])
            if last > start:
                yield base, self._shard(number), start - base, last - base
            start, number = last, number + 1

    def _shard(self, number: int) -> Shard:
        if number not in self._shards:
            record = self.manifest.shards[number]
            shard = Shard(self.path / record.name)
            if (shard.num_tokens, shard.num_documents) != (record.tokens, record.documents):
                raise YalmError(f"{shard.prefix}: not the shard that {MANIFEST} names; build the folder again")
            self._shards[number] = shard
        return self._shards[number]


def verify(path: str | Path) -> Manifest:
    """Read every byte of a folder; YalmError names the first file that differs from the manifest."""
    folder = TokenFolder(path)
    expected = {TOKENIZER: folder.manifest.tokenizer_sha256}
    for shard in folder.manifest.shards:
        expected |= {f"{shard.name}.bin": shard.bin_sha256, f"{shard.name}.idx": shard.idx_sha256}
    for name, sha256 in expected.items():
        if file_sha256(folder.path / name) != sha256:
            raise YalmError(f"{folder.path / name}: differs from {MANIFEST}; run the same `yalm tokens build` again")
    return folder.manifest


def file_sha256(file: Path) -> str:
    """SHA-256 (hex) of a file; empty if it cannot be read."""
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return ""


def read_record(file: Path, kind: type[_Record]) -> _Record:
    """A manifest or shard record from JSON; YalmError if it cannot be read or is not one."""
    try:
        values: Any = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise YalmError(f"{file}: cannot be read ({error}); build the folder again with `yalm tokens build`") from None
    if not isinstance(values, dict):
        raise YalmError(f"{file}: holds no object; build the folder again with `yalm tokens build`")
    return kind.parse(values, source=str(file))


def write_record(file: Path, record: Settings) -> None:
    """Write a manifest or shard record as JSON, whole or not at all."""
    write_text(file, record.model_dump_json(indent=1) + "\n")
