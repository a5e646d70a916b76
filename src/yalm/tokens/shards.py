"""Token shards on disk: the `.bin`/`.idx` pair of Megatron-LM, read through memory maps.

The `.bin` holds the ids of all documents, one after the other. The `.idx` is little-endian: magic `MMIDIDX\\0\\0`,
uint64 version 1, uint8 type code, uint64 sequence count N, uint64 boundary count D + 1, int32 lengths[N], int64 byte
offsets[N], int64 documents[D + 1] (number of the first sequence of each document, then N). We write one sequence a
document; Megatron and NeoX may write several, which the reader accepts. Keeping the offsets costs 12 bytes a document
more than the lengths alone would, and buys a format that other trainers read as it is.
"""

import hashlib
import struct
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from yalm.atomic import atomic_file
from yalm.errors import YalmError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}

Tokens = NDArray[Any]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The type of the ids on disk: uint16 while all of `vocab_size` ids fit, else int32."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.int32)


class ShardFiles(NamedTuple):
    """What a writer left: counts, and the SHA-256 (hex) of both files."""

    documents: int
    tokens: int
    bin_sha256: str
    idx_sha256: str


class ShardWriter:
    """Writes `<prefix>.bin` and `<prefix>.idx`; both appear when the block ends without an exception, `.idx` last.

    After the block `files` holds counts and checksums. Memory: 4 bytes a document.
    """

    files: ShardFiles

    def __init__(self, prefix: str | Path, vocab_size: int) -> None:
        self._prefix = str(prefix)
        self._vocab_size = vocab_size
        self._dtype = token_dtype(vocab_size)
        self._lengths = array("i")
        self._sha256 = hashlib.sha256()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        temporary = self._stack.enter_context(atomic_file(Path(f"{self._prefix}.bin")))
        self._stream = self._stack.enter_context(open(temporary, "wb"))
        return self

    def add(self, ids: Sequence[int] | Tokens) -> None:
        """Append one document. ValueError for an id outside the vocabulary."""
        tokens = np.asarray(ids, dtype=np.int64)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self._vocab_size:
            raise ValueError(f"ids {tokens.min()}…{tokens.max()} do not fit a vocabulary of {self._vocab_size}")
        data = tokens.astype(self._dtype).tobytes()
        self._stream.write(data)
        self._sha256.update(data)
        self._lengths.append(tokens.size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is not None:
            return
        lengths = np.frombuffer(self._lengths, dtype=np.int32) if self._lengths else np.zeros(0, np.int32)
        ends = np.cumsum(lengths, dtype=np.int64)
        code = next(code for code, dtype in _DTYPES.items() if dtype == self._dtype)
        index = b"".join(
            (
                _HEADER.pack(_MAGIC, 1, code, len(lengths), len(lengths) + 1),
                lengths.astype("<i4").tobytes(),
                ((ends - lengths) * self._dtype.itemsize).astype("<i8").tobytes(),
                np.arange(len(lengths) + 1, dtype="<i8").tobytes(),
            )
        )
        with atomic_file(Path(f"{self._prefix}.idx")) as temporary:
            temporary.write_bytes(index)
        self.files = ShardFiles(
            documents=len(lengths),
            tokens=int(lengths.sum(dtype=np.int64)),
            bin_sha256=self._sha256.hexdigest(),
            idx_sha256=hashlib.sha256(index).hexdigest(),
        )


class Shard:
    """A shard seen as one stream of ids with document boundaries; nothing is read before it is asked for.

    `prefix` is the path without `.bin`/`.idx`. YalmError if a file is missing, is no such file, or has not the size
    that its header says. Attributes: `num_tokens`, `num_documents`, `num_sequences`, `dtype`.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = Path(str(prefix).removesuffix(".idx").removesuffix(".bin"))
        index = _map(f"{self.prefix}.idx")
        if len(index) < _HEADER.size or bytes(index[:9]) != _MAGIC:
            raise YalmError(f"{self.prefix}.idx: not an index of token shards; build it again with `yalm tokens build`")
        _, version, code, count, boundaries = _HEADER.unpack(bytes(index[: _HEADER.size]))
        if version != 1 or code not in _DTYPES:
            raise YalmError(f"{self.prefix}.idx: version {version} with type code {code} is not known; use version 1")
        if len(index) != _HEADER.size + 12 * count + 8 * boundaries or boundaries < 1:
            raise YalmError(f"{self.prefix}.idx: {len(index)} bytes do not fit its header (cut off?); build it again")
        self.dtype = np.dtype(_DTYPES[code])
        self.num_sequences = int(count)
        self.num_documents = int(boundaries) - 1
        at_offsets = _HEADER.size + 4 * self.num_sequences
        at_documents = at_offsets + 8 * self.num_sequences
        self._lengths = index[_HEADER.size : at_offsets].view("<i4")
        self._offsets = index[at_offsets:at_documents].view("<i8")
        self._documents = index[at_documents:].view("<i8")
        data = _map(f"{self.prefix}.bin")
        end = int(self._offsets[-1]) + int(self._lengths[-1]) * self.dtype.itemsize if self.num_sequences else 0
        if len(data) != end or int(self._documents[-1]) != self.num_sequences:
            raise YalmError(
                f"{self.prefix}.bin: {len(data)} bytes, but the index says {end} (cut off, or of another build?); "
                "build it again"
            )
        self._tokens = data.view(self.dtype)
        self.num_tokens = len(self._tokens)

    def read(self, start: int = 0, stop: int | None = None) -> Tokens:
        """Ids start…stop of the stream, as a view of the file, `(stop - start,)`."""
        return self._tokens[start:stop]

    def document(self, number: int) -> Tokens:
        """The ids of one document, `(length,)`, as a view of the file. IndexError if there is none of that number."""
        if not 0 <= number < self.num_documents:
            raise IndexError(f"document {number} of {self.num_documents}")
        return self._tokens[self._start(number) : self._start(number + 1)]

    def document_starts(self, start: int, stop: int) -> NDArray[np.int64]:
        """Positions p with start ≤ p < stop at which a document with at least one token begins, ascending, int64."""
        first = bisect_left(range(self.num_documents), start, key=self._start)
        last = bisect_left(range(self.num_documents), stop, key=self._start)
        starts = {self._start(number) for number in range(first, last)}
        return np.array(sorted(starts - {self.num_tokens}), dtype=np.int64)

    def _start(self, document: int) -> int:
        """The position of a document's first token; the end of the stream for a document past all sequences."""
        sequence = int(self._documents[document])
        return int(self._offsets[sequence]) // self.dtype.itemsize if sequence < self.num_sequences else self.num_tokens


def _map(path: str) -> NDArray[np.uint8]:
    """A file as mapped bytes (an empty array for an empty file); YalmError if it cannot be read."""
    try:
        return np.asarray(np.memmap(path, np.uint8, "r")) if Path(path).stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise YalmError(f"{path}: cannot read the token shard ({error.strerror}); check the path") from None
