"""Several ranks are one model: same logits, same texts; and every rank holds its share and no more."""

import json
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ranks import (
    PROMPTS,
    lose_the_second_rank,
    observe,
    observe_parallel,
    run_ranks,
    seconds_of_waiting,
    wait_for_silent_ranks,
)
from support import GOLDEN
from yalm.errors import YalmError
from yalm.inference.language_model import LanguageModel
from yalm.inference.parallel import TIMEOUT, Seat, Shard, cut, join
from yalm.inference.placement import OVERHEAD, Sizes
from yalm.model.config import ModelConfig
from yalm.model.division import stages
from yalm.model.network import Layer, Rotary, build, causal_attention

GREEDY = json.loads((GOLDEN / "generation.json").read_text())["greedy"]
MESHES = [(2, 1), (4, 1), (1, 2), (1, 3), (2, 2)]


@pytest.fixture(scope="module")
def alone(lm: LanguageModel) -> dict[str, Any]:
    return observe(lm)


def check(seen: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Bit for bit the same on all ranks; as one process, up to the order of summation in fp32."""
    for rank in seen:
        np.testing.assert_array_equal(rank["logits"], seen[0]["logits"])
        for name in ("logits", "scores"):
            np.testing.assert_allclose(rank[name], alone[name], rtol=0, atol=1e-5 * np.abs(alone[name]).max())
        for name in ("greedy", "sampled"):
            assert rank[name] == alone[name]


@pytest.mark.parametrize(("tensor", "pipeline"), MESHES)
def test_ranks_are_one_model(alone: dict[str, Any], lm: LanguageModel, tensor: int, pipeline: int) -> None:
    seen = run_ranks(tensor * pipeline, observe_parallel, tensor, pipeline)
    check(seen, alone)
    config = lm.model.config
    for number, rank in enumerate(seen):
        mine = stages(config.num_layers, pipeline)[number // tensor]
        assert (rank["layers"], rank["heads"]) == (len(mine), config.num_heads // tensor)
        width = -(-config.intermediate_size // tensor)
        assert rank["held"] == len(mine) * config.hidden_size * (4 * config.hidden_size // tensor + 3 * width)
        assert len(set(rank["read"])) == len(rank["read"])
        read = {int(name.split(".")[2]) for name in rank["read"] if name.startswith("model.layers.")}
        assert read == set(mine)


@pytest.mark.parametrize("item", GREEDY, ids=lambda item: item["prompt"][:12])
def test_one_process_is_golden(lm: LanguageModel, alone: dict[str, Any], item: dict[str, Any]) -> None:
    """With the test above: what ranks generate is what the original generated."""
    if item["prompt"] in PROMPTS:
        made, expected = alone["greedy"][PROMPTS.index(item["prompt"])], item["output_ids"][len(item["prompt_ids"]) :]
        shared = min(len(made), len(expected))
        assert list(made[:shared]) == expected[:shared]


def test_ranks_that_read_their_layers_as_they_run(alone: dict[str, Any], lm: LanguageModel) -> None:
    sizes = Sizes.of(cut(build(lm.model.config, "meta"), Seat(0, 2)), packed=True)
    # A byte less than everything takes with the shortest cache.
    memory = OVERHEAD + sizes.fixed + sizes.layers * sizes.layer + 8 * (sizes.cache_token + sizes.work_token) - 1
    seen = run_ranks(2, observe_parallel, 2, 1, "fp32", memory)
    check(seen, alone)
    assert all("disk" in rank["tiers"] for rank in seen)


def test_stages_that_read_their_layers_as_they_run(alone: dict[str, Any]) -> None:
    """Of one layer and of two."""
    seen = run_ranks(2, observe_parallel, 1, 2, "fp32", 2**40, None, True)
    check(seen, alone)
    assert [rank["tiers"] for rank in seen] == [("disk",), ("disk", "disk")]


def test_half_precision(alone: dict[str, Any]) -> None:
    first, second = run_ranks(2, observe_parallel, 2, 1, "bf16")
    np.testing.assert_array_equal(first["logits"], second["logits"])
    assert first["sampled"] == second["sampled"]
    np.testing.assert_allclose(first["logits"], alone["logits"], rtol=0, atol=0.5)  # the golden set's own bound


@pytest.mark.parametrize(
    ("fault", "tensor", "pipeline"),
    [("bias on every rank", 2, 1), ("no sum", 2, 1), ("first layers on every stage", 1, 3)],
)
def test_faults_are_seen(alone: dict[str, Any], fault: str, tensor: int, pipeline: int) -> None:
    seen = run_ranks(tensor * pipeline, observe_parallel, tensor, pipeline, "fp32", 2**40, fault)
    with pytest.raises(AssertionError):
        check(seen, alone)


def test_silent_ranks_do_not_hold_the_others_forever() -> None:
    """On a mesh of two dimensions, whose groups are not the one that was given the timeout at the start."""
    first, *others = run_ranks(4, wait_for_silent_ranks, 2, 2)
    assert others == ["silent"] * 3
    assert first.startswith("rank 0 waits in vain for rank 1, which is gone or silent; ")
    assert "\n" not in first


def test_a_rank_that_is_gone_is_one_line() -> None:
    first, second = run_ranks(2, lose_the_second_rank)
    assert first.startswith("rank 0 waits in vain for rank 1, which is gone or silent; ")
    assert second == "no error"


def test_ranks_wait_for_a_person_but_not_for_each_other() -> None:
    minutes = TIMEOUT.total_seconds()
    (first, among_first), (second, among_second) = run_ranks(2, seconds_of_waiting)
    assert first == among_first == among_second == minutes
    assert second >= 1000 * minutes


@st.composite
def configs(draw: st.DrawFn) -> tuple[ModelConfig, int]:
    """Small sizes, and a number of ranks that divides the heads."""
    ranks = draw(st.integers(1, 4))
    heads = ranks * draw(st.integers(1, 2))
    config = ModelConfig(
        vocab_size=7,
        embedding_size=3,
        hidden_size=2 * heads * draw(st.integers(2, 4)),
        num_layers=2,
        num_heads=heads,
        intermediate_size=draw(st.integers(1, 17)),
    )
    return config, ranks


@given(drawn=configs())
def test_the_slices_of_all_ranks_join_to_the_original(drawn: tuple[ModelConfig, int]) -> None:
    config, ranks = drawn
    for name, spec in build(config, "meta").state_dict().items():
        whole = torch.arange(1.0, 1 + spec.numel()).view(spec.shape)
        parts = [Shard(config, rank, ranks).cut(name, whole) for rank in range(ranks)]
        piece = Shard(config, 0, ranks).slice(name, whole.shape)
        assert len({part.shape for part in parts}) == 1, name
        if piece is None:
            assert all(torch.equal(part, whole) for part in parts)
        elif name.endswith(("o_proj.bias", "down_proj.bias")):
            assert torch.equal(sum(parts), whole)  # type: ignore[arg-type]
        else:
            joined = torch.cat(parts, piece.dim)
            real, zeros = joined.split(
                [whole.shape[piece.dim], joined.shape[piece.dim] - whole.shape[piece.dim]], piece.dim
            )
            assert torch.equal(real, whole), name
            assert not zeros.any()


@settings(max_examples=50)
@given(drawn=configs(), seed=st.integers(0, 1000))
def test_the_shares_of_a_layer_add_up(drawn: tuple[ModelConfig, int], seed: int) -> None:
    """Attention and feed-forward of the slices, summed, are the whole's: heads stay whole, biases come once, and
    zeros in the width change nothing."""
    config, ranks = drawn
    generator = torch.Generator().manual_seed(seed)
    whole = Layer(config, 1).double()
    for parameter in whole.parameters():
        parameter.data.normal_(generator=generator)
    x = torch.randn(2, 5, config.hidden_size, dtype=torch.float64, generator=generator)
    rotary = Rotary(torch.arange(5), config, torch.float64)
    attended, fed = torch.zeros_like(x), torch.zeros_like(x)
    for rank in range(ranks):
        share = Layer(config, 1).double()
        for name, tensor in whole.state_dict().items():
            owner = share.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(Shard(config, rank, ranks).cut(name, tensor)))
        attended += share.self_attn(x, rotary, causal_attention)
        fed += share.mlp(x)
    torch.testing.assert_close(attended, whole.self_attn(x, rotary, causal_attention), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fed, whole.mlp(x), rtol=1e-10, atol=1e-10)


def dequantize(weight: Tensor, scale: Tensor, zero: Tensor | None, columns: int) -> Tensor:
    """The matrix (N, columns) behind 8-bit codes (N, K) with a scale a row, or behind 4-bit codes in groups of 128.

    A group's 64 bytes hold its first 64 columns in their low halves, its last 64 in their high ones.
    """
    if zero is None:
        return weight * scale
    groups = weight.view(len(weight), -1, 64)
    codes = torch.cat((groups & 15, groups >> 4), dim=2)
    return ((codes - zero[..., None]) * scale[..., None]).flatten(1)[:, :columns]


@given(
    module=st.sampled_from(["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"]),
    bits=st.sampled_from([4, 8]),
    ranks=st.integers(1, 4),
    size=st.one_of(st.sampled_from([64, 128, 255, 256, 384, 512, 1024]), st.integers(2, 600)),
)
def test_quantized_tensors_are_divided_alike(module: str, bits: int, ranks: int, size: int) -> None:
    """The slices of codes, scales and zeros stand for the slice of the weight; where they cannot, it is refused."""
    attention = module.startswith("self_attn")
    hidden, width = (size, 5) if attention else (2 * ranks, size)
    assume(hidden % (2 * ranks) == 0)
    config = ModelConfig(
        vocab_size=7, embedding_size=1, hidden_size=hidden, num_layers=1, num_heads=ranks, intermediate_size=width
    )
    rows, columns = Layer(config, 1).get_submodule(module).weight.shape  # type: ignore[union-attr,misc]
    groups = -(-columns // 128)
    generator = torch.Generator().manual_seed(size)
    if bits == 8:
        tensors = {"weight": torch.randint(-127, 128, (rows, columns), generator=generator)}
        tensors["weight_scale"] = torch.rand(rows, 1, generator=generator)
    else:
        tensors = {"weight": torch.randint(256, (rows, 64 * groups), generator=generator)}
        tensors["weight_scale"] = torch.rand(rows, groups, generator=generator)
        tensors["weight_zero"] = torch.randint(16, (rows, groups), generator=generator)
    whole = dequantize(tensors["weight"], tensors["weight_scale"], tensors.get("weight_zero"), columns)
    torn = bits == 4 and ranks > 1 and module.endswith(("o_proj", "down_proj")) and -(-columns // ranks) % 128 > 0
    for rank in range(ranks):
        shard = Shard(config, rank, ranks)
        if torn:
            with pytest.raises(YalmError, match="which a cut would tear") as error:
                [shard.cut(f"model.layers.0.{module}.{name}", tensor) for name, tensor in tensors.items()]
            assert "\n" not in str(error.value)
            continue
        parts = {name: shard.cut(f"model.layers.0.{module}.{name}", tensor) for name, tensor in tensors.items()}
        expected = shard.cut(f"model.layers.0.{module}.weight", whole)
        made = dequantize(parts["weight"], parts["weight_scale"], parts.get("weight_zero"), expected.shape[1])
        # Columns of the last group that the model has not are of no account: their inputs are zero.
        real = (
            expected.shape[1]
            if expected.shape[1] == columns
            else min(expected.shape[1], columns - rank * expected.shape[1])
        )
        assert torch.equal(made[:, :real], expected[:, :real])


@given(layers=st.integers(1, 100), ranks=st.integers(1, 100))
def test_stages_are_contiguous_and_balanced(layers: int, ranks: int) -> None:
    if ranks > layers:
        with pytest.raises(YalmError, match=f"only {layers} layers"):
            stages(layers, ranks)
        return
    made = stages(layers, ranks)
    assert list(chain(*made)) == list(range(layers))
    assert len(made) == ranks
    assert max(map(len, made)) - min(map(len, made)) <= 1


def test_heads_that_do_not_divide_are_one_line(lm: LanguageModel) -> None:
    with pytest.raises(YalmError, match=r"tensor=3: the model's 4 heads") as error:
        Shard(lm.model.config, 0, 3)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("tensor", "pipeline", "world"), [(2, 1, None), (1, 2, "3"), (2, 2, "2"), (0, 1, "0")])
def test_a_wrong_number_of_processes_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tensor: int, pipeline: int, world: str | None
) -> None:
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(YalmError, match=f"tensor={tensor} x pipeline={pipeline}(: give| needs .* torchrun)") as error:
        join(tensor, pipeline)
    assert "\n" not in str(error.value)


def test_a_process_without_a_gpu_is_one_line() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without GPUs")
    with pytest.raises(YalmError, match="finds 0 GPUs"):
        join(device_type="cuda")
