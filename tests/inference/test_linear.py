"""Packed layers give what plain ones do, at every number of rows."""

import pytest
import torch
from torch import nn

from support import load_golden_model
from yalm.inference.linear import PackedGeGLU, PackedLinear, pack
from yalm.model.network import GeGLU, ModelConfig


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 31, 64, 257])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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


@pytest.mark.parametrize("rows", [1, 8, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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


def test_pack_replaces_every_linear_and_keeps_the_table() -> None:
    model = load_golden_model()
    table = model.model.embed_tokens.tokens.weight.clone()
    assert pack(model) is model
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    assert torch.equal(model.model.embed_tokens.tokens.weight, table)


def test_types_without_a_packed_kernel_stay_plain() -> None:
    model = pack(load_golden_model(torch.float16))
    assert isinstance(model.lm_head, nn.Linear)
