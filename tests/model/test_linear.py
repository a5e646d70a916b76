"""The fast products under the linear layers, against the plain ones, forward and backward, on any CPU."""

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from yalm.model.config import ModelConfig
from yalm.model.network import build, initialize
from yalm.model.ops import linear, matmul
from yalm.model.ops.linear import fast_linears, has_onednn, has_ours

SIZE = st.one_of(st.integers(1, 40), st.integers(1, 700))


def prefer(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where this library is the fastest: oneDNN, ours, or torch's own."""
    if library == "ours" and matmul.library(matmul.SOURCE) is None:
        pytest.skip("no C++ here")
    for module in (linear, matmul):
        monkeypatch.setattr(module, "has_avx512", lambda: library == "oneDNN")
    monkeypatch.setattr(linear, "has_ours", lambda tensor: library == "ours" and has_ours(tensor))


@pytest.fixture(params=["oneDNN", "ours"])
def fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], bool]:
    """Once for each library, whatever this machine prefers; says whether a tensor is multiplied by it."""
    prefer(request.param, monkeypatch)
    return has_onednn if request.param == "oneDNN" else has_ours


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the library is the same for all examples
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_equals_the_plain_layer(
    fast: Callable[[Tensor], bool], batch: list[int], inputs: int, outputs: int, needs_grad: bool
) -> None:
    torch.manual_seed(inputs)
    layer = nn.Linear(inputs, outputs)
    x = torch.randn(*batch, inputs, requires_grad=needs_grad)
    wanted_of = [layer.weight, layer.bias, *([x] if needs_grad else [])]
    expected = layer(x)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, wanted_of, upstream)
    fast_linears(layer)
    assert fast(layer.weight)
    output = layer(x)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    for gradient, want in zip(torch.autograd.grad(output, wanted_of, upstream), wanted, strict=True):
        torch.testing.assert_close(gradient, want, atol=1e-4, rtol=1e-4)


@contextmanager
def threads(number: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@given(SIZE, SIZE, SIZE, st.integers(0, 15), st.integers(1, 3))
@example(2500, 20, 3, 0, 2)  # more rows of each side than are laid out at a time
@example(5, 4200, 3, 3, 2)
@example(30, 40, 1100, 1, 2)  # deeper than one part
def test_our_products_of_any_strides(rows: int, columns: int, inner: int, layout: int, count: int) -> None:
    """`layout`: whether a, b are transposed, whether they are every other column, whether there is a bias."""
    if matmul.library(matmul.SOURCE) is None:
        pytest.skip("no C++ here")
    torch.manual_seed(rows + columns)

    def make(height: int, turned: bool) -> Tensor:
        step = 2 if layout & 4 else 1
        return torch.randn(inner, step * height).T[::step] if turned else torch.randn(height, step * inner)[:, ::step]

    a, b = make(rows, bool(layout & 1)), make(columns, bool(layout & 2))
    bias = torch.randn(columns) if layout & 8 else None
    exact = a.double() @ b.double().T
    with threads(count):
        got = matmul.matmul(a, b, bias)
        total = torch.randn(rows, columns)
        wanted_total = total + exact
        matmul.add_matmul_(a, b, total)
    with threads(1):
        assert torch.equal(matmul.matmul(a, b, bias), got)
    wanted = exact + bias if bias is not None else exact
    torch.testing.assert_close(got.double(), wanted, atol=1e-5 * inner**0.5, rtol=1e-5)
    torch.testing.assert_close(total.double(), wanted_total, atol=1e-5 * inner**0.5, rtol=1e-5)


def test_a_whole_network_learns_the_same(fast: Callable[[Tensor], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 61, "embedding_size": 12, "hidden_size": 24, "num_layers": 2, "num_heads": 3}
    config = ModelConfig(**sizes, intermediate_size=40)
    ids = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(0))

    def gradients() -> dict[str, Tensor | None]:
        model = initialize(build(config), seed=1, table_std=0.2)
        fast_linears(model)
        model(ids[:, :-1], ids[:, 1:]).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    by_it = gradients()
    prefer("torch", monkeypatch)
    for name, gradient in gradients().items():
        assert gradient is not None
        torch.testing.assert_close(by_it[name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"device": "meta"}])
def test_other_types_and_devices_are_multiplied_by_torch(
    fast: Callable[[Tensor], bool], options: dict[str, Any]
) -> None:
    layer = nn.Linear(4, 4, **options)
    x = torch.ones(3, 4, **options)
    plain = layer(x)
    fast_linears(layer)
    assert not fast(layer.weight)
    torch.testing.assert_close(layer(x), plain)


@pytest.mark.parametrize("library", ["oneDNN", "ours", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_added_to_a_total(library: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(library, monkeypatch)
    torch.manual_seed(0)
    total, a, b = torch.randn(5, 7), torch.randn(5, 3, dtype=dtype), torch.randn(7, 3, dtype=dtype)
    wanted = total + a.float() @ b.float().T
    linear.add_product_(total, a, b)
    torch.testing.assert_close(total, wanted, atol=10 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)
