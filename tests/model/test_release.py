"""The released layout: untrusted files are refused in one line."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from yalm.errors import YalmError
from yalm.model.release import load_release, release_files


@pytest.fixture
def weights(tmp_path: Path, golden: Path) -> Path:
    return Path(shutil.copytree(golden / "weights", tmp_path / "weights"))


def test_every_released_tensor_has_a_place(golden: Path) -> None:
    for number, names in release_files(num_layers=3).items():
        tensors = torch.load(golden / "weights" / f"layer_{number:02d}-model_00-model_states.pt", weights_only=True)
        assert sorted(names.values()) == sorted(tensors)


class Malice:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_malicious_pickle_is_refused(weights: Path, tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    victim = weights / "layer_04-model_00-model_states.pt"
    torch.save({"input_layernorm.weight": Malice(trace)}, victim)
    with pytest.raises(YalmError, match=r"layer_04\S+: holds more than tensors") as error:
        load_release(weights, num_heads=4, max_positions=64)
    assert "\n" not in str(error.value)
    assert not trace.exists()
    pickle.dumps(Malice(trace))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def drop_tensor(path: Path) -> None:
    tensors = torch.load(path, weights_only=True)
    del tensors["mlp.dense_ffn_gate.bias"]
    torch.save(tensors, path)


def wrong_shape(path: Path) -> None:
    tensors = torch.load(path, weights_only=True)
    tensors["mlp.dense_ffn_gate.bias"] = tensors["mlp.dense_ffn_gate.bias"][:-1].clone()
    torch.save(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "is missing; download"),
        (cut, "is cut off or damaged"),
        (drop_tensor, "'mlp.dense_ffn_gate.bias' is missing"),
        (wrong_shape, "does not fit the other files"),
    ],
)
def test_damage_is_refused(weights: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(weights / "layer_04-model_00-model_states.pt")
    with pytest.raises(YalmError, match=message) as error:
        load_release(weights, num_heads=4, max_positions=64)
    assert "\n" not in str(error.value)


def test_an_empty_folder_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="no released weights"):
        load_release(tmp_path, num_heads=4, max_positions=64)


def test_heads_that_do_not_divide_are_refused(weights: Path) -> None:
    with pytest.raises(YalmError, match="num_heads"):
        load_release(weights, num_heads=5, max_positions=64)
