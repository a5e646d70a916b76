"""Text files to a folder of token shards, in parallel, restartable, with the same bytes for any number of workers.

The documents of all inputs form one stream, cut into chunks of `shard_bytes` raw bytes; chunk i becomes shard i, and
one worker process parses, encodes and writes it. The main process only decompresses, cuts and hashes, a few hundred
MB/s, which feeds some tens of workers. Where a shard begins depends on the input alone, so neither the number of
workers nor an interruption changes a byte. After a kill the input is read again, but a shard is encoded again only if
the record beside it does not name exactly this content and these checksums: reading is cheap, encoding is not.
"""

import hashlib
import json
import multiprocessing
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from yalm.atomic import atomic_file
from yalm.errors import YalmError
from yalm.tokens.documents import RawDocument, find_files, read_raw
from yalm.tokens.folder import (
    MANIFEST,
    TOKENIZER,
    Manifest,
    ShardRecord,
    SourceRecord,
    TokenFolder,
    file_sha256,
    read_record,
    write_record,
)
from yalm.tokens.shards import ShardWriter, token_dtype
from yalm.tokens.tokenizer import Tokenizer

_ENCODE_AT_ONCE = 256  # documents handed to the tokenizer in one call


@dataclass
class _Chunk:
    """Consecutive raw documents for one shard; `input_bytes` is how far into the inputs they reach."""

    number: int
    documents: list[RawDocument] = field(default_factory=list)
    size: int = 0
    input_bytes: int = 0


class _Job(NamedTuple):
    """What all shards of a build have in common."""

    output: Path
    text_field: str


def build_shards(
    inputs: Sequence[str | Path],
    tokenizer: Tokenizer | str | Path,
    output: str | Path,
    *,
    workers: int = 1,
    text_field: str = "text",
    language: str | None = None,
    shard_bytes: int = 64 << 20,
) -> TokenFolder:
    """Encode all documents of `inputs` (see `documents.find_files`) into the folder `output`.

    A document becomes `<s> pieces… </s>`; empty ones are left out and counted. A shard holds about `shard_bytes` of raw
    input; each worker needs a few times as much memory. The same call after an interruption goes on where it stopped.
    YalmError for input that cannot be read (naming file and line), or an `output` that another tokenizer built.
    """
    tokenizer = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer(tokenizer)
    if workers < 1 or shard_bytes < 1:
        raise YalmError(f"workers = {workers}, shard_bytes = {shard_bytes}: both must be at least 1")
    files = find_files(inputs)
    job = _Job(Path(output), text_field)
    _prepare(job, tokenizer)
    sources: list[SourceRecord] = []
    shards: list[ShardRecord] = []
    with _progress(sum(file.stat().st_size for file in files)) as advance:
        for chunk, record in _results(_chunks(files, shard_bytes, sources), job, workers):
            shards.append(record)
            advance(chunk.input_bytes, shards)
    if not sum(record.documents for record in shards):
        raise YalmError(f"{', '.join(map(str, inputs))}: no document has any text; check the input and its text field")
    _drop_leftovers(job.output, len(shards))
    manifest = Manifest(
        tokenizer_sha256=tokenizer.sha256,
        vocab_size=tokenizer.vocab_size,
        dtype=token_dtype(tokenizer.vocab_size).name,
        text_field=text_field,
        language=language,
        documents=sum(record.documents for record in shards),
        empty_documents=sum(record.empty_documents for record in shards),
        tokens=sum(record.tokens for record in shards),
        text_bytes=sum(record.text_bytes for record in shards),
        sources=tuple(sources),
        shards=tuple(shards),
    )
    write_record(job.output / MANIFEST, manifest)
    return TokenFolder(job.output)


def _prepare(job: _Job, tokenizer: Tokenizer) -> None:
    """Make the folder, put the tokenizer into it, and take away the manifest until the build is done."""
    kept = job.output / TOKENIZER
    try:
        job.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise YalmError(f"{job.output}: cannot make the folder ({error.strerror}); choose another") from None
    if kept.exists() and file_sha256(kept) != tokenizer.sha256:
        raise YalmError(f"{job.output}: was built with another tokenizer; choose another folder, or remove this one")
    if not kept.exists():
        with atomic_file(kept) as temporary:
            shutil.copyfile(tokenizer.file, temporary)
    (job.output / MANIFEST).unlink(missing_ok=True)


