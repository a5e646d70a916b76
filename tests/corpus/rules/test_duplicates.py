"""Copies and near copies, against sets in plain Python."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from yalm.corpus.rules import clusters, duplicates
from yalm.corpus.rules.duplicates import DuplicatesSettings, band_name, shingles_of, signatures

DEFAULTS = DuplicatesSettings()


def documents(texts: Sequence[str], first_uid: int = 0) -> pa.Table:
    uids = pa.array(range(first_uid, first_uid + len(texts)), pa.uint64())
    return pa.table({"uid": uids, "text": pa.array(texts, pa.large_string())})


def plain_shingles(text: str, size: int = 5) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} if words else set()


def plain_jaccard(one: str, other: str) -> float:
    a, b = plain_shingles(one), plain_shingles(other)
    return len(a & b) / max(len(a | b), 1)


def random_text(draw: random.Random, words: int) -> list[str]:
    return [f"w{draw.randrange(5000)}" for _ in range(words)]


def edited(draw: random.Random, words: list[str], edits: int) -> list[str]:
    words = list(words)
    for _ in range(edits):
        place = draw.randrange(len(words))
        words[place : place + draw.randrange(2)] = [f"n{draw.randrange(5000)}"] * draw.randrange(2)
    return words


def find(shards: Sequence[pa.Table], folder: Path, options: DuplicatesSettings = DEFAULTS, slices: int = 2) -> pa.Table:
    """All steps, as a pipeline takes them."""
    folder.mkdir(parents=True)
    signed, shingled = [], []
    for number, shard in enumerate(shards):
        signed.append(folder / f"signatures-{number}.parquet")
        pq.write_table(signatures(shard, options), signed[-1])
    copied = clusters.copies(signed)
    bands = [clusters.members(signed, band, copied) for band in range(options.bands)]
    uids = np.unique(np.concatenate([band["uid"].to_numpy() for band in bands]))
    for number, shard in enumerate(shards):
        shingled.append(folder / f"shingles-{number}.parquet")
        pq.write_table(shingles_of(shard, uids, options), shingled[-1])

    def compare(table: pa.Table, name: str) -> list[pa.Table]:
        pq.write_table(table.select(["bucket", "uid"]).sort_by("uid"), folder / f"{name}.parquet")
        parts = clusters.gather(folder / f"{name}.parquet", shingled, slices, folder / name)
        return [clusters.stars(pq.read_table(part), options) for part in parts]

    found = clusters.STARS.empty_table()
    for band, table in enumerate(bands):
        table = clusters.remaining(table, found, options)
        found = clusters.merged([found, *compare(table, f"band-{band}")])
    for turn in range(100):
        settled = compare(clusters.unsettled(found, options), f"unsettled-{turn}")
        before, found = found, clusters.settle(found, clusters.merged(settled))
        table = clusters.again(bands, before, found, options)
        if not len(table):
            return clusters.clusters(copied, found)
        found = clusters.merged([found, *compare(table, f"again-{turn}")])
    raise AssertionError("no end")


def test_near_copies_are_found_and_nothing_else(tmp_path: Path) -> None:
    draw = random.Random(1)
    texts, pairs = [], []
    for number in range(3000):
        words = random_text(draw, draw.randrange(40, 160))
        edits = draw.randrange(1, 2 + len(words) // 14)
        texts += [" ".join(words), " ".join(edited(draw, words, edits))]
        pairs.append((2 * number, 2 * number + 1))
    table = documents(texts)
    fallen = find([table[:2500], table[2500:]], tmp_path / "found").to_pydict()
    survivor = dict(zip(fallen["uid"], fallen["survivor"], strict=True))
    similarity = [plain_jaccard(texts[a], texts[b]) for a, b in pairs]
    met = [survivor.get(a) == b or survivor.get(b) == a for a, b in pairs]
    similar = [m for m, s in zip(met, similarity, strict=True) if s >= 0.8]
    assert len(similar) > 1000
    assert sum(s < 0.8 for s in similarity) > 1000
    assert sum(similar) / len(similar) >= 0.99
    for uid, other, value in zip(fallen["uid"], fallen["survivor"], fallen["similarity"], strict=True):
        assert value == pytest.approx(plain_jaccard(texts[uid], texts[other]), abs=1e-12)
        assert value >= 0.8


def test_long_chains_leave_only_documents_unlike_those_that_stay(tmp_path: Path) -> None:
    draw = random.Random(2)
    texts = []
    for _ in range(40):
        words = random_text(draw, 120)
        for _ in range(12):  # each version is similar to the last, the twelfth not to the first
            texts.append(" ".join(words))
            words = edited(draw, words, 2)
    fallen = find([documents(texts)], tmp_path / "found").to_pydict()
    survivor = dict(zip(fallen["uid"], fallen["survivor"], strict=True))
    kept = [uid for uid in range(len(texts)) if uid not in survivor]
    assert set(survivor.values()) <= set(kept)
    assert all(plain_jaccard(texts[uid], texts[other]) >= 0.8 for uid, other in survivor.items())
    assert all((len(texts[o].split()), -o) > (len(texts[u].split()), -u) for u, o in survivor.items())
    close = sum(plain_jaccard(texts[a], texts[b]) >= 0.8 for a in kept for b in kept if a < b and a // 12 == b // 12)
    assert len(survivor) > 200
    assert close <= 0.01 * len(survivor)


versions = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 59), st.booleans()), min_size=2, max_size=12)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=versions, order=st.randoms(use_true_random=False), cut=st.integers(0, 12), slices=st.integers(1, 5))
def test_neither_shards_nor_order_nor_slices_matter(
    tmp_path_factory: pytest.TempPathFactory,
    made: list[tuple[int, int, bool]],
    order: random.Random,
    cut: int,
    slices: int,
) -> None:
    options = DuplicatesSettings(bands=3, rows=1)
    texts = []
    for number, (base, place, twice) in enumerate(made):  # of different lengths, so that the longest is one
        words = random_text(random.Random(base), 60 + number)
        words[place] = "other"
        texts += [" ".join(words)] * (1 + twice)
    folder = tmp_path_factory.mktemp("found")
    whole = find([documents(texts)], folder / "whole", options, 1)
    parts = [documents(texts[:cut]), documents(texts[cut:], len(texts[:cut]))]
    assert find(parts[::-1], folder / "parts", options, slices).equals(whole)

    def by_text(table: pa.Table, texts: list[str]) -> list[tuple[Any, ...]]:
        return sorted(
            (texts[row["uid"]], texts[row["survivor"]], row["similarity"], row["kind"]) for row in table.to_pylist()
        )

    shuffled = order.sample(texts, len(texts))
    again = find([documents(shuffled)], folder / "shuffled", options, slices)
    assert by_text(again, shuffled) == by_text(whole, texts)


def test_copies_are_found_whatever_stands_between_the_words(tmp_path: Path) -> None:
    texts = [
        "",
        "Мама мыла раму.",
        "one two",
        "— мама: мыла РАМУ",
        "...",
        "two one",
        "мыла мама раму",
        "мама мыла раму раму",
    ]
    shards = [documents(texts[:3]), documents(texts[3:], 3)]
    assert find(shards, tmp_path / "found").to_pydict() == {
        "uid": [3, 4],
        "survivor": [1, 0],
        "similarity": [1.0, 1.0],
        "kind": ["exact", "exact"],
    }


def test_copies_of_what_falls_fall_to_what_is_kept(tmp_path: Path) -> None:
    words = random_text(random.Random(3), 100)
    shorter, longer = " ".join(words), " ".join([*words, "more"])
    assert find([documents([shorter, longer, shorter, longer])], tmp_path / "found").to_pydict() == {
        "uid": [0, 2, 3],
        "survivor": [1, 1, 1],
        "similarity": [96 / 97, 96 / 97, 1.0],
        "kind": ["near", "near", "exact"],
    }


def test_texts_without_words_meet_in_no_band() -> None:
    signed = signatures(documents(["", "a b", "!"]), DEFAULTS)
    assert [signed[band_name(band)].is_null().to_pylist() for band in (0, 15)] == [[True, False, True]] * 2
    assert signed["words"].to_pylist() == [0, 2, 0]


@given(st.lists(st.text("ab ", max_size=30), max_size=8), st.integers(0, 8), st.integers(1, 40))
def test_signatures_depend_on_the_document_alone(texts: list[str], cut: int, block: int) -> None:
    table = documents(texts)
    whole = signatures(table, DEFAULTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_BLOCK", block)
        patch.setattr(duplicates, "_CACHED", block)
        apart = [signatures(table[:cut], DEFAULTS), signatures(table[cut:], DEFAULTS)]
        sets = shingles_of(table, np.arange(0, 8, 2, dtype=np.uint64), DEFAULTS)
    assert pa.concat_tables(apart).to_pydict() == whole.to_pydict()
    assert sets["uid"].to_pylist() == list(range(0, len(texts), 2))
    assert [len(row) for row in sets["shingles"].to_pylist()] == [len(plain_shingles(t)) for t in texts[::2]]
    exact = list(zip(whole["copy"].to_pylist(), whole["check"].to_pylist(), strict=True))
    for one, a in zip(texts, exact, strict=True):
        assert [a == b for b in exact] == [one.split() == other.split() for other in texts]


def test_signatures_agree_as_often_as_texts_are_similar() -> None:
    draw = random.Random(4)
    options = DuplicatesSettings(bands=100, rows=5)
    for edits in (2, 6, 20):
        words = random_text(draw, 200)
        one, other = " ".join(words), " ".join(edited(draw, words, edits))
        words_of = duplicates.Words(documents([one, other])["text"].combine_chunks())
        minima = duplicates._minima(words_of.shingles(5), 500, options.seed)
        similarity = plain_jaccard(one, other)
        error = (similarity * (1 - similarity) / 500) ** 0.5
        assert abs((minima[:, 0] == minima[:, 1]).mean() - similarity) < 4 * error


def sets_table(buckets: Sequence[int], sets: Sequence[set[int]], words: Sequence[int]) -> pa.Table:
    return pa.table(
        {
            "uid": pa.array(range(len(sets)), pa.uint64()),
            "bucket": pa.array(buckets, pa.uint64()),
            "words": pa.array(words, pa.int32()),
            "halvings": pa.array([0] * len(sets), pa.uint8()),
            "shingles": pa.array([sorted(values) for values in sets], pa.large_list(pa.uint32())),
        }
    )


rows = st.lists(st.tuples(st.integers(0, 2), st.sets(st.integers(0, 5), min_size=1), st.integers(1, 3)), max_size=14)


@settings(max_examples=300)
@given(rows, st.integers(1, 3), st.integers(1, 12), st.sampled_from([0.3, 0.5, 0.8]))
def test_stars_are_those_of_a_plain_loop(
    made: list[tuple[int, set[int], int]], leaders: int, together: int, similarity: float
) -> None:
    expected, stars = {}, dict[int, list[int]]()
    for uid in sorted(range(len(made)), key=lambda uid: (-made[uid][2], uid)):
        bucket, values, _ = made[uid]
        of_bucket = stars.setdefault(bucket, [])
        for star in of_bucket:
            jaccard = len(values & made[star][1]) / len(values | made[star][1])
            if jaccard >= similarity:
                expected[uid] = (star, jaccard)
                break
        else:
            of_bucket += [uid] * (len(of_bucket) < leaders)
    table = sets_table([row[0] for row in made], [row[1] for row in made], [row[2] for row in made])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "_TOGETHER", together)
        found = clusters.stars(table, DuplicatesSettings(leaders=leaders, similarity=similarity)).to_pydict()
    assert found["uid"] == sorted(expected)
    assert list(zip(found["survivor"], found["similarity"], strict=True)) == [expected[uid] for uid in sorted(expected)]


def test_a_hub_unlike_its_bucket_parts_nobody() -> None:
    hub, page = set(range(1000, 1100)), set(range(100))
    table = sets_table([7] * 4, [page, hub, page | {500}, page - {3}], [100, 300, 101, 99])
    assert clusters.stars(table, DEFAULTS).select(["uid", "survivor"]).to_pydict() == {
        "uid": [0, 3],
        "survivor": [2, 2],
    }


def test_a_large_bucket_is_cut_and_its_stars_meet_again(tmp_path: Path) -> None:
    draw = random.Random(5)
    words = random_text(draw, 100)
    texts = []
    for number in range(600):
        page = list(words)
        page[draw.randrange(5, 95)] = f"item{number}"
        texts.append(" ".join(page))
    options = DuplicatesSettings(bucket_limit=50)
    assert find([documents(texts)], tmp_path / "found", options)["survivor"].to_pylist() == [0] * 599
    signed = tmp_path / "found" / "signatures-0.parquet"
    whole = clusters.members([signed], 0, clusters.STARS.empty_table())
    pieces = clusters.remaining(whole, clusters.STARS.empty_table(), options)
    assert max(np.unique(pieces["bucket"], return_counts=True)[1]) <= 50
    assert max(np.unique(whole["bucket"], return_counts=True)[1]) > 50


def test_of_long_texts_as_much_as_the_limit_is_compared() -> None:
    draw = random.Random(6)
    options = DuplicatesSettings(shingle_limit=512, similarity=0.5)
    for length in (1010, 3000, 9000):  # of the first pair one is halved and the other not
        words = random_text(draw, length)
        longer, shorter = " ".join(words), " ".join(edited(draw, words[: int(0.99 * length)], length // 60))
        table = shingles_of(documents([longer, shorter]), np.arange(2, dtype=np.uint64), options)
        assert all(200 < len(kept) <= 512 for kept in table["shingles"].to_pylist())
        found = clusters.stars(table.append_column("bucket", pa.array([1, 1], pa.uint64())), options).to_pydict()
        similarity = plain_jaccard(longer, shorter)
        assert found["similarity"][0] == pytest.approx(
            similarity, abs=3 * (2 * similarity * (1 - similarity) / 512) ** 0.5
        )


def test_a_document_of_as_many_shingles_as_the_limit_is_kept_whole() -> None:
    texts = [" ".join(f"w{number}" for number in range(words)) for words in (516, 517)]  # 512 and 513 runs of five
    table = shingles_of(documents(texts), np.arange(2, dtype=np.uint64), DuplicatesSettings(shingle_limit=512))
    assert table["halvings"].to_pylist() == [0, 1]
    assert len(table["shingles"][0]) == 512


def test_a_sample_of_a_long_text_is_compared_with_the_whole_of_another() -> None:
    words = random_text(random.Random(7), 520)
    texts = [" ".join(words), " ".join(words[:500])]
    options = DuplicatesSettings(shingle_limit=512)
    table = shingles_of(documents(texts), np.arange(2, dtype=np.uint64), options)
    assert table["halvings"].to_pylist() == [1, 0]
    found = clusters.stars(table.append_column("bucket", pa.array([1, 1], pa.uint64())), options)
    assert found["similarity"].to_pylist() == pytest.approx([496 / 516], abs=0.03)


def test_what_fell_to_what_fell_is_compared_with_what_is_kept() -> None:
    chain = 1000  # each document fell to the next
    found = pa.table([range(chain), range(1, chain + 1), [0.9] * chain], schema=clusters.STARS)
    members = clusters.unsettled(found, DEFAULTS).to_pydict()
    assert sorted(members["uid"]) == [*range(chain - 1), chain]
    assert len(set(members["bucket"])) == 1
    settled = pa.table([[3], [7], [0.85]], schema=clusters.STARS)
    copied = pa.table([[2000, 2001], [5, 3]], schema=pa.schema(list(clusters.STARS)[:2]))
    assert clusters.clusters(copied, clusters.settle(found, settled)).to_pydict() == {
        "uid": [3, chain - 1, 2000, 2001],
        "survivor": [7, chain, 5, 7],
        "similarity": [0.85, 0.9, 1.0, 0.85],
        "kind": ["near", "near", "exact", "near"],
    }


def test_unsettled_documents_of_one_star_are_cut_with_the_star_in_every_piece() -> None:
    found = pa.table([range(100, 0, -1), [1] * 99 + [0], [0.9] * 100], schema=clusters.STARS)
    members = clusters.unsettled(found, DuplicatesSettings(bucket_limit=30)).to_pydict()
    pieces: dict[int, list[int]] = {}
    for bucket, uid in zip(members["bucket"], members["uid"], strict=True):
        pieces.setdefault(bucket, []).append(uid)
    assert sorted(len(piece) for piece in pieces.values()) == [10, 31, 31, 31]
    assert all(0 in piece for piece in pieces.values())
    assert sorted(uid for piece in pieces.values() for uid in piece if uid) == list(range(2, 101))


def test_a_band_holds_those_that_share_its_key(tmp_path: Path) -> None:
    keys = [5, 7, 5, None, 7, 9, None, 5]
    table = pa.table({"uid": pa.array(range(8), pa.uint64()), "words": pa.array([1, 2, 3, 0, 5, 6, 0, 3], pa.int32())})
    pq.write_table(table.append_column("band_00", pa.array(keys, pa.uint64())), tmp_path / "signatures.parquet")
    fallen = pa.table({"uid": pa.array([1], pa.uint64())})
    found = clusters.members([tmp_path / "signatures.parquet"], 0, fallen)
    assert found.to_pydict() == {"bucket": [5, 5, 5], "uid": [2, 7, 0], "words": [3, 3, 1]}
    later = clusters.remaining(found, pa.table({"uid": pa.array([2, 7], pa.uint64())}), DEFAULTS)
    assert later.num_rows == 0
