"""Model folders: what is written is read back; what is damaged is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from yalm.errors import YalmError
from yalm.model import folder as folder_module
from yalm.model.config import ModelConfig
from yalm.model.folder import load_folder, read_config, save_folder
from yalm.model.network import Yalm, build, initialize
from yalm.model.shards import write_shard

CONFIG = ModelConfig(
    vocab_size=61, embedding_size=12, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=40, max_positions=64
)


@pytest.fixture
def model() -> Yalm:
    return initialize(build(CONFIG), seed=1)


@pytest.fixture
def saved(tmp_path: Path, model: Yalm) -> Path:
    save_folder(tmp_path / "model", CONFIG, model.state_dict())
    return tmp_path / "model"


def test_round_trip(saved: Path, model: Yalm) -> None:
    assert read_config(saved) == CONFIG
    loaded = load_folder(saved)
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name
    assert loaded.lm_head.weight is loaded.model.embed_tokens.tokens.weight


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_loads_in_another_type(saved: Path, model: Yalm, dtype: str) -> None:
    loaded = load_folder(saved, dtype)
    expected = model.to(folder_module.DTYPES[dtype])
    for name, parameter in expected.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_one_shard_per_part_and_an_index_of_all(saved: Path) -> None:
    shards = sorted(saved.glob("*.safetensors"))
    assert len(shards) == CONFIG.num_layers + 2
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    stored = {name: shard.name for shard in shards for name in load_file(shard)}
    assert index["weight_map"] == stored
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in build(CONFIG, "meta").parameters())
    assert {name for name, shard in stored.items() if shard == shards[1].name} == {
        name for name in stored if name.startswith("model.layers.0.")
    }


def test_config_has_the_names_that_others_read(saved: Path) -> None:
    values = json.loads((saved / "config.json").read_text())
    assert values["num_attention_heads"] * values["head_dim"] == values["hidden_size"] == CONFIG.hidden_size
    assert values["num_hidden_layers"] == CONFIG.num_layers
    assert values["max_position_embeddings"] == CONFIG.max_positions
    assert values["tie_word_embeddings"] is True


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def reshape(path: Path) -> None:
    tensors = load_file(path)
    name = min(tensors)
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, path)


INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00004.safetensors"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda path: (path / "config.json").unlink(), "config.json: not found"),
    "config cut": (lambda path: cut(path / "config.json"), "cannot be read as JSON"),
    "other model": (lambda path: edit_json(path / "config.json", lambda v: v.update(model_type="gpt2")), "'gpt2'"),
    "key lost": (
        lambda path: edit_json(path / "config.json", lambda v: v.pop("rope_theta")),
        "'rope_theta' is missing",
    ),
    "size changed": (
        lambda path: edit_json(path / "config.json", lambda v: v.update(intermediate_size=48)),
        r"is \(40, 24\), config.json makes it \(48",
    ),
    "no index": (lambda path: (path / INDEX).unlink(), "not found"),
    "shard lost": (lambda path: (path / SHARD).unlink(), SHARD),
    "shard cut": (lambda path: cut(path / SHARD), SHARD),
    "tensor of another shape": (lambda path: reshape(path / SHARD), "do not fit"),
    "tensor lost": (
        lambda path: edit_json(path / INDEX, lambda v: v["weight_map"].pop("lm_head.bias")),  # type: ignore[attr-defined]
        "'lm_head.bias' is missing",
    ),
    "path outside": (
        lambda path: edit_json(path / INDEX, lambda v: v["weight_map"].update({"lm_head.bias": "../x.safetensors"})),  # type: ignore[attr-defined]
        "not a plain file name",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_in_one_line(saved: Path, damage: str) -> None:
    spoil, message = DAMAGES[damage]
    spoil(saved)
    with pytest.raises(YalmError, match=message) as error:
        load_folder(saved)
    assert "\n" not in str(error.value)


def test_an_interrupted_write_leaves_the_old_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_folder(saved).state_dict()
    written = 0

    def fail_at_third(*arguments: object, **options: object) -> str:
        nonlocal written
        written += 1
        if written == 3:
            raise OSError(28, "No space left on device")
        return write_shard(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(folder_module, "write_shard", fail_at_third)
    with pytest.raises(OSError, match="No space"):
        save_folder(saved, CONFIG, initialize(build(CONFIG), seed=2).state_dict())
    assert [path.name for path in saved.parent.iterdir()] == ["model"]
    for name, tensor in load_folder(saved).state_dict().items():
        assert torch.equal(tensor, before[name])
