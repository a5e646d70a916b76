"""The stages between clean documents and the list of those that fall as duplicates.

The steps are those of `rules.clusters`; here they are tasks over files. Bands follow one another, and what one of
them cut the next does not compare again. A band whose shingles fit one slice is compared in this process, a larger
one is spread. When the list is made, what led to it is removed.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from yalm.atomic import atomic_file, atomic_folder
from yalm.corpus.engine import Task, TaskFunction
from yalm.corpus.rules import clusters as steps
from yalm.corpus.rules.duplicates import DuplicatesSettings, shingles_of, signatures
from yalm.corpus.stage import Stage
from yalm.corpus.sums import joined
from yalm.corpus.tables import Tables, row_groups, rows_between
from yalm.corpus.work import Work

CLUSTERS = "clusters.parquet"
COPIES = pa.schema([("uid", pa.uint64()), ("survivor", pa.uint64())])
SLICE_SHINGLES = 4_000_000  # compared by one task, at some 20 bytes each
_ROWS = 1 << 14  # of signatures in a row group: 2 MB
_SHINGLES = 4 << 20  # bytes of shingles in a row group
_FILES = 64  # of shingles, gathered by one task
_SPAN = 1 << 16  # of what falls in a row group, which is what a shard reads of it for a megabyte of text


def deduplicate(work: Work, folder: Path, settings: DuplicatesSettings, shards: dict[str, Path], clean: Stage) -> Stage:
    """The stage whose CLUSTERS names all that falls: uid, survivor, similarity, kind, by uid.

    `shards` are the files of the stage `clean` to look for duplicates in, by name; `folder` is that of all stages.
    """
    return _Deduplication(work, folder, settings, shards, clean).run()


class _Deduplication:
    """One call of `deduplicate`."""

    def __init__(
        self, work: Work, folder: Path, settings: DuplicatesSettings, shards: dict[str, Path], clean: Stage
    ) -> None:
        self.work, self.folder, self.shards, self.clean = work, folder, shards, clean
        self.settings, self.values = settings, settings.model_dump(mode="json")

    def stage(self, name: str, before: Stage) -> Stage:
        """A stage that reads the one `before` it."""
        return Stage(self.folder / name, {"settings": self.values, "shards": sorted(self.shards)}, {"before": before})

    def run(self) -> Stage:
        """All steps, unless the last one is done."""
        final = self.stage("duplicates", self.clean)
        if final.finished:
            return final
        if not self.shards:
            nothing: Task = {"copies": [], "stars": []}
            return self.work.do(final, find_clusters, {"clusters": nothing}, quiet=True)
        per_shard: dict[str, Task] = {name: {"shard": str(file)} for name, file in self.shards.items()}
        signed = self.stage("signatures", self.clean)
        self.work.do(signed, sign_shard, {name: task | {"settings": self.values} for name, task in per_shard.items()})
        copied = self.stage("copies", signed)
        self.work.do(copied, find_copies, {"copies": {"signatures": _names(signed)}}, spread=False, quiet=True)
        copies = _names(copied)
        bands: dict[str, Task] = {
            f"band-{band:02}": {"band": band, "signatures": _names(signed), "fallen": copies}
            for band in range(self.settings.bands)
        }
        met = self.stage("members", copied)
        self.work.do(met, find_members, bands, quiet=True)
        candidates = self.stage("candidates", met)
        self.work.do(candidates, find_candidates, {"candidates": {"members": _names(met)}}, spread=False, quiet=True)
        common: Task = {"settings": self.values, "candidates": _names(candidates)[0]}
        shingled = self.stage("shingles", candidates)
        self.work.do(shingled, shingle_shard, {name: task | common for name, task in per_shard.items()})
        last, found = self.stars_of_bands(shingled, _names(met), copies, _names(shingled))
        turn = 0
        while True:
            last = self.compare(f"unsettled-{turn}", last, pair_unsettled, {"stars": found}, _names(shingled))
            settled = self.stage(f"compare-settled-{turn}", last)
            task = {"stars": found, "settled": _names(last)}
            self.work.do(settled, settle, {"stars": task}, spread=False, quiet=True)
            task = {"members": _names(met), "before": found, "after": _names(settled)}
            last = self.compare(f"again-{turn}", settled, pair_again, task, _names(shingled))
            found = _names(settled)
            if not _names(last):
                break
            found, turn = found + _names(last), turn + 1
        self.work.do(final, find_clusters, {"clusters": {"copies": copies, "stars": found}}, spread=False)
        steps_done = [stage.folder for stage in (signed, copied, met, candidates, shingled)]
        for folder in (*steps_done, *self.folder.glob("compare-*")):
            shutil.rmtree(folder)
        return final

    def stars_of_bands(
        self, before: Stage, bands: list[str], copies: list[str], shingles: list[str]
    ) -> tuple[Stage, list[str]]:
        """Compare the members of each band in turn; the last stage, and the files of all stars."""
        found: list[str] = []
        for band, members in enumerate(bands):
            task = {"members": members, "fallen": copies + found}
            before = self.compare(f"{band:02}", before, pair_band, task, shingles)
            found += _names(before)
        return before, found

    def compare(self, name: str, before: Stage, pair: TaskFunction, task: Task, shingles: list[str]) -> Stage:
        """Bring the shingles of members together by buckets, and compare them: a stage of `stars`, by slices."""
        paired = self.stage(f"compare-{name}-pairs", before)
        self.work.do(paired, pair, {"pairs": task | {"settings": self.values}}, spread=False, quiet=True)
        [pairs] = paired.manifest.tasks
        common: Task = {"pairs": _names(paired)[0], "slices": pairs.facts["slices"]}
        begins = range(0, len(shingles) if common["slices"] else 0, _FILES)
        runs = {f"{begin:05x}": common | {"shingles": shingles[begin : begin + _FILES]} for begin in begins}
        gathered = self.stage(f"compare-{name}-slices", paired)
        self.work.do(gathered, gather, runs, spread=len(runs) > 1, quiet=True)
        slices: dict[str, Task] = {}
        for file in _names(gathered):
            slices.setdefault(Path(file).parent.name, {"files": [], "settings": self.values})["files"].append(file)
        compared = self.stage(f"compare-{name}", gathered)
        return self.work.do(compared, compare_slice, slices, spread=len(slices) > 1, quiet=True)


def _names(stage: Stage) -> list[str]:
    """The files of a stage."""
    return [str(file) for file in stage.files(".parquet")]


def sign_shard(task: Task) -> dict[str, Any]:
    """Task: the signatures of the documents of a shard."""
    settings = DuplicatesSettings.parse(task["settings"], "duplicates")
    name = f"{task['name']}.parquet"
    count = 0
    with Tables(Path(task["folder"], name)) as out:
        tables = row_groups(Path(task["shard"]), ["uid", "text"])
        for signed in joined((signatures(table, settings) for table in tables), _ROWS):
            out.write(signed)
            count += len(signed)
    return {"files": [name], "counts": {"documents": count}}


def find_copies(task: Task) -> dict[str, Any]:
    """Task: documents with all the words of another."""
    return _write(task, steps.copies(_paths(task["signatures"])))


def find_members(task: Task) -> dict[str, Any]:
    """Task: documents that share a bucket of a band."""
    return _write(task, steps.members(_paths(task["signatures"]), task["band"], _uids(task["fallen"])))


def find_candidates(task: Task) -> dict[str, Any]:
    """Task: the documents that share a bucket of any band, by uid."""
    uids = [pq.read_table(file, columns=["uid"])["uid"].to_numpy() for file in task["members"]]
    return _write(task, pa.table({"uid": np.unique(np.concatenate(uids))}))


def shingle_shard(task: Task) -> dict[str, Any]:
    """Task: the shingles of those documents of a shard that are candidates."""
    settings = DuplicatesSettings.parse(task["settings"], "duplicates")
    name = f"{task['name']}.parquet"
    count = 0

    def tables() -> Iterator[pa.Table]:
        for table in row_groups(Path(task["shard"]), ["uid", "text"]):
            candidates = rows_between(task["candidates"], table["uid"], ["uid"])
            yield shingles_of(table, candidates["uid"].to_numpy(), settings)

    with Tables(Path(task["folder"], name)) as out:
        for shingled in joined(tables(), _SHINGLES, lambda table: table.nbytes):
            out.write(shingled)
            count += len(shingled)
    return {"files": [name], "counts": {"documents": count}}


def pair_band(task: Task) -> dict[str, Any]:
    """Task: the members of a band still to be compared."""
    settings = DuplicatesSettings.parse(task["settings"], "duplicates")
    members = steps.remaining(pq.read_table(task["members"]), _uids(task["fallen"]), settings)
    return _pairs(task, members, int(np.minimum(members["words"].to_numpy(), settings.shingle_limit).sum()))


def pair_unsettled(task: Task) -> dict[str, Any]:
    """Task: the documents whose star fell itself, and that of it."""
    settings = DuplicatesSettings.parse(task["settings"], "duplicates")
    pairs = steps.unsettled(_stars(task["stars"]), settings)
    return _pairs(task, pairs, len(pairs) * settings.shingle_limit // 4)


def pair_again(task: Task) -> dict[str, Any]:
    """Task: the members in buckets of documents that are back."""
    settings = DuplicatesSettings.parse(task["settings"], "duplicates")
    bands = [pq.read_table(file) for file in task["members"]]
    pairs = steps.again(bands, _stars(task["before"]), _stars(task["after"]), settings)
    return _pairs(task, pairs, int(np.minimum(pairs["words"].to_numpy(), settings.shingle_limit).sum()))


def gather(task: Task) -> dict[str, Any]:
    """Task: of the pairs those whose shingles are in some files, in slices, each a folder of files."""
    folder = Path(task["folder"])
    with atomic_folder(folder / task["name"]) as temporary:
        steps.gather(Path(task["pairs"]), _paths(task["shingles"]), task["slices"], temporary)
    files = sorted(str(file.relative_to(folder)) for file in folder.glob(f"{task['name']}/*/*.parquet"))
    return {"files": files, "counts": {}}


def settle(task: Task) -> dict[str, Any]:
    """Task: the stars, with those of the unsettled replaced by what comparing them anew has shown."""
    return _write(task, steps.settle(_stars(task["stars"]), _stars(task["settled"])))


def compare_slice(task: Task) -> dict[str, Any]:
    """Task: which documents of a slice are near copies of which."""
    return _write(task, steps.stars(_read(task["files"]), DuplicatesSettings.parse(task["settings"], "duplicates")))


def find_clusters(task: Task) -> dict[str, Any]:
    """Task: all that falls."""
    found = steps.clusters(_read(task["copies"], COPIES), _stars(task["stars"]))
    exact = pc.sum(pc.equal(found["kind"], "exact")).as_py() or 0
    result = _write(task, found)
    return result | {"counts": {"exact": exact, "near": len(found) - exact}}


def _pairs(task: Task, pairs: pa.Table, shingles: int) -> dict[str, Any]:
    """Write documents and the buckets they are to be compared in; into how many slices their shingles go."""
    result = _write(task, pairs.select(["bucket", "uid"]).sort_by("uid"))
    return result | {"facts": {"slices": -(-shingles // SLICE_SHINGLES)}}


def _write(task: Task, table: pa.Table) -> dict[str, Any]:
    """The result of a task that is one table."""
    name = f"{task['name']}.parquet"
    with atomic_file(Path(task["folder"], name)) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=_SPAN)
    return {"files": [name], "counts": {"documents": len(table)}}


def _read(files: list[str], schema: pa.Schema | None = None) -> pa.Table:
    """Tables, one after the other; of `schema`, if there may be none."""
    none = [] if schema is None else [schema.empty_table()]
    return pa.concat_tables([*none, *(pq.read_table(file) for file in files)])


def _stars(files: list[str]) -> pa.Table:
    """Tables of stars as one."""
    return steps.merged([pq.read_table(file) for file in files])


def _uids(files: list[str]) -> pa.Table:
    """The uids of tables, one after the other."""
    return pa.concat_tables([pq.read_table(file, columns=["uid"]) for file in files])


def _paths(files: list[str]) -> list[Path]:
    return [Path(file) for file in files]
