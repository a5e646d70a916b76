"""Quantized weights: error bounds of the codes, kernels against plain products, models near the unquantized ones."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from support import GOLDEN, load_golden_model
from yalm.errors import YalmError
from yalm.inference.linear import PackedLinear, pack
from yalm.model.network import Yalm
from yalm.model.ops import native
from yalm.model.ops import quantized_linear as ops
from yalm.model.quantize import Quantization, QuantizedLinear, quantize, quantize_modules, quantized_part

INT8, INT4 = Quantization.named("int8"), Quantization.named("int4")
BOTH = pytest.mark.parametrize("quantization", [INT8, INT4], ids=lambda q: q.name)
LOGITS = load_file(GOLDEN / "logits.safetensors")
IDS, REFERENCE = LOGITS["input_ids.b3_s64"], LOGITS["logits.b3_s64"]


def restored(tensors: dict[str, Tensor], columns: int) -> Tensor:
    return ops.dequantize(tensors["weight"], tensors["weight_scale"], tensors.get("weight_zero"), columns)


def drawn(rows: int, columns: int, seed: int, spread: float = 0.02) -> Tensor:
    """Normal weights of which some are outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * spread
    return torch.where(torch.rand(rows, columns, generator=generator) < 0.01, weight * 10, weight)


sizes = st.tuples(st.integers(1, 20), st.integers(1, 300), st.integers(0, 10**6), st.sampled_from([1e-6, 0.02, 1e4]))


@given(sizes)
def test_8_bits_are_half_a_step_off_at_most(size: tuple[int, int, int, float]) -> None:
    weight = drawn(*size)
    error = (restored(quantize(weight, INT8), weight.shape[1]) - weight).abs()
    assert (error <= weight.abs().amax(1, keepdim=True) / 254 * (1 + 1e-4)).all()


@given(sizes)
def test_4_bits_are_a_step_off_at_most(size: tuple[int, int, int, float]) -> None:
    weight = drawn(*size)
    error = (restored(quantize(weight, INT4), weight.shape[1]) - weight).abs()
    groups = F.pad(weight, (0, -weight.shape[1] % 128)).view(len(weight), -1, 128)
    # Half a step of the codes and, at the ends of the range, half a step of the rounded zero; the scale is bf16.
    step = (groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0)) / 15
    assert (error <= step.repeat_interleave(128, 1)[:, : weight.shape[1]] * (1 + 15 / 256)).all()


def test_4_bits_on_normal_weights() -> None:
    weight = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    error = (restored(quantize(weight, INT4), 1024) - weight).norm() / weight.norm()
    assert error < 0.105


