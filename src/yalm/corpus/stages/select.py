"""The last stage on documents: what the stages before found is applied, the quality rule judges the rest, and the
kept texts are written as the Pile's were, JSON lines in zstd with `text` and `meta`, one folder for each part.

Duplicates and repetitive domains are known only when everything has been seen, so until here they are lists of uids
and of domains beside the texts, not copies of them. A share of the documents, chosen by the hash of the uid, goes to
`validation` instead of `train`.
"""

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import zstandard

from yalm.atomic import atomic_file
from yalm.corpus.engine import Task
from yalm.corpus.rules.chain import judge
from yalm.corpus.rules.domains import domain_of
from yalm.corpus.rules.quality import Quality
from yalm.corpus.stages.clean import DROPPED
from yalm.corpus.tables import Tables, count_dropped, count_rows, row_groups, rows_between, split
from yalm.corpus.words import mix

MEASURES = ".measures.parquet"
SPLITS = ("train", "validation")
_LEVEL = 3  # of zstd
_FACTS = ("uid", "id", "source", "language", "url", "time")
_BULK = ("part", "source", "url", "time", "text", "meta")


def select_shard(task: Task) -> dict[str, Any]:
    """Task: what of the file task["shard"] belongs to the corpus.

    task["duplicates"] is a file of the documents that fall, task["domains"] one of all domains, task["quality"] are the
    settings of the rule; what is None does not apply.
    """
    folder, name, part = Path(task["folder"]), task["name"], task["part"]
    quality = [] if task["quality"] is None else [Quality.parse(task["quality"], "quality")]
    domains = _dropped_domains(task["domains"])
    counts: Counter[str] = Counter()
    files = [f"{name}{DROPPED}", f"{name}{MEASURES}"]
    with (
        Tables(folder / files[0]) as fallen,
        Tables(folder / files[1]) as measures,
        _Texts(folder, part, name, task["validation_share"]) as texts,
    ):
        for table in row_groups(Path(task["shard"])):
            table, repeated = _without_duplicates(table, task["duplicates"])
            table, of_domains = _without_domains(table, domains)
            judged = judge(quality, table, [])
            for dropped in (repeated, of_domains, judged.dropped):
                fallen.write(dropped)
                counts.update(count_dropped(dropped))
            counts.update(count_rows("kept", judged.kept))
            measures.write(judged.kept.drop_columns(list(_BULK)))
            texts.write(judged.kept)
    return {"files": files + texts.files, "counts": dict(counts), "facts": {"part": part}}


def _without_duplicates(table: pa.Table, file: str | None) -> tuple[pa.Table, pa.Table]:
    """Drop the members of clusters that do not survive. `file` is sorted by uid, as the table is."""
    uids = table["uid"].to_numpy()
    similarity = np.full(len(uids), np.nan)
    if file is not None:
        fallen = rows_between(file, table["uid"], ["uid", "similarity"])
        fallen = fallen.filter(pc.is_in(fallen["uid"], table["uid"]))
        similarity[np.searchsorted(uids, fallen["uid"].to_numpy())] = fallen["similarity"].to_numpy()
    return split(table, ~np.isnan(similarity), "duplicates", "duplicates.similarity", similarity)


def _without_domains(table: pa.Table, domains: dict[str, tuple[str, float]]) -> tuple[pa.Table, pa.Table]:
    """Drop the documents of dropped domains."""
    reasons = [domains.get(domain_of(url), ("", np.nan)) for url in table["url"].to_pylist()]
    values = np.array([value for _, value in reasons], np.float64)
    measures = pa.array([measure for measure, _ in reasons], pa.string())
    return split(table, ~np.isnan(values), "domains", measures, values)


def _dropped_domains(file: str | None) -> dict[str, tuple[str, float]]:
    """Of each dropped domain the measure it fell by and its value; a domain that settings deny falls by 1."""
    if file is None:
        return {}
    table = pq.read_table(file, filters=ds.field("dropped"))
    measures = {"near-duplicates": "duplicate_share", "template text": "template_share"}
    return {
        row["domain"]: (f"domains.{measures.get(row['reason'], 'denied')}", row.get(measures.get(row["reason"]), 1.0))
        for row in table.to_pylist()
    }


class _Texts:
    """The JSON lines of a shard, `documents/PART/SPLIT/NAME.jsonl.zst`; a split without documents has no file."""

    def __init__(self, folder: Path, part: str, name: str, validation_share: float) -> None:
        self._paths = [Path(part, split, f"{name}.jsonl.zst") for split in SPLITS]
        self._folder = folder
        self._bound = np.uint64(int(validation_share * (2**64 - 1)))
        self._stack = ExitStack()
        self._streams: dict[Path, Any] = {}

    def __enter__(self) -> "_Texts":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def files(self) -> list[str]:
        """The files written, by their names below the folder."""
        return [str(path) for path in self._paths if path in self._streams]

    def write(self, table: pa.Table) -> None:
        """Add documents."""
        chosen = mix(table["uid"].to_numpy()) < self._bound
        rows = zip(chosen.tolist(), *(table[name].to_pylist() for name in ("text", "meta", *_FACTS)), strict=True)
        lines: dict[Path, list[bytes]] = {path: [] for path in self._paths}
        for validation, text, details, *facts in rows:
            meta: dict[str, Any] = {name: fact for name, fact in zip(_FACTS, facts, strict=True) if fact != ""}
            if details != "{}":
                meta["details"] = orjson.Fragment(details)
            line = {"text": text, "meta": meta}
            lines[self._paths[validation]].append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        for path, of_split in lines.items():
            if of_split:
                self._open(path).write(b"".join(of_split))

    def _open(self, path: Path) -> Any:
        if path not in self._streams:
            temporary = self._stack.enter_context(atomic_file(self._folder / path))
            stream = self._stack.enter_context(temporary.open("wb"))
            compressor = zstandard.ZstdCompressor(_LEVEL, write_checksum=True)
            self._streams[path] = self._stack.enter_context(compressor.stream_writer(stream))
        return self._streams[path]
