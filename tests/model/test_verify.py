"""`yalm verify`: a whole folder passes, every kind of damage is found and named in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from support import GOLDEN
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.convert import convert_release
from yalm.model.folder import ModelFolder, load_folder, save_folder
from yalm.model.network import build, initialize
from yalm.model.verify import streamed_logits, verify

SHARD = "model-00003-of-00005.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "model"
    return convert_release(GOLDEN / "weights", target, GOLDEN / "vocab.sp", num_heads=4, max_positions=64).folder


def test_a_whole_folder(folder: Path) -> None:
    facts = verify(folder)
    assert (facts["checksums"], facts["shards"], facts["dtype"]) == (9, 5, "bfloat16")
    assert facts["bytes"] == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_part_by_part_is_the_whole_network(tmp_path: Path, dtype: str) -> None:
    target = tmp_path / "model"
    convert_release(GOLDEN / "weights", target, GOLDEN / "vocab.sp", num_heads=4, max_positions=64, dtype=dtype)
    ids = torch.arange(14).view(2, 7)
    with torch.no_grad():
        assert torch.equal(streamed_logits(ModelFolder(target), ids), load_folder(target, dtype)(ids))


def test_a_saved_model_has_checksums_too(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=61, embedding_size=12, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=40
    )
    save_folder(tmp_path / "model", config, initialize(build(config), seed=1).state_dict())
    assert verify(tmp_path / "model")["checksums"] == 7


def test_a_folder_of_other_tools_has_none(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    assert verify(folder)["checksums"] == 0


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def not_finite(path: Path) -> None:
    """Shards that agree with their checksums, but hold no numbers."""
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.bias"][5] = float("nan")
    save_file(tensors, path)
    (path.parent / "SHA256SUMS").unlink()


def drop_line(path: Path) -> None:
    sums = path.parent / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if path.name not in line))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit": (flip_a_bit, f"{SHARD}: is missing or differs from SHA256SUMS"),
    "tokenizer": (lambda path: flip_a_bit(path.parent / "tokenizer.model"), "tokenizer.model: is missing or differs"),
    "tokenizer lost": (lambda path: (path.parent / "tokenizer.model").unlink(), "tokenizer.model: is missing"),
    "shard lost": (Path.unlink, SHARD),
    "not in the list": (drop_line, "mixed of two"),
    "not finite": (not_finite, f"{SHARD}: its weights give numbers that are not finite"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(folder: Path, damage: str) -> None:
    spoil, message = DAMAGES[damage]
    spoil(folder / SHARD)
    with pytest.raises(YalmError, match=message) as error:
        verify(folder)
    assert "\n" not in str(error.value)
