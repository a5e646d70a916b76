"""The released layouts: every kind gives the same tensors, and untrusted files are refused in one line."""

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from support import PREFIXES, split, write_rank_files
from yalm.errors import YalmError
from yalm.model.release import Release, load_release, rank_files, release_files
from yalm.model.weights import open_weights


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
        (wrong_shape, "does not fit the other tensors"),
    ],
)
def test_damage_is_refused(weights: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(weights / "layer_04-model_00-model_states.pt")
    with pytest.raises(YalmError, match=message) as error:
        load_release(weights, num_heads=4, max_positions=64)
    assert "\n" not in str(error.value)


def test_all_that_is_cut_off_is_counted(weights: Path) -> None:
    for number in (3, 4, 7):
        cut(weights / f"layer_{number:02d}-model_00-model_states.pt")
    with pytest.raises(YalmError, match=r"weights: 3 files are cut off or damaged, the first layer_03\S+; download"):
        load_release(weights, num_heads=4, max_positions=64)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", PREFIXES)
def test_files_of_all_parts_hold_what_files_of_layers_hold(tmp_path: Path, kind: str, ranks: int) -> None:
    expected = Release(split(tmp_path / "layers", ranks), 4, 64)
    release = Release(write_rank_files(tmp_path / "all", ranks, kind), 4, 64)
    assert (release.config, release.dtype, release.ranks) == (expected.config, torch.bfloat16, ranks)
    assert len(release.files()) == ranks
    for name in release_names(release):
        assert torch.equal(release.read(name), expected.read(name)), name
    first = Release(tmp_path / "all", 4, 64, num_layers=1)
    assert first.config.num_layers == 1
    with pytest.raises(YalmError, match="has 3 layers; ask for 1 to 3"):
        Release(tmp_path / "all", 4, 64, num_layers=4)


def release_names(release: Release) -> list[str]:
    return [ours for names in release_files(release.config.num_layers).values() for ours in names]


def test_tensors_of_a_part_are_mapped_not_copied(tmp_path: Path) -> None:
    release = Release(write_rank_files(tmp_path / "all", 1, "megatron"), 4, 64)
    first, *others = release_files(3)[4]
    for name in others:
        distance = release.read(name).data_ptr() - release.read(first).data_ptr()
        assert distance == release.span(name).offset - release.span(first).offset  # type: ignore[union-attr]
    # Nor is more of the file mapped than the part, for Linux refuses maps larger than its memory.
    assert release.read(first).untyped_storage().nbytes() < release.files()[0].stat().st_size / 2


def in_one_buffer(weights: dict[str, torch.Tensor]) -> None:
    """Make the weights views of one storage, as ZeRO leaves them."""
    buffer = torch.cat([tensor.flatten() for tensor in weights.values()])
    pieces = buffer.split([tensor.numel() for tensor in weights.values()])
    for (name, tensor), piece in zip(weights.items(), pieces, strict=True):
        weights[name] = piece.view(tensor.shape)


def test_all_tensors_in_one_buffer(tmp_path: Path, weights: Path) -> None:
    folder = write_rank_files(tmp_path / "all", 1, "deepspeed")
    edit(in_one_buffer)(folder)
    release, expected = Release(folder, 4, 64), Release(weights, 4, 64)
    for name in release_names(release):
        assert torch.equal(release.read(name), expected.read(name)), name
    spans = [release.span(name) for name in release_names(release)]
    assert all(span is not None for span in spans)
    total = sum(span.nbytes for span in spans if span)
    assert max(span.offset + span.nbytes for span in spans if span) - min(s.offset for s in spans if s) == total


def test_a_file_cut_off_after_opening_is_refused(weights: Path) -> None:
    release = Release(weights, 4, 64)
    cut(weights / "layer_04-model_00-model_states.pt")
    with pytest.raises(YalmError, match=r"layer_04.*cannot be mapped"):
        release.read("model.layers.1.mlp.gate_proj.weight")


def test_a_malicious_pickle_beside_the_weights_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "executed"
    folder = write_rank_files(tmp_path / "all", 1, "deepspeed", lr_scheduler=Malice(trace))
    with pytest.raises(YalmError, match=r"holds more than tensors.*\('\S*open'\).*with the weights alone") as error:
        Release(folder, 4, 64)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def edit(change: Callable[[dict[str, torch.Tensor]], object], rank: int = 0) -> Callable[[Path], None]:
    """Change a rank's weights, saved as DeepSpeed does, and leave the other ranks."""

    def spoil(folder: Path) -> None:
        path = folder / f"mp_rank_{rank:02d}_model_states.pt"
        contents = torch.load(path, weights_only=False)
        change(contents["module"])
        torch.save(contents, path)

    return spoil


def alone(key: str, value: object) -> Callable[[Path], None]:
    """A file that holds the weights, or only `value`, under `key`."""

    def spoil(folder: Path) -> None:
        path = folder / "mp_rank_00_model_states.pt"
        torch.save({"module": torch.load(path, weights_only=False)["module"]} | {key: value}, path)

    return spoil


LAYERS = "language_model.transformer.layers."
BIAS = LAYERS + "1.mlp.dense_ffn_gate.bias"
WEIGHT = LAYERS + "1.mlp.dense_ffn_gate.weight"


def give_up_output(weights: dict[str, torch.Tensor]) -> None:
    """Leave out what `state_dict_for_save_checkpoint` of the published code forgets."""
    for name in [name for name in weights if "output_layer" in name or "projector" in name]:
        del weights[name]


RANK_DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "rank missing": (
        lambda folder: (folder / "mp_rank_00_model_states.pt").unlink(),
        r"mp_rank_00_model\S+ is missing",
    ),
    "rank cut": (lambda folder: cut(folder / "mp_rank_01_model_states.pt"), r"mp_rank_01\S+: is cut off or damaged"),
    "tensor missing": (edit(lambda weights: weights.pop(BIAS)), r"'mlp.dense_ffn_gate.bias' of part 4 is missing"),
    "of rank 1": (edit(lambda weights: weights.pop(BIAS), 1), r"mp_rank_01\S+: tensor .* of part 4 is missing"),
    "layer missing": (
        edit(lambda weights: [weights.pop(n) for n in [*weights] if "layers.1." in n]),
        "of part 4 is mis",
    ),
    "forgotten": (edit(give_up_output), r"mp_rank_00\S+: tensor 'input_layernorm.bias' of part 1 is missing"),
    "unknown tensor": (
        edit(lambda weights: weights.update({LAYERS + "1.x": torch.ones(1)})),
        "'x' of part 4 is unknown",
    ),
    "unknown part": (
        edit(lambda weights: weights.update({"sequential.2.x": torch.ones(1)})),
        "'x' of part 2 is unknown",
    ),
    "unknown prefix": (edit(lambda weights: weights.update({"lm_head.x": torch.ones(1)})), "'lm_head.x' is unknown"),
    "twice": (edit(lambda weights: weights.update({"sequential.4" + BIAS[len(LAYERS) + 1 :]: weights[BIAS]})), "twice"),
    "no tensor": (edit(lambda weights: weights.update({BIAS: "text"})), f"'{BIAS}' is none"),  # type: ignore[dict-item]
    "shape": (edit(lambda weights: weights.update({WEIGHT: weights[WEIGHT][1:]})), "does not fit the other tensors"),
    "type": (edit(lambda weights: weights.update({WEIGHT: weights[WEIGHT].float()})), "is torch.float32"),
    "old": (
        alone("checkpoint_version", 1.0),
        "checkpoint_version is 1.0, whose query_key_value has its rows in another",
    ),
    "of a pipeline": (alone("module", None), "no weights under 'module' or 'model'; if layer_"),
    "not a dict": (alone("module", torch.ones(3)), "no weights under 'module' or 'model'"),
}


