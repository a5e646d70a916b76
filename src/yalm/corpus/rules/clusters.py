"""Clusters of copies and near copies, each cut to one document: from signatures to what falls, over all shards.

The steps, each a pure function of tables or files, so that they may run as tasks anywhere and in any order:

1. `signatures` of every shard (`duplicates`), as Parquet files.
2. `copies`: of documents with the same words the one of lowest uid goes on.
3. `members` of every band: those that share its key with another. `shingles_of` all of them, per shard, as files.
4. For one band after the other: `gather` the shingles of its members still `remaining` into slices; the `stars` of
   each slice; `merged`, they have fallen. Memory and disk hold one band's documents at a time.
5. `unsettled`: documents that fell to one that itself fell later, to a longer one. `gather` and `stars` again, and
   `settle`: some stay after all.
6. `again`: what could not be compared while those were away; `gather`, `stars` and 5, until there is nothing. (Of the
   documents that change, the longest always falls, so it ends; in practice after two or three rounds.)
7. `clusters`: all that falls, and to which document.

Within a bucket the longest document is a star: those similar to it fall, the longest that is left is the next star.
So a document dissimilar to the rest of its bucket parts nobody from anybody, and copies of thousands of pages cost one
comparison each. Connected components, the usual way, would cut whole chains to one document that is not like most of
them; here every document that falls was compared with the very one that is kept in its place, and two that are kept and
met in a band are not alike, unless that bucket had more stars than settings.leaders. The price is that bands follow one
another; the work within a band is spread.

Steps 2 and 3 hold 9 bytes a document, one column of the signatures and a mask. Tables of members, stars and clusters
pass through one process, at 20 bytes a row: it holds some 1e9 rows of a band.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from yalm.corpus.rules.duplicates import DuplicatesSettings, band_name
from yalm.corpus.sums import joined
from yalm.corpus.tables import row_groups, rows_between
from yalm.corpus.words import among, mix

_WAITING, _PIECE = 16 << 20, 64 << 10  # bytes, of all slices and of each
_TOGETHER = 1 << 19  # shingles compared at a time, few enough for the cache
_MEMBERS = pa.schema([("bucket", pa.uint64()), ("uid", pa.uint64()), ("words", pa.int32())])
_COPIES = pa.schema([("uid", pa.uint64()), ("survivor", pa.uint64())])
_NONE = np.empty(0, np.uint64)
STARS = pa.schema([*_COPIES, ("similarity", pa.float64())])
_LONGEST_FIRST = [("bucket", "ascending"), ("words", "descending"), ("uid", "ascending")]


def copies(signature_files: Sequence[Path]) -> pa.Table:
    """Documents with all the words of another, by uid: uid, and `survivor`, the lowest uid with the same words."""
    names = ["copy", "check", "uid"]
    together = _repeated(signature_files, names, _NONE).sort_by([(name, "ascending") for name in names])
    heads = _heads(together["copy"].to_numpy()) | _heads(together["check"].to_numpy())
    uids = together["uid"].to_numpy()
    survivors = uids[heads][np.cumsum(heads) - 1]
    return pa.table([uids[~heads], survivors[~heads]], schema=_COPIES).sort_by("uid")


def members(signature_files: Sequence[Path], band: int, fallen: pa.Table) -> pa.Table:
    """Documents that share a bucket of `band` with another: bucket, uid, words; by bucket, the longest first.

    Those in the column uid of `fallen` count for nothing. Only the band's own column, uid and words are read.
    """
    found = _repeated(signature_files, [band_name(band), "uid", "words"], np.unique(fallen["uid"].to_numpy()))
    return found.rename_columns(_MEMBERS.names).cast(_MEMBERS).sort_by(_LONGEST_FIRST)


def remaining(table: pa.Table, fallen: pa.Table, settings: DuplicatesSettings) -> pa.Table:
    """The `members` still to be compared: without `fallen`, large buckets cut, none of a single document."""
    table = table.filter(pa.array(~np.isin(table["uid"].to_numpy(), fallen["uid"].to_numpy())))
    buckets = table["bucket"].to_numpy()
    heads = np.flatnonzero(_heads(buckets))
    place = np.arange(len(buckets)) - np.repeat(heads, np.diff(np.append(heads, len(buckets))))
    pieces = (place // settings.bucket_limit).astype(np.uint64)
    buckets = np.where(pieces == 0, buckets, mix(buckets + pieces))
    alone = _heads(buckets) & np.append(_heads(buckets)[1:], True)
    return table.set_column(0, "bucket", pa.array(buckets)).filter(pa.array(~alone))


def gather(pairs: Path, shingle_files: Sequence[Path], slices: int, folder: Path) -> list[Path]:
    """Write the members (bucket, uid; by uid) of the file `pairs` with their shingles, a bucket in one slice.

    Each slice is a folder below `folder`; all that are not empty are returned. What is to be written waits until there
    is enough for files of some size: _WAITING bytes, or _PIECE a slice. A slice is read whole by `stars`.
    """
    paths = []
    parts = (_with_shingles(pairs, table) for file in shingle_files for table in row_groups(file))
    for number, table in enumerate(joined(parts, max(_WAITING, slices * _PIECE), lambda part: part.nbytes)):
        slice_of = mix(table["bucket"].to_numpy()) % np.uint64(slices)
        for place in np.unique(slice_of).tolist():
            paths.append(folder / f"slice={place}" / f"{number:05}.parquet")
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            of_slice = table.filter(pa.array(slice_of == np.uint64(place)))
            pq.write_table(of_slice, paths[-1], compression="zstd", use_dictionary=False)  # hashes hardly repeat
    return sorted({path.parent for path in paths})


def stars(table: pa.Table, settings: DuplicatesSettings) -> pa.Table:
    """What falls in the buckets of a slice, by uid: uid, survivor, similarity.

    `table` has bucket, uid, words, halvings, shingles. In every bucket the longest document that has not fallen yet (of
    equal ones that of the lowest uid) is a star, and those at least settings.similarity to it fall, until all have
    fallen or been stars, or there are settings.leaders of them.
    """
    table = table.sort_by(_LONGEST_FIRST).combine_chunks()
    sets, uids = _Sets.of(table), table["uid"].to_numpy()
    star, similarity = np.full(len(uids), -1), np.zeros(len(uids))
    carried = np.empty(0, np.int64)  # stars of a bucket that goes on beyond what is compared together
    first = 0
    while first < len(uids):
        limit = sets.offsets[first] + _TOGETHER
        last = max(int(np.searchsorted(sets.offsets, limit, "right")) - 1, first + 1)
        rows = np.concatenate((carried, np.arange(first, last)))
        star_here, similarity_here, chosen = _compare(sets.take(rows), settings)
        fell = star_here >= 0
        star[rows[fell]], similarity[rows[fell]] = rows[star_here[fell]], similarity_here[fell]
        current = sets.buckets[last - 1]
        goes_on = last < len(uids) and sets.buckets[last] == current
        carried = rows[chosen & (sets.buckets[rows] == current)] if goes_on else carried[:0]
        first = last
    fell = star >= 0
    return _stars_table(uids[fell], uids[star[fell]], similarity[fell])


def unsettled(found: pa.Table, settings: DuplicatesSettings) -> pa.Table:
    """Of the `stars` of all bands, the documents whose star fell itself, each in a bucket with the star that did not.

    bucket, uid, as `gather` wants them. More than settings.bucket_limit below one star are several buckets.
    """
    uids, survivors = found["uid"].to_numpy(), found["survivor"].to_numpy()
    roots = _roots(uids, survivors)
    lost = np.flatnonzero(roots != survivors)
    lost = lost[np.lexsort((uids[lost], roots[lost]))]
    heads = np.flatnonzero(_heads(roots[lost]))
    place = np.arange(len(lost)) - np.repeat(heads, np.diff(np.append(heads, len(lost))))
    buckets = mix(mix(roots[lost]) + (place // settings.bucket_limit).astype(np.uint64))
    pieces = _heads(buckets)
    table = {
        "bucket": np.concatenate((buckets, buckets[pieces])),
        "uid": np.concatenate((uids[lost], roots[lost][pieces])),
    }
    return pa.table(table)


def merged(parts: Sequence[pa.Table]) -> pa.Table:
    """Tables of stars as one, by uid; who fell more than once falls to the most similar, of equals the lowest uid."""
    order = [("uid", "ascending"), ("similarity", "descending"), ("survivor", "ascending")]
    table = pa.concat_tables([STARS.empty_table(), *parts]).sort_by(order)
    return table.filter(pa.array(_heads(table["uid"].to_numpy())))


def settle(found: pa.Table, settled: pa.Table) -> pa.Table:
    """The stars `found`, those of the `unsettled` replaced by `settled`: every survivor is one that is kept."""
    final = ~np.isin(found["survivor"].to_numpy(), found["uid"].to_numpy())
    return merged([found.filter(pa.array(final)), settled])


def again(bands: Sequence[pa.Table], before: pa.Table, after: pa.Table, settings: DuplicatesSettings) -> pa.Table:
    """Members of all `bands` in buckets of documents that had fallen `before` and have not `after` it was settled."""
    returned = np.setdiff1d(before["uid"].to_numpy(), after["uid"].to_numpy())
    tables = []
    for band, table in enumerate(bands):
        table = remaining(table, after, settings)
        buckets = table["bucket"].to_numpy()
        touched = np.isin(buckets, buckets[np.isin(table["uid"].to_numpy(), returned)])
        table = table.set_column(0, "bucket", pa.array(mix(buckets + np.uint64(band))))
        tables.append(table.filter(pa.array(touched)))
    return pa.concat_tables(tables)


def clusters(copied: pa.Table, found: pa.Table) -> pa.Table:
    """All that falls, by uid: uid, survivor, similarity of the two, and kind, "exact" or "near".

    copied  the result of `copies`
    found   the stars, settled
    """
    uids, representatives = found["uid"].to_numpy(), copied["survivor"].to_numpy()
    fell = np.isin(representatives, uids)
    place = np.searchsorted(uids, representatives[fell])
    survivors, similarity = representatives.copy(), np.ones(len(representatives))
    survivors[fell] = found["survivor"].to_numpy()[place]
    similarity[fell] = found["similarity"].to_numpy()[place]
    kinds = np.concatenate((np.where(fell, "near", "exact"), np.full(len(found), "near")))
    table = pa.concat_tables([_stars_table(copied["uid"].to_numpy(), survivors, similarity), found])
    return table.append_column("kind", pa.array(kinds.tolist(), pa.string())).sort_by("uid")


@dataclass(frozen=True)
class _Sets:
    """Sets of shingles, by bucket: set i is values[offsets[i] : offsets[i + 1]], halved halvings[i] times."""

    buckets: NDArray[np.uint64]
    halvings: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    values: NDArray[np.uint32]

    @classmethod
    def of(cls, table: pa.Table) -> Self:
        """The sets of a table whose columns are one chunk each."""
        lists = table["shingles"].cast(pa.large_list(pa.uint32())).combine_chunks()
        offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(pc.list_value_length(lists).to_numpy())))
        return cls(table["bucket"].to_numpy(), table["halvings"].to_numpy(), offsets, lists.flatten().to_numpy())

    def places(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the values of some sets lie, one set after the other, and where among those each set begins."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        begins = np.cumsum(counts) - counts
        return np.arange(counts.sum()) + np.repeat(self.offsets[rows] - begins, counts), begins

    def take(self, rows: NDArray[np.int64]) -> "_Sets":
        """Some of the sets."""
        places, begins = self.places(rows)
        return _Sets(self.buckets[rows], self.halvings[rows], np.append(begins, len(places)), self.values[places])

    def sizes(self) -> NDArray[np.int64]:
        """How large each set is after so many halvings: (largest number of halvings + 1, sets)."""
        levels = np.arange(int(self.halvings.max()) + 1, dtype=np.uint64)
        return np.stack(
            [
                np.add.reduceat(self.values < np.uint64(2**32) >> level, self.offsets[:-1], dtype=np.int64)
                for level in levels
            ]
        )


def _compare(
    sets: _Sets, settings: DuplicatesSettings
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """For each set the first star of its bucket it is similar to, or -1, their similarity, and which sets are stars.

    All buckets advance together: in each round the first set left of every bucket is a star, whose values are marked
    and then counted in the others of the bucket. A mark is of a value in a bucket: buckets do not disturb each other.
    """
    bucket = np.cumsum(_heads(sets.buckets)).astype(np.uint64) << np.uint64(32)
    _, marks = np.unique(np.repeat(bucket, np.diff(sets.offsets)) | sets.values, return_inverse=True)
    marked = np.zeros(len(marks), np.uint8)
    sizes = sets.sizes()
    star, similarity = np.full(len(sets.buckets), -1), np.zeros(len(sets.buckets))
    chosen = np.zeros(len(sets.buckets), bool)
    left = np.arange(len(sets.buckets))
    for _ in range(settings.leaders):
        first = _heads(sets.buckets[left])
        chosen[left[first]] = True
        others, stars_of = left[~first], left[first][(np.cumsum(first) - 1)[~first]]
        if not len(others):
            break
        level = np.maximum(sets.halvings[others], sets.halvings[stars_of])
        smaller, larger = np.sort((sizes[level, others], sizes[level, stars_of]), axis=0)
        possible = smaller / np.maximum(larger, 1) >= settings.similarity
        pairs, stars_of, total = others[possible], stars_of[possible], (smaller + larger)[possible]
        if len(pairs):
            star_places, _ = sets.places(np.unique(stars_of))
            marked[marks[star_places]] = 1
            places, begins = sets.places(pairs)
            shared = np.add.reduceat(marked[marks[places]], begins, dtype=np.int64)
            marked[marks[star_places]] = 0
            jaccard = shared / (total - shared)
            near = jaccard >= settings.similarity
            star[pairs[near]], similarity[pairs[near]] = stars_of[near], jaccard[near]
        left = others[star[others] < 0]
    return star, similarity, chosen


def _roots(uids: NDArray[np.uint64], survivors: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The end of each document's chain of survivors, by pointer jumping: in the logarithm of its length."""
    order = np.argsort(uids)
    ordered = uids[order]
    roots = survivors[order]
    while (falls := np.isin(roots, ordered)).any():
        roots[falls] = roots[np.searchsorted(ordered, roots[falls])]
    ends = np.empty_like(roots)
    ends[order] = roots
    return ends


