"""Conversion of released files to a model folder and back: golden values, identical bits, one-line refusals."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from support import GOLDEN, released, split, write_rank_files
from yalm.atomic import resumable_folder
from yalm.errors import YalmError
from yalm.model import convert as convert_module
from yalm.model.convert import convert_folder, convert_release, padded_width
from yalm.model.folder import DTYPES, load_folder, read_config
from yalm.model.presets import PRESETS
from yalm.model.release import Release, load_release

WEIGHTS, VOCAB = GOLDEN / "weights", GOLDEN / "vocab.sp"
LOGITS = load_file(GOLDEN / "logits.safetensors")
CASE = "b3_s64"
LAYER = "layer_04-model_00-model_states.pt"


def convert(weights: Path, folder: Path, **options: Any) -> Path:
    return convert_release(weights, folder, VOCAB, **{"num_heads": 4, "max_positions": 64} | options).folder


def assert_same(left: dict[str, dict[str, Tensor]], right: dict[str, dict[str, Tensor]]) -> None:
    assert left.keys() == right.keys()
    for file, tensors in left.items():
        assert list(tensors) == list(right[file])
        for name, tensor in tensors.items():
            other = right[file][name]
            assert tensor.dtype == other.dtype
            # As bytes: equal numbers are not enough.
            assert torch.equal(tensor.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), name


def recast(folder: Path, dtype: torch.dtype) -> Path:
    """The golden weights in another type, with noise that only that type holds."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for file, tensors in released(WEIGHTS).items():
        noisy = {
            name: tensor.to(dtype) * (1 + 1e-3 * torch.rand(tensor.shape, generator=generator)).to(dtype)
            for name, tensor in tensors.items()
        }
        torch.save(noisy, folder / file)
    return folder


@pytest.mark.parametrize("intermediate_size", [None, 256], ids=["as it is", "padded"])
def test_the_golden_weights_give_the_golden_logits(tmp_path: Path, intermediate_size: int | None) -> None:
    model = load_folder(convert(WEIGHTS, tmp_path / "model", intermediate_size=intermediate_size))
    assert model.config.intermediate_size == (intermediate_size or 203)
    with torch.no_grad():
        assert (model(LOGITS[f"input_ids.{CASE}"]) - LOGITS[f"logits.{CASE}"]).abs().max() < 1e-4
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == VOCAB.read_bytes()


