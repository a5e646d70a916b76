"""A corpus that has been built, to look into: its settings, the manifests and tables of its stages, its documents.

A folder may hold stages of different builds, if the last one was interrupted after a change of settings. Numbers put
together from those would be wrong, so that all stages are of one build is checked before anything is read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from yalm.corpus.settings import CorpusSettings
from yalm.corpus.stage import MANIFEST, Manifest, digest
from yalm.corpus.stages.clean import DROPPED
from yalm.corpus.tables import row_groups
from yalm.errors import YalmError

BEGINNING = 600  # characters of a text that are shown
STAGES = {
    "read": "stages/read",
    "clean": "stages/clean",
    "duplicates": "stages/duplicates",
    "domains": "stages/domains",
    "documents": "documents",
}


class Original(NamedTuple):
    """A document as it was read. `text` is its first BEGINNING characters."""

    uid: int
    id: str
    part: str
    source: str
    url: str
    text: str


class Finished:
    """The folder of a corpus; YalmError if it is none, or the build is not through."""

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        settings = self.output / "settings.toml"
        if not settings.is_file():
            raise YalmError(f"{output}: no settings.toml, so no corpus; give the output folder of `yalm corpus build`")
        self.settings = CorpusSettings.load(settings)
        self.manifests = {name: self._manifest(name) for name in STAGES}
        if not self._of_one_build():
            raise self._unfinished(self.output)

    def files(self, stage: str, suffix: str) -> list[Path]:
        """The files of a stage whose names end with `suffix`, in the order of its tasks."""
        return [self.folder(stage) / name for name in self._names(stage) if name.endswith(suffix)]

    def tables(self, stage: str, suffix: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The row groups of the Parquet files of a stage whose names end with `suffix`."""
        return (table for file in self.files(stage, suffix) for table in row_groups(file, columns))

    def value_counts(self, stage: str, suffix: str, column: str) -> Counter[str]:
        """How often each value of a column occurs in these files."""
        counts: Counter[str] = Counter()
        for table in self.tables(stage, suffix, [column]):
            counts.update({row["values"]: row["counts"] for row in pc.value_counts(table[column]).to_pylist()})
        return counts

    def dropped(self) -> Iterator[pa.Table]:
        """All that fell, by rules on single documents and on the corpus as a whole, in `tables.DROPPED`."""
        return (table for stage in ("clean", "documents") for table in self.tables(stage, DROPPED))

    def folder(self, stage: str) -> Path:
        """Where a stage lies."""
        return self.output / STAGES[stage]

    @cached_property
    def thresholds(self) -> dict[str, dict[str, Any]]:
        """The settings of all rules by name, in the order in which documents meet them."""
        settings = self.settings
        rules: dict[str, Any] = {rule.name: rule for rule in settings.rules.rules()}
        rules |= {
            "duplicates": settings.duplicates,
            "domains": settings.domains,
            settings.quality.name: settings.quality,
        }
        return {name: rule.model_dump(mode="json") for name, rule in rules.items()}

    def originals(self, uids: Iterable[int]) -> Mapping[int, Original]:
        """Documents as they were read, by uid; those that do not exist are missing. Holds one row group at a time."""
        found: dict[int, Original] = {}
        shards: dict[int, list[int]] = {}
        for uid in sorted(set(uids)):
            shards.setdefault(uid >> 32, []).append(uid & 0xFFFFFFFF)
        for shard, rows in shards.items():
            path = self.folder("read") / f"{shard:08x}.parquet"
            if not path.is_file():
                continue
            with pq.ParquetFile(path) as file:
                first = 0
                for number in range(file.num_row_groups):
                    last = first + file.metadata.row_group(number).num_rows
                    inside = [row - first for row in rows if first <= row < last]
                    if inside:
                        table = file.read_row_group(number, columns=list(Original._fields)).take(inside)
                        text = pc.utf8_slice_codeunits(table["text"], 0, BEGINNING)
                        table = table.set_column(table.column_names.index("text"), "text", text)
                        found |= {row["uid"]: Original(**row) for row in table.to_pylist()}
                    first = last
        return found

    def _of_one_build(self) -> bool:
        """Whether the documents were made from the other stages as they are, all by these settings."""
        settings, manifests = self.settings, self.manifests
        made_by = {
            "clean": ("rules", settings.rules),
            "duplicates": ("settings", settings.duplicates),
            "domains": ("settings", settings.domains),
            "documents": ("quality", settings.quality),
        }
        shards = {name for name in self._names("read") if name.endswith(".parquet")}
        return (
            all(manifests[stage].settings[key] == of.model_dump(mode="json") for stage, (key, of) in made_by.items())
            and shards == {f"{task.name}.parquet" for task in manifests["clean"].tasks}
            and all(_digest(manifests[name]) == found for name, found in manifests["documents"].inputs.items())
        )

    def _names(self, stage: str) -> list[str]:
        return [file.name for task in self.manifests[stage].tasks for file in task.files]

    def _manifest(self, stage: str) -> Manifest:
        try:
            return Manifest.model_validate_json((self.folder(stage) / MANIFEST).read_bytes())
        except (OSError, ValueError):
            raise self._unfinished(self.folder(stage)) from None

    def _unfinished(self, where: Path) -> YalmError:
        return YalmError(f"{where}: this build is not finished; run `yalm corpus build` again with its settings.toml")


def _digest(manifest: Manifest) -> str:
    """The hash of what a stage holds by which the stages after it know it."""
    return digest([[file.name, file.sha256] for task in manifest.tasks for file in task.files])
