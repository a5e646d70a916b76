"""Parquet files with named columns, and Hugging Face dataset folders as they lie on disk.

Both are read batch by batch, and only in the columns that are used. A dataset folder may hold Parquet, Arrow (as
`save_to_disk` leaves it), JSON lines and CSV; its data files are read as they are, without the `datasets` package, and
a loading script in it is never run.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from yalm.corpus.document import Reject
from yalm.corpus.sources.records import Records, Row, json_rows
from yalm.errors import YalmError
from yalm.streams import LINE_LIMIT, BrokenFile, open_bytes, sample

_ARROW_FILE = b"ARROW1\0\0"
_BATCH = 64  # rows decoded at a time; a book may be a megabyte


class _Tables(Records):
    """What sources of tables have in common: only the columns that are used are decoded."""

    def _columns(self, names: list[str]) -> list[str]:
        """The columns to read, of all there are; none if there is none with texts."""
        found = [_column(field, names) for field in self.fields]
        if not found[0]:
            return []
        return names if self.keep_meta else sorted(set(found) - {""})

    def _parquet_rows(self, file: Path, advance: Callable[[int], None]) -> Iterator[Row]:
        number = told = 0
        try:
            size = file.stat().st_size
            # Unbuffered, a whole row group would be read before its first row is decoded.
            with pq.ParquetFile(file, buffer_size=1 << 18, pre_buffer=False) as parquet:
                columns = self._columns(parquet.schema_arrow.names)
                if not columns:
                    yield 0, _no_text_column(file, parquet.schema_arrow.names)
                    return
                for batch in parquet.iter_batches(_BATCH, columns=columns, use_threads=False):
                    yield from _batch_rows(file, batch, number)
                    number += batch.num_rows
                    share = size * number // parquet.metadata.num_rows
                    advance(share - told)
                    told = share
                advance(size - told)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            yield number + 1, _broken(file, number + 1, "broken Parquet", error)

    def _arrow_rows(self, file: Path, advance: Callable[[int], None]) -> Iterator[Row]:
        number = 0
        try:
            with open(file, "rb") as start:
                magic = start.read(len(_ARROW_FILE))
            with open_bytes(file, advance) as stream:
                if magic == _ARROW_FILE:  # what follows the mark of the file format is a stream, its table comes last
                    stream.read(len(_ARROW_FILE))
                for batch in ipc.open_stream(stream):
                    columns = self._columns(batch.schema.names)
                    if not columns:
                        yield 0, _no_text_column(file, batch.schema.names)
                        return
                    chosen = batch.select(columns)
                    chosen.validate(full=True)  # Arrow believes offsets unless asked to check them
                    for first in range(0, batch.num_rows, _BATCH):
                        yield from _batch_rows(file, chosen.slice(first, _BATCH), number + first)
                    number += batch.num_rows
        except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
            yield number + 1, _broken(file, number + 1, "broken Arrow data", error)


class Parquet(_Tables):
    """Parquet files with named columns."""

    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    kind: Literal["parquet"] = "parquet"

    def rows(self, file: Path, advance: Callable[[int], None]) -> Iterator[Row]:
        yield from self._parquet_rows(file, advance)


class HuggingFace(_Tables):
    """Dataset folders: a repository of data files, or what `save_to_disk` wrote.

    `split` takes the files whose path says it (`train-00000-of-00002.parquet`, `train/data-00000-of-00001.arrow`);
    without it all are read.
    """

    suffixes: ClassVar[tuple[str, ...]] = (
        ".parquet",
        ".arrow",
        *(f"{kind}{ending}" for kind in (".jsonl", ".json", ".csv", ".tsv") for ending in ("", ".gz", ".zst", ".bz2")),
    )

    kind: Literal["huggingface"] = "huggingface"
    split: str | None = None

    def files(self) -> list[Path]:
        roots = [Path(path) for path in self.paths]
        found = [
            (file, next((file.relative_to(root) for root in roots if file.is_relative_to(root)), file))
            for file in super().files()
        ]
        data = [(file, inner) for file, inner in found if not _is_bookkeeping(inner)]
        if self.split is None:
            return [file for file, _ in data]
        word = re.compile(rf"(?<![^\W_]){re.escape(self.split)}(?![^\W_])")
        files = [file for file, inner in data if word.search(inner.as_posix() if inner.parts else file.name)]
        if not files:
            raise YalmError(f"{', '.join(self.paths)}: no file of the split {self.split!r}; name another or none")
        return files

    def rows(self, file: Path, advance: Callable[[int], None]) -> Iterator[Row]:
        formats = set(file.suffixes[-2:])
        if ".parquet" in formats:
            yield from self._parquet_rows(file, advance)
        elif ".arrow" in formats:
            yield from self._arrow_rows(file, advance)
        elif formats & {".csv", ".tsv"}:
            yield from csv_rows(file, advance, "\t" if ".tsv" in formats else ",")
        else:
            yield from json_rows(file, advance)


def csv_rows(file: Path, advance: Callable[[int], None], delimiter: str = ",") -> Iterator[Row]:
    """The rows of a CSV file (UTF-8, names in the first row), counted from 1 without that one."""
    number = 0
    csv.field_size_limit(LINE_LIMIT)
    try:
        with io.TextIOWrapper(open_bytes(file, advance), "utf-8-sig", "replace", newline="") as text:
            for number, row in enumerate(csv.DictReader(text, delimiter=delimiter), start=1):
                row.pop(None, None)  # what stands beyond the last name
                yield number, row
    except csv.Error:
        yield number + 1, Reject(f"{file}:{number + 1}", "broken CSV")
    except BrokenFile as error:
        yield number + 1, Reject(f"{file}:{number + 1}", error.reason)


def _batch_rows(file: Path, batch: pa.RecordBatch, before: int) -> Iterator[Row]:
    """The rows of a batch; one that Python cannot hold (bytes not in UTF-8, times beyond its years) is a reject."""
    for column, field in enumerate(batch.schema):
        if pa.types.is_timestamp(field.type) and field.type.unit == "ns":  # Python's times are microseconds
            micro = pa.timestamp("us", field.type.tz)
            batch = batch.set_column(column, field.name, batch.column(column).cast(micro, safe=False))
    try:
        yield from enumerate(batch.to_pylist(), start=before + 1)
    except (ValueError, OverflowError):
        for row in range(batch.num_rows):
            number = before + row + 1
            try:
                yield number, batch.slice(row, 1).to_pylist()[0]
            except (ValueError, OverflowError) as error:
                yield number, Reject(f"{file}:{number}", "unreadable value", sample(str(error)))


def _column(field: str, names: list[str]) -> str:
    """The column a field is in, be it nested; empty if there is none."""
    outer = field.partition(".")[0]
    return field if field in names else outer if outer in names else ""


def _no_text_column(file: Path, names: list[str]) -> Reject:
    return Reject(str(file), "no text column", sample(", ".join(names)))


def _is_bookkeeping(inner: Path) -> bool:
    """Whether a file, by its path in the folder, holds no data: hidden, a cache of `datasets`, a description."""
    return (
        any(part.startswith(".") for part in inner.parts)
        or inner.name.startswith("cache-")
        or inner.name in ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
    )


def _broken(file: Path, number: int, reason: str, error: Exception) -> Reject:
    """The last reject of a file whose content is broken; YalmError if it cannot be read at all."""
    if isinstance(error, OSError) and error.errno is not None:
        raise YalmError(f"{file}: cannot read the file ({error.strerror}); check the path") from None
    return Reject(f"{file}:{number}", reason, sample(str(error)))