@pytest.mark.parametrize("damage", RANK_DAMAGES)
def test_damage_of_files_of_all_parts_is_refused(tmp_path: Path, damage: str) -> None:
    folder = write_rank_files(tmp_path / "all", 2, "deepspeed")
    spoil, message = RANK_DAMAGES[damage]
    spoil(folder)
    with pytest.raises(YalmError, match=message) as error:
        Release(folder, 4, 64)
    assert "\n" not in str(error.value)


def test_dicts_within_themselves_end(tmp_path: Path) -> None:
    endless: dict[str, object] = {}
    endless["x"] = endless
    folder = write_rank_files(tmp_path / "all", 1, "deepspeed")
    torch.save({"module": endless}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(YalmError, match="expected a plain dict of tensors"):
        Release(folder, 4, 64)


def test_an_empty_folder_is_no_release(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="no released weights"):
        load_release(tmp_path, num_heads=4, max_positions=64)


def test_heads_that_do_not_divide_are_refused(weights: Path) -> None:
    with pytest.raises(YalmError, match="num_heads"):
        load_release(weights, num_heads=5, max_positions=64)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("mp_rank_00_000/model_optim_rng.pt", "pipeline stages .* --target-pipeline-parallel-size 1"),
        ("zero_pp_rank_0_mp_rank_00_model_states.pt", "ZeRO-3 shards .* zero_to_fp32.py"),
        ("bf16_zero_pp_rank_0_mp_rank_00_model_states.pt", "ZeRO-3 shards .* zero_to_fp32.py"),
    ],
)
def test_shards_that_others_must_merge(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    for opens in (open_weights, Release):
        with pytest.raises(YalmError, match=message) as error:
            opens(tmp_path)
        assert "\n" not in str(error.value)


def test_optimizer_shards_beside_whole_weights_are_no_obstacle(tmp_path: Path) -> None:
    """ZeRO-1 and 2 divide the optimizer only."""
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(YalmError, match="no weights here"):
        open_weights(tmp_path)
    (tmp_path / "mp_rank_00_model_states.pt").touch()
    assert rank_files(tmp_path) == [tmp_path / "mp_rank_00_model_states.pt"]