@BOTH
def test_rows_are_independent_and_blocks_do_not_show(
    quantization: Quantization, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = drawn(13, 300, seed=1)
    whole = quantize(weight, quantization)
    monkeypatch.setattr("yalm.model.quantize.BLOCK_WEIGHTS", 700)
    for name, tensor in quantize(weight, quantization).items():
        assert torch.equal(tensor, whole[name])
        assert torch.equal(quantize(weight[3:5], quantization)[name], tensor[3:5])
        assert torch.equal(quantize(weight, quantization, names=[name])[name], tensor)
        shape, dtype = quantization.layout(13, 300)[name]
        assert (tensor.shape, tensor.dtype) == (shape, dtype)


def test_groups_of_columns_are_independent() -> None:
    weight = drawn(7, 512, seed=2)
    whole, cut = quantize(weight, INT4), quantize(weight[:, 128:384], INT4)
    assert torch.equal(whole["weight"][:, 64:192], cut["weight"])
    assert torch.equal(whole["weight_scale"][:, 1:3], cut["weight_scale"])
    assert torch.equal(whole["weight_zero"][:, 1:3], cut["weight_zero"])


@BOTH
def test_zeros_stay_zero(quantization: Quantization) -> None:
    weight = drawn(6, 200, seed=3)
    weight[2], weight[:, 150:] = 0, 0
    made = quantize(weight[:, :150], quantization, columns=200)
    assert all(torch.equal(made[name], tensor) for name, tensor in quantize(weight, quantization).items())
    back = restored(made, 200)
    assert not back[2].any()
    assert not back[:, 150:].any()
    assert not any(tensor[2].any() for tensor in made.values())  # as the converter pads rows


@BOTH
@pytest.mark.parametrize("wrong", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_is_refused(quantization: Quantization, wrong: float) -> None:
    weight = drawn(3, 200, seed=4)
    weight[1, 7] = wrong
    with pytest.raises(ValueError, match="not finite"):
        quantize(weight, quantization)


@pytest.fixture(params=["C++", "plain"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "plain":
        monkeypatch.setattr(ops, "library", lambda name: None)
    elif native.library(ops.SOURCE) is None:
        pytest.skip("no C++ compiler here")
    return request.param  # type: ignore[no-any-return]


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (37, 203), (96, 96), (33, 1300), (40, 2048)])
def test_products(way: str, quantization: Quantization, dtype: torch.dtype, rows: int, columns: int) -> None:
    weight, bias = drawn(rows, columns, seed=rows), torch.linspace(-1, 1, rows).to(dtype)
    made = quantize(weight, quantization)
    exact = restored(made, columns).double()
    for batch in (1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64, 65, 130):
        x = torch.randn(batch, columns, generator=torch.Generator().manual_seed(batch)).to(dtype)
        got = ops.quantized_linear(x, made["weight"], made["weight_scale"], made.get("weight_zero"), bias)
        expected = F.linear(x.double(), exact, bias.double())
        assert got.dtype == dtype
        # Rounding of the type at the size of the sums; large batches in 16 bits round the weights too.
        size = (x.double().abs() @ exact.abs().T + 1).max().item()
        torch.testing.assert_close(got.double(), expected, atol=2 * torch.finfo(dtype).eps * size, rtol=0)


@BOTH
def test_small_blocks_and_any_shape(way: str, quantization: Quantization, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "BLOCK_BYTES", 4 * 300 * 5)
    linear = nn.Linear(300, 33)
    module = QuantizedLinear.of(linear, quantization)
    x = torch.randn(4, 300, 20).transpose(1, 2)
    expected = F.linear(x, module.dequantize(), linear.bias)
    torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(module(x[:2, :3]), expected[:2, :3], atol=1e-5, rtol=1e-5)
    assert module(x[:0]).shape == (0, 20, 33)
    cast = copy.deepcopy(module).to(torch.float16)  # casts the scales too
    torch.testing.assert_close(cast(x.half()).float(), expected, atol=0.02, rtol=0.02)


def test_threads_share_the_rows() -> None:
    module = QuantizedLinear.of(nn.Linear(260, 1000), INT4)
    x, threads = torch.randn(5, 260), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        several = module(x)
        torch.set_num_threads(1)
        assert torch.equal(module(x), several)
    finally:
        torch.set_num_threads(threads)


def quantized(model: Yalm, quantization: Quantization) -> Yalm:
    return quantize_modules(copy.deepcopy(model), quantization)


@BOTH
def test_only_the_matrices_of_layers_and_output_change(golden_model: Yalm, quantization: Quantization) -> None:
    plain, made = golden_model.state_dict(), quantized(golden_model, quantization).state_dict()
    kept = {name: tensor for name, tensor in made.items() if quantized_part(name) is None}
    assert all(torch.equal(tensor, plain[name]) for name, tensor in kept.items())
    replaced = set(plain) - set(kept)
    assert replaced == {part[0] for name in made if (part := quantized_part(name)) is not None}
    assert len(replaced) == 5 * 3 + 1
    for name in replaced:
        parts = quantize(plain[name], quantization)
        assert all(torch.equal(made[name.removesuffix("weight") + part], parts[part]) for part in parts)


# The golden weights are random and large: what a layer gets wrong the next ones blow up. Logits spread by 2.3.
@pytest.mark.parametrize(("quantization", "mean", "most"), [(INT8, 0.05, 0.6), (INT4, 0.8, 7.0)], ids=["int8", "int4"])
def test_golden_logits(golden_model: Yalm, quantization: Quantization, mean: float, most: float) -> None:
    with torch.no_grad():
        error = (quantized(golden_model, quantization)(IDS) - REFERENCE).abs()
    assert error.mean() < mean
    assert error.max() < most


@BOTH
def test_golden_logits_are_those_of_the_dequantized_weights(golden_model: Yalm, quantization: Quantization) -> None:
    made = quantized(golden_model, quantization)
    with torch.no_grad():
        for name, module in made.named_modules():
            if isinstance(module, QuantizedLinear):
                golden_model.get_submodule(name).weight.copy_(module.dequantize())  # type: ignore[operator, union-attr]
        torch.testing.assert_close(made(IDS), golden_model(IDS), atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(made(IDS[:1, :9]), golden_model(IDS[:1, :9]), atol=2e-4, rtol=1e-4)


def test_greedy_continuation_in_8_bits() -> None:
    """At every place of a greedy continuation the 8-bit model's choice is the original's, or a near tie."""
    plain = load_golden_model()
    made = quantized(plain, INT8)
    ids = IDS[:1, :8]
    with torch.no_grad():
        for _ in range(24):
            ids = torch.cat((ids, plain(ids)[:, -1:].argmax(-1)), dim=1)
        exact, near = plain(ids)[0, 7:-1], made(ids)[0, 7:-1]
    best = exact.amax(-1)
    chosen = exact.gather(1, near.argmax(-1, keepdim=True)).squeeze(1)
    assert (best - chosen).max() < 0.3
    assert (chosen == best).float().mean() > 0.9


def test_pack_leaves_quantized_layers(golden_model: Yalm) -> None:
    made = quantize_modules(golden_model, INT4)
    with torch.inference_mode():
        before = made(IDS[:1])
        packed = pack(made)
        assert isinstance(packed.lm_head, PackedLinear)
        assert sum(isinstance(module, QuantizedLinear) for module in packed.modules()) == 16
        torch.testing.assert_close(packed(IDS[:1]), before, atol=1e-4, rtol=1e-4)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(YalmError, match="quantization 'int3' is not known; choose one of int8, int4"):
        Quantization.named("int3")
    with pytest.raises(YalmError, match="group_size must be 128 for 4 bits"):
        Quantization.parse({"bits": 4}, "config.json")
