"""Shards written block by block are the very files that safetensors writes."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from yalm.errors import YalmError
from yalm.model import shards
from yalm.model.shards import blocks, read_checksums, write_checksums, write_shard


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