def _chunks(files: Sequence[Path], shard_bytes: int, sources: list[SourceRecord]) -> Iterator[_Chunk]:
    """The documents of all files, cut into chunks; a record of each file read is added to `sources`."""
    chunk = _Chunk(0)
    before = 0
    for file in files:
        size, sha256 = 0, hashlib.sha256()

        def advance(more: int) -> None:
            nonlocal size
            size += more

        for document in read_raw(file, advance, sha256):
            chunk.documents.append(document)
            chunk.size += len(document.data)
            if chunk.size >= shard_bytes:
                chunk.input_bytes = before + size
                yield chunk
                chunk = _Chunk(chunk.number + 1)
        before += size
        sources.append(SourceRecord(file=str(file), size=size, sha256=sha256.hexdigest()))
    if chunk.documents:
        chunk.input_bytes = before
        yield chunk


def _results(chunks: Iterator[_Chunk], job: _Job, workers: int) -> Iterator[tuple[_Chunk, ShardRecord]]:
    """Each chunk with the record of its shard, in order; at most `workers` + 1 chunks wait in memory."""
    if workers == 1:
        tokenizer = Tokenizer(job.output / TOKENIZER)
        for chunk in chunks:
            yield chunk, _make_shard(chunk, job, tokenizer)
        return
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[_Chunk, Future[ShardRecord]]] = deque()
    with ProcessPoolExecutor(workers, context, _start_worker, (job,)) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_work, chunk)))
                if len(waiting) > workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        except BrokenProcessPool:
            raise YalmError("a worker process died, perhaps of memory; use fewer workers or smaller shards") from None
        finally:
            pool.shutdown(cancel_futures=True)


_worker: tuple[_Job, Tokenizer]  # of this worker process


def _start_worker(job: _Job) -> None:
    global _worker
    _worker = job, Tokenizer(job.output / TOKENIZER)


def _work(chunk: _Chunk) -> ShardRecord:
    return _make_shard(chunk, *_worker)


def _make_shard(chunk: _Chunk, job: _Job, tokenizer: Tokenizer) -> ShardRecord:
    """Encode one chunk into a shard with its record, or find that this has been done."""
    name = f"shard-{chunk.number:06d}"
    prefix, record_file = job.output / name, job.output / f"{name}.json"
    content = hashlib.sha256(json.dumps([tokenizer.sha256, job.text_field]).encode())
    for document in chunk.documents:
        content.update(b"%d %d\n" % (len(document.data), document.line > 0))
        content.update(document.data)
    if (finished := _finished(record_file, prefix, content.hexdigest())) is not None:
        return finished
    text_bytes = empty = 0
    with ShardWriter(prefix, tokenizer.vocab_size) as writer:
        for first in range(0, len(chunk.documents), _ENCODE_AT_ONCE):
            batch = chunk.documents[first : first + _ENCODE_AT_ONCE]
            texts = [text for document in batch if (text := document.text(job.text_field))]
            empty += len(batch) - len(texts)
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                text_bytes += len(text.encode("utf-8", "surrogatepass"))
                writer.add([*ids, tokenizer.eos_id])
    record = ShardRecord(
        name=name,
        content_sha256=content.hexdigest(),
        empty_documents=empty,
        text_bytes=text_bytes,
        **writer.files._asdict(),
    )
    write_record(record_file, record)
    return record


def _finished(record_file: Path, prefix: Path, content_sha256: str) -> ShardRecord | None:
    """The record of a shard made of this content, if its files are whole."""
    try:
        record = read_record(record_file, ShardRecord)
    except YalmError:
        return None
    same = (
        record.content_sha256 == content_sha256
        and file_sha256(prefix.with_suffix(".bin")) == record.bin_sha256
        and file_sha256(prefix.with_suffix(".idx")) == record.idx_sha256
    )
    return record if same else None


def _drop_leftovers(output: Path, count: int) -> None:
    """Remove what earlier builds left here: shards numbered from `count` on, and files that were never finished."""
    for file in output.glob("shard-*.*"):
        number = file.stem.removeprefix("shard-")
        if number.isdigit() and int(number) >= count:
            file.unlink(missing_ok=True)
    for file in output.glob(".shard-*.partial"):
        file.unlink(missing_ok=True)


@contextmanager
def _progress(total_bytes: int) -> Iterator[Callable[[int, list[ShardRecord]], None]]:
    """A bar on the error stream, shown if that is a terminal; the function given moves it.

    Its arguments: how many input bytes are done, and the records of all shards so far.
    """
    console = Console(stderr=True)
    columns = (TextColumn("encoding"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    started = time.monotonic()
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("encoding", total=total_bytes, rate="")

        def advance(input_bytes: int, shards: list[ShardRecord]) -> None:
            seconds = max(time.monotonic() - started, 1e-9)
            documents = sum(shard.documents for shard in shards) / seconds
            megabytes = sum(shard.text_bytes for shard in shards) / seconds / 1e6
            progress.update(task, completed=input_bytes, rate=f"{documents:,.0f} docs/s  {megabytes:.1f} MB/s")

        yield advance
