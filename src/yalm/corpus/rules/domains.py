"""Domains of repetitive texts, such as shops, dropped whole.

Two things give a repetitive domain away: most of its documents are near-duplicates, or most of what the others hold is
template text, lines that stand in many of its documents. Both are sums, so every shard is counted alone, and the
counts of all shards are added up by Daft, one range of domains at a time: memory is that of one range, for the price
of one number for each distinct line of each domain on the disk (about a tenth of the text). The domain is the host
without "www.", not the registrable domain, for on blog hosts every author has a host of his own.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

from yalm.config import Settings
from yalm.corpus.words import span_hashes, utf8_buffer

_BATCH = 4 << 20  # bytes of text whose lines are found at a time
_RANGE = 1_000_000  # rows of line counts that are added up at a time

# What one shard knows of each domain; `key` is the hash of the domain. `line_bytes` are those of the lines of documents
# that are no near-duplicates, the rest is of all documents.
DOMAIN_COUNTS = pa.schema(
    [
        ("key", pa.uint64()),
        ("domain", pa.string()),
        ("documents", pa.int64()),
        ("bytes", pa.int64()),
        ("duplicates", pa.int64()),
        ("line_bytes", pa.int64()),
    ]
)
# What one shard knows of each line of each domain, of documents that are no near-duplicates, in the order of keys: in
# how many documents it stands and the bytes of all its occurrences.
LINE_COUNTS = pa.schema([("key", pa.uint64()), ("line", pa.uint64()), ("documents", pa.int64()), ("bytes", pa.int64())])
# What becomes of each domain; `reason` is empty where it is kept.
DOMAINS = pa.schema(
    [
        ("domain", pa.string()),
        ("documents", pa.int64()),
        ("bytes", pa.int64()),
        ("duplicate_share", pa.float64()),
        ("template_share", pa.float64()),
        ("dropped", pa.bool_()),
        ("reason", pa.string()),
    ]
)


class DomainsSettings(Settings):
    """Which domains fall.

    min_documents        domains with fewer documents are kept, whatever they hold
    max_duplicate_share  of the documents. Pages that were crawled twice, under two addresses, make it a half
    template_documents   a line is template text if it stands in at least as many documents of its domain
    max_template_share   of the bytes in lines, of documents that are no near-duplicates
    deny, allow          domains always dropped and always kept, with all below them; the longest name decides
    """

    min_documents: int = Field(default=20, ge=1)
    max_duplicate_share: float = Field(default=0.75, ge=0, le=1)
    template_documents: int = Field(default=10, ge=2)
    max_template_share: float = Field(default=0.5, ge=0, le=1)
    deny: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()


def domain_of(url: str) -> str:
    """The host of an address, lower-cased, in ASCII (punycode), without "www."; empty if there is none."""
    try:
        host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
        if not host.isascii():
            host = host.encode("idna").decode()
    except ValueError:  # which a UnicodeError is too
        return ""
    return host.rstrip(".").removeprefix("www.")


def count_domains(table: pa.Table, duplicates: pa.Table) -> tuple[pa.Table, pa.Table]:
    """What one shard knows of its domains: tables in DOMAIN_COUNTS and LINE_COUNTS, in the order of keys.

    table       documents, in `document.SCHEMA`; those without a url do not count
    duplicates  has the `uid` of all near-duplicates that are cut
    """
    names = pa.array([domain_of(url) for url in table["url"].to_pylist()], pa.large_string())
    domain_data, domain_offsets = utf8_buffer(names)
    keys = span_hashes(domain_data, domain_offsets[:-1], domain_offsets[1:])
    cut = np.isin(table["uid"].to_numpy(), duplicates["uid"].to_numpy())
    on_web = np.diff(domain_offsets) > 0
    line_bytes = np.zeros(len(table), np.int64)
    sizes, lines = [], [LINE_COUNTS.empty_table()]
    for begin, texts in _batches(table["text"]):
        data, offsets = utf8_buffer(texts)
        sizes.append(np.diff(offsets))
        starts, ends, documents = _lines(data, offsets)
        documents += begin
        line_bytes += np.bincount(documents, ends - starts, len(table)).astype(np.int64)
        counted = on_web[documents] & ~cut[documents]
        found = pa.table(
            {
                "document": documents[counted],
                "key": keys[documents[counted]],
                "line": span_hashes(data, starts, ends)[counted],
                "bytes": (ends - starts)[counted],
            }
        )
        of_documents = _sums(found, ["document", "key", "line"], ["bytes"])
        ones = pa.array(np.ones(len(of_documents), np.int64))
        lines.append(_sums(of_documents.append_column("documents", ones), ["key", "line"], ["documents", "bytes"]))
    documents_table = pa.table(
        {
            "key": keys,
            "domain": names.cast(pa.string()),
            "documents": np.ones(len(table), np.int64),
            "bytes": np.concatenate([np.zeros(0, np.int64), *sizes]),
            "duplicates": cut.astype(np.int64),
            "line_bytes": np.where(cut, 0, line_bytes),
        }
    ).filter(pa.array(on_web))
    domains = _sums(documents_table, ["key", "domain"], ["documents", "bytes", "duplicates", "line_bytes"])
    return domains, _sums(pa.concat_tables(lines), ["key", "line"], ["documents", "bytes"])


def add_counts(counts: Sequence[tuple[pa.Table, pa.Table]]) -> tuple[pa.Table, pa.Table]:
    """The counts of several parts of a shard as those of one, again in the order of keys."""
    domains, lines = (pa.concat_tables(tables) for tables in zip(*counts, strict=True))
    return (
        _sums(domains, ["key", "domain"], DOMAIN_COUNTS.names[2:]),
        _sums(lines, ["key", "line"], LINE_COUNTS.names[2:]),
    )


def judge_domains(domains: Sequence[Path], lines: Sequence[Path], settings: DomainsSettings) -> pa.Table:
    """All domains and what becomes of them, in DOMAINS, from the counts of all shards as Parquet files.

    Runs on the runner that Daft is set to. Holds one row a domain, besides the counts of one range of keys.
    """
    rows = sum(pq.read_metadata(path).num_rows for path in lines)
    ranges = max(1, -(-rows // _RANGE))
    bounds = [2**64 * i // ranges for i in range(ranges + 1)]
    parts = [_add_up(domains, lines, low, high - 1, settings.template_documents) for low, high in pairwise(bounds)]
    table = pa.concat_tables(parts).sort_by("domain")
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "domain"}
    duplicate_share = columns["duplicates"] / np.maximum(1, columns["documents"])
    template_share = columns["template_bytes"] / np.maximum(1, columns["line_bytes"])
    judged = columns["documents"] >= settings.min_documents
    reasons = np.full(len(table), "", object)
    reasons[judged & (template_share > settings.max_template_share)] = "template text"
    reasons[judged & (duplicate_share > settings.max_duplicate_share)] = "near-duplicates"
    listed = {domain_of(name): "denied" for name in settings.deny} | {domain_of(name): "" for name in settings.allow}
    if listed:
        reasons[:] = [_by_list(*row, listed) for row in zip(table["domain"].to_pylist(), reasons, strict=True)]
    values = [
        table["domain"],
        table["documents"],
        table["bytes"],
        pa.array(duplicate_share),
        pa.array(template_share),
        pa.array(reasons != ""),
        pa.array(reasons, pa.string()),
    ]
    return pa.table(values, schema=DOMAINS)


def in_dropped(table: pa.Table, domains: pa.Table) -> NDArray[np.bool_]:
    """Which documents of `table` (in `document.SCHEMA`) belong to a domain that `domains` (in DOMAINS) drops."""
    dropped = set(domains.filter(domains["dropped"])["domain"].to_pylist())
    return np.array([domain_of(url) in dropped for url in table["url"].to_pylist()], bool)


def _batches(texts: pa.ChunkedArray) -> Iterator[tuple[int, pa.LargeStringArray]]:
    """The texts in runs of some megabytes, without a copy, each with the row it begins at."""
    begin = 0
    for chunk in texts.chunks:
        _, offsets = utf8_buffer(chunk)
        row = 0
        while row < len(chunk):
            end = max(row + 1, int(np.searchsorted(offsets, offsets[row] + _BATCH, "right")) - 1)
            yield begin + row, chunk.slice(row, end - row)
            row = end
        begin += len(chunk)


def _lines(
    data: NDArray[np.uint8], offsets: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Where each line lies, without the ASCII blanks around it and unless it is blank, and which text it is of."""
    breaks = np.flatnonzero(data == ord("\n"))
    starts = np.union1d(offsets[:-1], breaks + 1)
    ends = np.append(starts[1:], len(data))
    solid = np.flatnonzero(data > ord(" "))
    first, last = np.searchsorted(solid, starts), np.searchsorted(solid, ends) - 1
    filled = first <= last
    starts, ends = solid[first[filled]], solid[last[filled]] + 1
    return starts, ends, np.searchsorted(offsets, starts, "right") - 1