@pytest.mark.parametrize("intermediate_size", [None, 1024], ids=["as it is", "padded"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_there_and_back_gives_the_same_bits(tmp_path: Path, dtype: str, intermediate_size: int | None) -> None:
    source = recast(tmp_path / "source", DTYPES[dtype])
    folder = convert(source, tmp_path / "model", intermediate_size=intermediate_size)
    values = json.loads((folder / "config.json").read_text())
    assert values["dtype"] == str(DTYPES[dtype]).removeprefix("torch.")
    assert values["intermediate_size"] - values["intermediate_padding"] == 203
    convert_folder(folder, tmp_path / "back")
    assert_same(released(source), released(tmp_path / "back"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_type_is_rounded_as_by_loading(tmp_path: Path, dtype: str) -> None:
    converted = load_folder(convert(WEIGHTS, tmp_path / "model", dtype=dtype), dtype)
    expected = load_release(WEIGHTS, 4, 64, DTYPES[dtype])
    for name, parameter in expected.named_parameters():
        assert torch.equal(converted.get_parameter(name), parameter), name


def test_fp16_has_no_room_for_large_numbers(tmp_path: Path) -> None:
    source = recast(tmp_path / "source", torch.float32)
    tensors = torch.load(source / LAYER, weights_only=True)
    tensors["mlp.dense_ffn_output.bias"][3] = 1e5
    torch.save(tensors, source / LAYER)
    with pytest.raises(YalmError, match=r"mlp.down_proj.bias' has numbers too large for fp16"):
        convert(source, tmp_path / "model", dtype="fp16")


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_are_joined(tmp_path: Path, ranks: int) -> None:
    source = split(tmp_path / "source", ranks)
    width = -(-203 // ranks) * ranks
    kept = convert(source, tmp_path / "kept")
    assert read_config(kept).intermediate_size == width
    convert_folder(kept, tmp_path / "back", intermediate_size=203)
    assert_same(released(WEIGHTS), released(tmp_path / "back"))
    removed = convert(source, tmp_path / "removed", intermediate_size=203)
    assert read_config(removed).intermediate_padding == 0
    expected = load_folder(convert(WEIGHTS, tmp_path / "model"))
    for name, parameter in load_folder(removed).named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name


@pytest.mark.parametrize("ranks", [1, 2])
def test_files_of_all_parts_are_the_same_model(tmp_path: Path, ranks: int) -> None:
    source = write_rank_files(tmp_path / "source", ranks, "megatron")
    for folder, options in (("whole", {}), ("first", {"num_layers": 2})):
        model = load_folder(convert(source, tmp_path / folder, intermediate_size=203, **options))
        expected = load_release(WEIGHTS, 4, 64)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, expected.get_parameter(name)), name
    convert_folder(tmp_path / "whole", tmp_path / "back")
    assert_same(released(WEIGHTS), released(tmp_path / "back"))


@pytest.mark.parametrize("layer", [0, 2])
def test_a_wrong_byte_in_a_file_of_all_parts_is_found_in_its_turn(tmp_path: Path, layer: int) -> None:
    source = write_rank_files(tmp_path / "source", 1, "deepspeed")
    span = Release(source, 4, 64).span(f"model.layers.{layer}.mlp.gate_proj.weight")
    assert span is not None
    with open(span.path, "r+b") as file:
        file.seek(span.offset + span.nbytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(YalmError, match=r"mp_rank_00_model_states.pt: is damaged .*CRC"):
        convert(source, tmp_path / "model")
    # Those before it are finished, for only the bytes that a file is made of are looked at.
    assert len(list((tmp_path / ".model.partial").glob("*.safetensors"))) == layer + 1


def test_a_preset_knows_heads_positions_and_the_padding_of_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = convert(WEIGHTS, tmp_path / "model")
    monkeypatch.setitem(PRESETS, "golden", read_config(folder))
    joined = convert_release(split(tmp_path / "source", 4), tmp_path / "joined", VOCAB).folder
    # The ranks' padding, 203 to 204, is dropped: the folder is that of the weights in one piece.
    assert read_config(joined) == read_config(folder)
    convert_folder(joined, tmp_path / "back")
    assert_same(released(WEIGHTS), released(tmp_path / "back"))


def test_ranks_that_differ_where_they_should_not_are_refused(tmp_path: Path) -> None:
    source = split(tmp_path / "source", 2)
    tensors = torch.load(source / LAYER.replace("model_00", "model_01"), weights_only=True)
    tensors["attention.dense.bias"] += 1
    torch.save(tensors, source / LAYER.replace("model_00", "model_01"))
    with pytest.raises(YalmError, match=r"'attention.dense.bias' differs from rank 0's"):
        convert(source, tmp_path / "model")


def test_a_missing_rank_is_refused(tmp_path: Path) -> None:
    source = split(tmp_path / "source", 2)
    (source / LAYER.replace("model_00", "model_01")).unlink()
    with pytest.raises(YalmError, match=r"layer_04-model_01-model_states.pt is missing"):
        convert(source, tmp_path / "model")


def test_only_the_first_layers(tmp_path: Path) -> None:
    source = Path(shutil.copytree(WEIGHTS, tmp_path / "source"))
    (source / "layer_05-model_00-model_states.pt").unlink()
    folder = convert(source, tmp_path / "model", num_layers=2)
    model, whole = load_folder(folder), load_release(WEIGHTS, 4, 64)
    assert model.config.num_layers == 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name
    with pytest.raises(YalmError, match="has 3 layers; ask for 1 to 3"):
        convert(source, tmp_path / "other", num_layers=9)


def test_the_release_can_be_padded_too(tmp_path: Path) -> None:
    folder = convert(WEIGHTS, tmp_path / "model")
    convert_folder(folder, tmp_path / "wide", intermediate_size=208)
    convert_folder(convert(tmp_path / "wide", tmp_path / "again"), tmp_path / "back", intermediate_size=203)
    assert released(tmp_path / "wide")[LAYER]["mlp.dense_ffn_gate.weight"].shape == (208, 96)
    assert_same(released(WEIGHTS), released(tmp_path / "back"))


def test_padding_that_is_no_longer_zero_is_not_cut(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match=r"is not zero past a feed-forward width of 200") as error:
        convert(WEIGHTS, tmp_path / "model", intermediate_size=200)
    assert "\n" not in str(error.value)


@given(st.integers(1, 100_000))
def test_the_default_width(width: int) -> None:
    padded = padded_width(width)
    assert width <= padded <= 1.02 * width
    assert padded == width or padded % 1024 == 0


def test_the_default_width_of_the_released_model() -> None:
    assert padded_width(27_308) == 27_648


def test_the_manifest_is_one_for_sha256sum(tmp_path: Path) -> None:
    folder = convert(WEIGHTS, tmp_path / "model")
    listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
    assert listed == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(YalmError, match="exists already"):
        convert(WEIGHTS, tmp_path / "model")


def test_heads_must_be_given_for_unknown_sizes(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match=r"no preset has hidden size 96 .* --heads") as error:
        convert(WEIGHTS, tmp_path / "model", num_heads=None)
    assert "\n" not in str(error.value)


def test_a_tokenizer_with_more_pieces_than_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="is no tokenizer of this model"):
        convert(WEIGHTS, tmp_path / "model", pieces=509)


class Malice:
    """Unpickling this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = torch.load(path, weights_only=True)
        change(tensors)
        torch.save(tensors, path)

    return spoil


NAME = "mlp.dense_ffn_gate.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut off": (cut, "is cut off or damaged"),
    "a web page": (lambda path: path.write_text("<html>404</html>"), "is no weights file"),
    "empty": (lambda path: path.write_bytes(b""), "is no weights file"),
    "one bit": (flip_a_bit, "is damaged .*CRC"),
    "missing": (Path.unlink, f"{LAYER} is missing; download"),
    "no output": (lambda path: (path.parent / "layer_07-model_00-model_states.pt").unlink(), "layer_07.* is missing"),
    "tensor missing": (edit(lambda tensors: tensors.pop(NAME)), f"'{NAME}' is missing"),
    "tensor unknown": (edit(lambda tensors: tensors.update(extra=torch.ones(1))), "'extra' is unknown"),
    "shape": (edit(lambda tensors: tensors.update({NAME: tensors[NAME][1:]})), "does not fit the other tensors"),
    "type": (edit(lambda tensors: tensors.update({NAME: tensors[NAME].float()})), "is torch.float32"),
    "no name": (edit(lambda tensors: tensors.update({1: torch.ones(1)})), "expected a plain dict of tensors"),
    "no tensor": (edit(lambda tensors: tensors.update({NAME: 1})), "expected a plain dict of tensors"),
    "malicious": (
        lambda path: torch.save({NAME: Malice(path.parent.parent / "executed")}, path),
        "holds more than tensors, perhaps code, and is refused",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_and_leaves_nothing(tmp_path: Path, damage: str) -> None:
    source = Path(shutil.copytree(WEIGHTS, tmp_path / "source"))
    spoil, message = DAMAGES[damage]
    spoil(source / LAYER)
    with pytest.raises(YalmError, match=message) as error:
        convert(source, tmp_path / "model")
    assert "\n" not in str(error.value)
    left = {path.name for path in tmp_path.iterdir()}
    # A flipped bit is found when its file is read; what was finished before stays for the next try.
    assert left == ({"source", ".model.partial"} if damage == "one bit" else {"source"})


def test_a_full_disk_is_found_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil._ntuple_diskusage(10**12, 10**12 - 1000, 1000)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(YalmError, match="GB are needed"):
        convert(WEIGHTS, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("back", [False, True], ids=["to a folder", "to the release"])
def test_a_disk_that_fills_up_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    source = convert(WEIGHTS, tmp_path / "folder") if back else WEIGHTS
    name = "digest_file" if back else "write_shard"
    original, calls = getattr(convert_module, name), []

    def fill_up(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*arguments)

    monkeypatch.setattr(convert_module, name, fill_up)
    run = (lambda: convert_folder(source, tmp_path / "new")) if back else (lambda: convert(source, tmp_path / "new"))
    with pytest.raises(YalmError, match="the disk is full; make room and run the same again") as error:
        run()
    assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    run()
    assert len(calls) == 3 + (6 if back else 5) - 2
    assert not (tmp_path / ".new.partial").exists()


def test_one_conversion_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(YalmError, match="another conversion is writing there")
    with resumable_folder(tmp_path / "model"), refused:
        convert(WEIGHTS, tmp_path / "model")
