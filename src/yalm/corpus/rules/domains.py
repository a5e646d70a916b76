"""Domains of repetitive texts, such as shops, dropped whole.

Two things give a repetitive domain away: most of its documents are near-duplicates, or most of what the others hold is
template text, lines that stand in many of its documents. Both are sums, so every shard is counted alone, in the order
of domains and lines, and the counts of all shards are merged (`sums`): memory is that of a few batches and of one row a
domain, for the price of one number for each distinct line of each domain on the disk (about a tenth of the text). The
domain is the host without "www.", not the registrable domain, for on blog hosts every author has a host of his own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from yalm.config import Settings
from yalm.corpus.sums import merged, sums
from yalm.corpus.tables import row_groups
from yalm.corpus.words import among, span_hashes, utf8_buffer

_BATCH = 4 << 20  # bytes of text whose lines are found at a time

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
        of_documents = sums(found, ["document", "key", "line"], ["bytes"])
        ones = pa.array(np.ones(len(of_documents), np.int64))
        lines.append(sums(of_documents.append_column("documents", ones), ["key", "line"], ["documents", "bytes"]))
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
    domains = sums(documents_table, ["key", "domain"], ["documents", "bytes", "duplicates", "line_bytes"])
    return domains, sums(pa.concat_tables(lines), ["key", "line"], ["documents", "bytes"])


def add_up(runs: Sequence[Iterable[pa.Table]], schema: pa.Schema) -> Iterator[pa.Table]:
    """Counts, all in DOMAIN_COUNTS or all in LINE_COUNTS and in the order of keys, as those of one shard, in parts."""
    return merged(runs, schema.names[:2], schema.names[2:])


def judge_domains(domains: Sequence[Path], lines: Sequence[Path], settings: DomainsSettings) -> pa.Table:
    """All domains and what becomes of them, in DOMAINS, from counts of shards as Parquet files.

    Holds one row a domain, and a row group of each file.
    """
    parts = [DOMAIN_COUNTS.empty_table(), *add_up([row_groups(file) for file in domains], DOMAIN_COUNTS)]
    table = pa.concat_tables(parts).sort_by("domain")
    columns = {name: table[name].to_numpy() for name in table.column_names if name != "domain"}
    template_bytes = _template_bytes(columns["key"], lines, settings.template_documents)
    duplicate_share = columns["duplicates"] / np.maximum(1, columns["documents"])
    template_share = template_bytes / np.maximum(1, columns["line_bytes"])
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


def _template_bytes(keys: NDArray[np.uint64], lines: Sequence[Path], documents: int) -> NDArray[np.int64]:
    """Of each domain the bytes of lines that stand in at least so many of its documents."""
    parts = [LINE_COUNTS.empty_table().select(["key", "bytes"])]
    for table in add_up([row_groups(file) for file in lines], LINE_COUNTS):
        parts.append(sums(table.filter(pc.field("documents") >= documents), ["key"], ["bytes"]))
    found = sums(pa.concat_tables(parts), ["key"], ["bytes"])
    with_templates = found["key"].to_numpy()
    template = among(keys, with_templates)
    sizes = np.zeros(len(keys), np.int64)
    sizes[template] = found["bytes"].to_numpy()[np.searchsorted(with_templates, keys[template])]
    return sizes


def _by_list(domain: str, reason: str, listed: Mapping[str, str]) -> str:
    """What the longest name in the list that `domain` is or lies below says, else `reason`."""
    labels = domain.split(".")
    names = (".".join(labels[i:]) for i in range(len(labels)))
    return next((listed[name] for name in names if name in listed), reason)
