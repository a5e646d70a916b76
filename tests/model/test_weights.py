"""Weights of either kind, recognised by what the folder holds, and where their bytes lie."""

from pathlib import Path

import pytest
import torch

from support import GOLDEN, split, write_rank_files
from yalm.errors import YalmError
from yalm.model.convert import convert_folder, convert_release
from yalm.model.folder import ModelFolder, shards
from yalm.model.release import Release
from yalm.model.weights import Weights, open_weights

WEIGHTS = GOLDEN / "weights"


def assert_spans_hold_the_tensors(weights: Weights) -> None:
    """For every tensor: the bytes at its span are those that `read` gives."""
    for name in [name for specs in shards(weights.config).values() for name in specs]:
        tensor, span = weights.read(name), weights.span(name)
        assert span is not None
        assert (span.dtype, span.shape) == (weights.dtype, tuple(tensor.shape))
        with open(span.path, "rb") as stream:
            stream.seek(span.offset)
            data = bytearray(stream.read(span.nbytes))
        assert torch.equal(torch.frombuffer(data, dtype=torch.uint8), tensor.flatten().view(torch.uint8)), name


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_spans_of_both_kinds(tmp_path: Path, dtype: str) -> None:
    convert_release(WEIGHTS, tmp_path / "model", GOLDEN / "vocab.sp", num_heads=4, max_positions=64, dtype=dtype)
    convert_folder(tmp_path / "model", tmp_path / "back")
    folder, release = open_weights(tmp_path / "model"), open_weights(tmp_path / "back", 4, 64)
    assert isinstance(folder, ModelFolder)
    assert isinstance(release, Release)
    assert_spans_hold_the_tensors(folder)
    assert_spans_hold_the_tensors(release)
    assert folder.config == release.config


def test_spans_in_files_of_all_parts(tmp_path: Path) -> None:
    assert_spans_hold_the_tensors(open_weights(write_rank_files(tmp_path / "all", 1, "megatron"), 4, 64))


def test_there_are_no_spans_where_ranks_split(tmp_path: Path) -> None:
    weights = open_weights(split(tmp_path / "layers", 2), 4, 64)
    names = [name for specs in shards(weights.config).values() for name in specs]
    assert {weights.span(name) for name in names} == {None}


def test_a_turned_tensor_has_no_span_but_is_read(tmp_path: Path) -> None:
    name = "layer_04-model_00-model_states.pt"
    for file in WEIGHTS.glob("*.pt"):
        tensors = torch.load(file, weights_only=True)
        if file.name == name:
            expected = tensors["attention.dense.weight"]
            tensors["attention.dense.weight"] = expected.t().contiguous().t()
        torch.save(tensors, tmp_path / file.name)
    weights = open_weights(tmp_path, 4, 64)
    assert weights.span("model.layers.1.self_attn.o_proj.weight") is None
    assert torch.equal(weights.read("model.layers.1.self_attn.o_proj.weight"), expected)


def test_neither_kind_is_refused(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere", GOLDEN / "vocab.sp"):
        with pytest.raises(YalmError, match="no weights here; expected a model folder") as error:
            open_weights(place)
        assert "\n" not in str(error.value)


def test_heads_that_the_folder_contradicts_are_refused(tmp_path: Path) -> None:
    convert_release(WEIGHTS, tmp_path / "model", GOLDEN / "vocab.sp", num_heads=4, max_positions=64)
    open_weights(tmp_path / "model", 4, 64)
    with pytest.raises(YalmError, match="has 4 heads, not 8"):
        open_weights(tmp_path / "model", heads=8)
