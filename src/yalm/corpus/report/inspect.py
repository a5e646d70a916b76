"""What became of one document: kept, or dropped by which rule for which value, beside its text.

An id is looked for in the first stage, where every document is; a uid says itself in which shard it lies. The shard has
one small table in each later stage, so the answer does not depend on how large the corpus is.
"""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from yalm.corpus.report.finished import Finished, Original
from yalm.corpus.stages.clean import DROPPED
from yalm.corpus.stages.duplicates import CLUSTERS
from yalm.corpus.stages.select import MEASURES
from yalm.corpus.tables import row_groups
from yalm.errors import YalmError

_HINT_FILES, _HINT_IDS = 16, 500


@dataclass(frozen=True)
class Fate:
    """What became of a document.

    rule, measure, value    what it fell by; empty and None if it was kept
    thresholds              the settings of that rule
    survivor, similarity    of a duplicate: the document that stands in its place, and how alike they are
    measures                of a kept one: the numbers it was judged by
    text, survivor.text     how they begin, as they were read
    """

    uid: int
    id: str
    part: str
    source: str
    url: str
    text: str
    kept: bool
    rule: str = ""
    measure: str = ""
    value: float | None = None
    thresholds: Mapping[str, Any] = field(default_factory=dict)
    survivor: Original | None = None
    similarity: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        survivor = None if self.survivor is None else self.survivor._asdict()
        return asdict(self) | {"survivor": survivor}


def why_dropped(output: Path, id_or_uid: str) -> list[Fate]:
    """The fates of all documents with this id or uid, by uid; an id may stand in several files.

    YalmError if there is none, or the corpus is not finished.
    """
    corpus = Finished(output)
    uids = set(_with_id(corpus, id_or_uid))
    if id_or_uid.isascii() and id_or_uid.isdigit() and int(id_or_uid) < 1 << 64:
        uids.add(int(id_or_uid))
    originals = corpus.originals(uids)
    if not originals:
        raise YalmError(f"{output}: no document has the id or uid {id_or_uid!r}{_hint(corpus, id_or_uid)}")
    return [_fate(corpus, originals[uid]) for uid in sorted(originals)]


def _with_id(corpus: Finished, wanted: str) -> list[int]:
    """The uids of documents with an id."""
    shards = ds.dataset(corpus.files("read", ".parquet"), format="parquet")
    uids: list[int] = shards.to_table(["uid"], filter=ds.field("id") == wanted)["uid"].to_pylist()
    return uids


def _fate(corpus: Finished, original: Original) -> Fate:
    """What became of a document that was read."""
    shard = f"{original.uid >> 32:08x}"
    for stage in ("clean", "documents"):
        for row in _rows(corpus.folder(stage) / f"{shard}{DROPPED}", original.uid):
            fell = {key: row[key] for key in ("rule", "measure", "value")} | {
                "thresholds": corpus.thresholds[row["rule"]]
            }
            if row["rule"] == "duplicates":
                fell |= _survivor(corpus, original.uid)
            return Fate(**original._asdict(), kept=False, **fell)
    [row] = _rows(corpus.folder("documents") / f"{shard}{MEASURES}", original.uid)
    measures = {name: value for name, value in row.items() if "." in name and value == value}  # NaN: it does not apply
    return Fate(**original._asdict(), kept=True, measures=measures)


def _survivor(corpus: Finished, uid: int) -> dict[str, Any]:
    """The document that stands in the place of a duplicate."""
    [file] = corpus.files("duplicates", CLUSTERS)
    [row] = _rows(file, uid)
    return {"survivor": corpus.originals([row["survivor"]])[row["survivor"]], "similarity": row["similarity"]}


def _rows(file: Path, uid: int) -> list[dict[str, Any]]:
    """The rows of a document in a table."""
    rows: list[dict[str, Any]] = ds.dataset(file, format="parquet").to_table(filter=ds.field("uid") == uid).to_pylist()
    return rows


def _hint(corpus: Finished, wanted: str) -> str:
    """Ids that are near the one asked for, among the first of some files; or what ids look like here."""
    files = corpus.files("read", ".parquet")
    some = files[:: max(1, len(files) // _HINT_FILES)][:_HINT_FILES]
    ids = [name for file in some for name in next(row_groups(file, ["id"]))["id"].slice(0, _HINT_IDS).to_pylist()]
    near = difflib.get_close_matches(wanted, ids, n=3)
    if near:
        return f"; near it are {', '.join(map(repr, near))}"
    return f"; ids here look like {', '.join(map(repr, ids[:3]))}" if ids else "; no document was read at all"