def _with_shingles(pairs: Path, shingles: pa.Table) -> pa.Table:
    """Those of the members in `pairs` whose shingles a table (by uid) has, with these."""
    members = rows_between(pairs, shingles["uid"], ["bucket", "uid"])
    uids = shingles["uid"].to_numpy()
    members = members.filter(pa.array(among(members["uid"].to_numpy(), uids)))
    found = shingles.take(pa.array(np.searchsorted(uids, members["uid"].to_numpy())))
    return found.append_column("bucket", members["bucket"])


def _repeated(files: Sequence[Path], names: list[str], fallen: NDArray[np.uint64]) -> pa.Table:
    """The columns `names` of those rows whose first one is a number that other rows have too.

    `fallen` are uids, ascending, whose rows count for nothing. The files are read twice, one after the other, so that
    the first column alone is ever held whole: 8 bytes a document.
    """

    def rows(file: Path, columns: list[str]) -> pa.Table:
        table = pq.read_table(file, columns=columns).filter(pc.is_valid(pc.field(columns[0])))
        return table.filter(pa.array(~among(table["uid"].to_numpy(), fallen)))

    keys = np.empty(sum(pq.read_metadata(file).num_rows for file in files), np.uint64)
    size = 0
    for file in files:
        found = rows(file, [names[0], "uid"])[names[0]].to_numpy()
        keys[size : size + len(found)] = found
        size += len(found)
    keys = keys[:size]
    keys.sort()
    keys = keys[~_heads(keys)]
    chosen = []
    for file in files:
        table = rows(file, names)
        chosen.append(table.filter(pa.array(among(table[names[0]].to_numpy(), keys))))
    return pa.concat_tables(chosen)


def _heads(sorted_values: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which values are not equal to the one before."""
    heads = np.ones(len(sorted_values), bool)
    heads[1:] = sorted_values[1:] != sorted_values[:-1]
    return heads


def _stars_table(uids: NDArray[np.uint64], survivors: NDArray[np.uint64], similarity: NDArray[np.float64]) -> pa.Table:
    """What fell to what, by uid."""
    return pa.table([uids, survivors, similarity], schema=STARS).sort_by("uid")
