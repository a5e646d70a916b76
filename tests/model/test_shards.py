"""Shards written block by block are the very files that safetensors writes; spans are where their tensors lie."""

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from yalm.errors import YalmError
from yalm.model import shards
from yalm.model.shards import HEADER_DTYPES, blocks, read_checksums, read_spans, write_checksums, write_shard


@pytest.mark.parametrize("block_bytes", [1, 100, 16 * 2**20])
def test_the_same_bytes_as_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    monkeypatch.setattr(shards, "BLOCK_BYTES", block_bytes)
    tensors = {f"layer.{i}.weight": torch.randn(7, 5).bfloat16() for i in range(12)}
    tensors |= {"bias": torch.randn(11), "packed": torch.ones(3, 5, dtype=torch.int8), "half": torch.ones(2).half()}
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    sha256 = write_shard(tmp_path / "ours", tensors, tensors.__getitem__)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert sha256 == hashlib.sha256((tmp_path / "ours").read_bytes()).hexdigest()


@pytest.mark.parametrize("block_bytes", [1, 64, 16 * 2**20])
@pytest.mark.parametrize("shape", [(6, 4), (9, 7), (6, 7), (9, 4), (3, 2), (3, 7), (9, 2)])
def test_blocks_pad_and_cut(monkeypatch: pytest.MonkeyPatch, block_bytes: int, shape: tuple[int, int]) -> None:
    monkeypatch.setattr(shards, "BLOCK_BYTES", block_bytes)
    tensor = torch.randn(6, 4)
    expected = torch.zeros(shape, dtype=torch.bfloat16)
    rows, columns = min(shape[0], 6), min(shape[1], 4)
    expected[:rows, :columns] = tensor[:rows, :columns]
    assert torch.equal(torch.cat(list(blocks(tensor, shape, torch.bfloat16))), expected)
    assert torch.equal(
        torch.cat(list(blocks(tensor[0], shape[1:], torch.bfloat16))).flatten()[:columns], expected[0, :columns]
    )


def test_checksums_are_read_back_or_refused(tmp_path: Path) -> None:
    assert read_checksums(tmp_path) == {}
    write_checksums(tmp_path, {"b": "1" * 64, "a": "0" * 64})
    assert read_checksums(tmp_path) == {"a": "0" * 64, "b": "1" * 64}
    for line in ("nonsense", f"{'0' * 64}  ../x", f"{'0' * 63}  x"):
        (tmp_path / "SHA256SUMS").write_text(line + "\n")
        with pytest.raises(YalmError, match="is no line of a checksum file"):
            read_checksums(tmp_path)


sizes = st.lists(st.integers(0, 9), max_size=3)


@given(st.lists(st.tuples(sizes, st.sampled_from(list(HEADER_DTYPES))), min_size=1, max_size=6))
def test_spans_are_where_the_tensors_are(specs: list[tuple[list[int], torch.dtype]]) -> None:
    tensors = {f"layer.{i}": torch.randint(0, 100, shape).to(dtype) for i, (shape, dtype) in enumerate(specs)}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_file(tensors, path, metadata={"format": "pt"})
        data, spans = path.read_bytes(), read_spans(path)
    assert spans.keys() == tensors.keys()
    for name, tensor in tensors.items():
        span = spans[name]
        assert (span.path, span.dtype, span.shape, span.nbytes) == (
            path,
            tensor.dtype,
            tuple(tensor.shape),
            tensor.nbytes,
        )
        assert data[span.offset : span.offset + span.nbytes] == tensor.flatten().view(torch.uint8).numpy().tobytes()


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
DAMAGES = {
    "empty": b"",
    "longer than the file": (1000).to_bytes(8, "little") + b"{}",
    "endless": b"\xff" * 8 + b"{}",
    "no JSON": (2).to_bytes(8, "little") + b"{]",
    "no object": (2).to_bytes(8, "little") + b"[]",
    **{
        name: len(text := json.dumps({"x": ENTRY | entry}).encode()).to_bytes(8, "little") + text + b"0" * 16
        for name, entry in {
            "beyond the end": {"data_offsets": [16, 32]},
            "before the beginning": {"data_offsets": [-16, 0]},
            "of another length": {"data_offsets": [0, 12]},
            "of a negative size": {"shape": [-2, -2]},
            "of no whole size": {"shape": [2.0, 2]},
            "of a truth": {"shape": [True, 4]},
            "unknown type": {"dtype": "F8"},
            "one offset": {"data_offsets": [0]},
            "no shape": {"shape": None},
        }.items()
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_header_that_lies_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "x.safetensors").write_bytes(DAMAGES[damage])
    with pytest.raises(YalmError, match=r"x\.safetensors: cannot be read") as error:
        read_spans(tmp_path / "x.safetensors")
    assert "\n" not in str(error.value)
