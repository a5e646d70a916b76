"""Packed layers give what plain ones do, at every number of rows."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from support import load_golden_model
from yalm.inference.linear import PackedGeGLU, PackedLinear, pack
from yalm.model.config import ModelConfig
from yalm.model.network import GeGLU
from yalm.model.ops import matmul as native

FP32, BF16 = torch.float32, torch.bfloat16
SIDES = {"ours": (FP32, True), "oneDNN": (FP32, False), "ours bf16": (BF16, True), "oneDNN bf16": (BF16, False)}


@pytest.fixture(params=SIDES.values(), ids=SIDES)
def dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """The type of a weight, once for each library that multiplies with it, whatever this machine prefers."""
    dtype, ours = request.param
    assert isinstance(dtype, torch.dtype)
    if ours and native.library(native.SOURCE) is None:
        pytest.skip("no C++ here")
    if not ours and dtype == BF16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bf16 instructions here")
    monkeypatch.setattr("yalm.inference.linear.has_matmul", lambda weight: ours)
    return dtype


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 12, 13, 31, 64, 257])
def test_same_numbers(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    linear = nn.Linear(203, 96).to(dtype)
    x = torch.randn(rows, 203, dtype=dtype)
    with torch.inference_mode():
        exact = linear.double()(x.double())
        packed = PackedLinear(linear.to(dtype))(x)
    assert packed.dtype == dtype
    # Sums of 203 products of numbers around 1: rounding of the type, with room.
    torch.testing.assert_close(packed.double(), exact, atol=20 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


def test_shapes_of_more_dimensions_and_strides() -> None:
    linear = nn.Linear(8, 5)
    x = torch.randn(3, 8, 4).transpose(1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x))


@given(st.integers(1, 120), st.integers(1, 70), st.integers(1, 600), st.booleans(), st.booleans(), st.integers(1, 3))
@example(2500, 20, 3, True, True, 2)  # more rows than are laid in tiles at a time
@example(30, 300, 1100, False, True, 2)  # deeper than one part, wider than a task
def test_our_product_and_what_follows_it(
    count: int, rows: int, columns: int, is_gelu: bool, multiplied: bool, threads: int
) -> None:
    if native.library(native.SOURCE) is None:
        pytest.skip("no C++ here")
    torch.manual_seed(count)
    linear = nn.Linear(columns, rows)
    x, times = torch.randn(count, columns), torch.randn(count, rows) if multiplied else None
    weight = native.panels(linear.weight.detach())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = native.packed_linear(x, weight, linear.bias, is_gelu=is_gelu, times=times)
        torch.set_num_threads(1)
        assert native.packed_linear(x, weight, linear.bias, is_gelu=is_gelu, times=times).equal(got)
    finally:
        torch.set_num_threads(before)
    with torch.inference_mode():
        want = linear.double()(x.double())
        want = nn.functional.gelu(want) if is_gelu else want
        want = want * times if times is not None else want
    torch.testing.assert_close(got.double(), want, atol=1e-6 * (10 + columns**0.5), rtol=1e-5)


def test_our_gelu_far_from_zero() -> None:
    if native.library(native.SOURCE) is None:
        pytest.skip("no C++ here")
    x = torch.cat((torch.linspace(-15, 15, 30_001), torch.tensor([0.0, -0.0, -1e30, 1e30, torch.nan])))
    weight, bias = native.panels(torch.ones(1, 1)), torch.zeros(1)
    got = native.packed_linear(x[:, None], weight, bias, is_gelu=True).squeeze(1).double()
    want = nn.functional.gelu(x.double())
    assert got[-1].isnan()
    assert ((got - want).abs() <= 2.5e-7 * x.abs())[:-1].all()


@pytest.mark.parametrize("rows", [1, 8, 70])
def test_geglu_within_the_products(rows: int, dtype: torch.dtype) -> None:
    sizes = {"vocab_size": 9, "embedding_size": 8, "hidden_size": 48, "num_layers": 1, "num_heads": 2}
    torch.manual_seed(rows)
    plain = GeGLU(ModelConfig(**sizes, intermediate_size=203)).to(dtype)
    x = 6 * torch.randn(rows, 48, dtype=dtype)  # gates on both sides of where erf and tanh differ
    with torch.inference_mode():
        exact = plain.double()(x.double())
        got = PackedGeGLU(plain.to(dtype))(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, atol=10 * torch.finfo(dtype).eps * exact.abs().max().item(), rtol=0)


@pytest.mark.parametrize("ours", [False, True])
def test_pack_replaces_every_linear_and_keeps_the_table(ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yalm.model.ops.matmul.has_avx512", lambda: not ours)
    model = load_golden_model()
    table = model.model.embed_tokens.tokens.weight.clone()
    assert pack(model) is model
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert torch.equal(model.model.embed_tokens.tokens.weight, table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_types_without_a_packed_kernel_stay_plain(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("yalm.inference.linear.has_matmul", lambda weight: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model = pack(load_golden_model(dtype))
    assert isinstance(model.lm_head, nn.Linear)