def _sums(table: pa.Table, keys: list[str], values: list[str]) -> pa.Table:
    """The sums of `values` by `keys`, in the order of keys."""
    sums = table.group_by(keys).aggregate([(name, "sum") for name in values])
    return (
        sums.select([*keys, *(f"{name}_sum" for name in values)])
        .rename_columns([*keys, *values])
        .sort_by([(key, "ascending") for key in keys])
    )


def _add_up(domains: Sequence[Path], lines: Sequence[Path], low: int, high: int, template_documents: int) -> pa.Table:
    """The counts of the domains whose keys lie between `low` and `high`, and the bytes of their template text."""
    import daft
    from daft import DataFrame, col, lit

    def read(paths: Sequence[Path]) -> DataFrame:
        bounds = [lit(bound).cast(daft.DataType.uint64()) for bound in (low, high)]
        return daft.read_parquet([str(path) for path in paths]).where(
            (col("key") >= bounds[0]) & (col("key") <= bounds[1])
        )

    template = (
        read(lines)
        .groupby("key", "line")
        .agg(col("documents").sum(), col("bytes").sum())
        .where(col("documents") >= lit(template_documents))
        .groupby("key")
        .agg(col("bytes").sum().alias("template_bytes"))
    )
    counts = [col(name).sum() for name in ("documents", "bytes", "duplicates", "line_bytes")]
    joined = read(domains).groupby("key", "domain").agg(*counts).join(template, on="key", how="left")
    return joined.with_column("template_bytes", col("template_bytes").fill_null(0)).exclude("key").to_arrow()


def _by_list(domain: str, reason: str, listed: Mapping[str, str]) -> str:
    """What the longest name in the list that `domain` is or lies below says, else `reason`."""
    labels = domain.split(".")
    names = (".".join(labels[i:]) for i in range(len(labels)))
    return next((listed[name] for name in names if name in listed), reason)
