"""Shards: Megatron's bytes, several sequences a document, damaged files."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yalm.errors import YalmError
from yalm.tokens.shards import Shard, ShardWriter


def megatron(prefix: Path, code: int, sequences: list[list[int]], documents: list[int]) -> None:
    """Write the files as Megatron's format says, apart from the code under test."""
    kind = {8: "H", 4: "i"}[code]
    size = struct.calcsize(kind)
    lengths = [len(sequence) for sequence in sequences]
    offsets = [size * sum(lengths[:number]) for number in range(len(lengths))]
    flat = [token for sequence in sequences for token in sequence]
    prefix.with_suffix(".bin").write_bytes(struct.pack(f"<{len(flat)}{kind}", *flat))
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(lengths), len(documents))
        + struct.pack(f"<{len(lengths)}i", *lengths)
        + struct.pack(f"<{len(lengths)}q", *offsets)
        + struct.pack(f"<{len(documents)}q", *documents)
    )


@pytest.mark.parametrize(("vocab_size", "code"), [(508, 8), (65536, 8), (65537, 4), (128000, 4)])
@given(documents=st.lists(st.lists(st.integers(0, 507), max_size=5), max_size=6))
@settings(max_examples=30, deadline=None)
def test_bytes_are_megatrons(
    tmp_path_factory: pytest.TempPathFactory, vocab_size: int, code: int, documents: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("shard")
    documents = [*documents, [vocab_size - 1]]
    with ShardWriter(folder / "ours", vocab_size) as writer:
        for document in documents:
            writer.add(document)
    megatron(folder / "theirs", code, documents, list(range(len(documents) + 1)))
    for suffix in (".bin", ".idx"):
        assert (folder / f"ours{suffix}").read_bytes() == (folder / f"theirs{suffix}").read_bytes()
    shard = Shard(folder / "ours")
    assert [shard.document(number).tolist() for number in range(shard.num_documents)] == documents
    assert (writer.files.documents, writer.files.tokens) == (shard.num_documents, shard.num_tokens)
    starts = np.cumsum([0, *map(len, documents)])
    expected = sorted({int(start) for start, document in zip(starts, documents, strict=False) if document})
    assert shard.document_starts(0, shard.num_tokens + 1).tolist() == expected
    middle = shard.num_tokens // 2
    assert shard.document_starts(1, middle).tolist() == [start for start in expected if 1 <= start < middle]


def test_several_sequences_a_document(tmp_path: Path) -> None:
    megatron(tmp_path / "neox", 4, [[1, 2], [3], [4, 5, 6], [7]], [0, 2, 2, 4, 4])
    shard = Shard(tmp_path / "neox")
    assert (shard.num_sequences, shard.num_documents, shard.num_tokens) == (4, 4, 7)
    assert [shard.document(number).tolist() for number in range(4)] == [[1, 2, 3], [], [4, 5, 6, 7], []]
    assert shard.document_starts(0, 8).tolist() == [0, 3]
    assert shard.read(2, 5).tolist() == [3, 4, 5]


def test_empty_shard(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "none", 508):
        pass
    assert Shard(tmp_path / "none").num_tokens == 0
    assert Shard(tmp_path / "none").document_starts(0, 1).tolist() == []


def test_nothing_appears_of_a_shard_that_failed(tmp_path: Path) -> None:
    def write() -> None:
        with ShardWriter(tmp_path / "bad", 508) as writer:
            writer.add([1, 2])
            writer.add([508])

    with pytest.raises(ValueError, match="do not fit"):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
@pytest.mark.parametrize("fault", ["gone", "empty", "cut", "longer"])
def test_damage_is_found(tmp_path: Path, suffix: str, fault: str) -> None:
    megatron(tmp_path / "a", 8, [[1, 2, 3], [4]], [0, 1, 2])
    file = tmp_path / f"a{suffix}"
    data = file.read_bytes()
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "cut": data[:-1], "longer": data + b"\0\0"}[fault])
    with pytest.raises(YalmError, match=rf"a\{suffix}"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize(("at", "value"), [(0, 88), (9, 2), (17, 77), (18, 200), (25, 127), (26, 99), (33, 127)])
def test_wrong_header_is_found(tmp_path: Path, at: int, value: int) -> None:
    megatron(tmp_path / "a", 8, [[1, 2, 3], [4]], [0, 1, 2])
    data = bytearray((tmp_path / "a.idx").read_bytes())
    data[at] = value
    (tmp_path / "a.idx").write_bytes(data)
    with pytest.raises(YalmError, match=r"a\.idx"):
        Shard(tmp_path / "a")
