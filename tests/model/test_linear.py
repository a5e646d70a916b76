"""The fast products under the linear layers, against the plain ones, forward and backward, on any CPU."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from yalm.model.config import ModelConfig
from yalm.model.network import build, initialize
from yalm.model.ops import linear
from yalm.model.ops.linear import fast_linears, has_onednn


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where it is the fastest, whatever this machine prefers."""
    monkeypatch.setattr(linear, "has_avx512", lambda: True)


@pytest.mark.usefixtures("onednn")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the library is the same for all examples
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_equals_the_plain_layer(batch: list[int], inputs: int, outputs: int, needs_grad: bool) -> None:
    torch.manual_seed(inputs)
    layer = nn.Linear(inputs, outputs)
    x = torch.randn(*batch, inputs, requires_grad=needs_grad)
    wanted_of = [layer.weight, layer.bias, *([x] if needs_grad else [])]
    expected = layer(x)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, wanted_of, upstream)
    fast_linears(layer)
    assert has_onednn(layer.weight)
    output = layer(x)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    for gradient, want in zip(torch.autograd.grad(output, wanted_of, upstream), wanted, strict=True):
        torch.testing.assert_close(gradient, want, atol=1e-4, rtol=1e-4)


def test_a_whole_network_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"vocab_size": 61, "embedding_size": 12, "hidden_size": 24, "num_layers": 2, "num_heads": 3}
    config = ModelConfig(**sizes, intermediate_size=40)
    ids = torch.randint(61, (2, 17), generator=torch.Generator().manual_seed(0))

    def gradients() -> dict[str, Tensor | None]:
        model = initialize(build(config), seed=1, table_std=0.2)
        fast_linears(model)
        model(ids[:, :-1], ids[:, 1:]).backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    monkeypatch.setattr(linear, "has_avx512", lambda: True)
    by_it = gradients()
    monkeypatch.setattr(linear, "has_avx512", lambda: False)
    for name, gradient in gradients().items():
        assert gradient is not None
        torch.testing.assert_close(by_it[name], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.usefixtures("onednn")
@pytest.mark.parametrize("options", [{"dtype": torch.bfloat16}, {"device": "meta"}])
def test_other_types_and_devices_are_multiplied_by_torch(options: dict[str, Any]) -> None:
    layer = nn.Linear(4, 4, **options)
    x = torch.ones(3, 4, **options)
    plain = layer(x)
    fast_linears(layer)
    assert not has_onednn(layer.weight)
    torch.testing.assert_close(layer(x), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_types_that_the_cpu_has_not_are_multiplied_in_fp32(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "cpu_multiplies", lambda dtype: dtype == torch.float32)
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 30, dtype=dtype), torch.randn(3, 7, 40, dtype=dtype, requires_grad=True)
    exact, exact_x = nn.Linear(40, 30), x.detach().float().requires_grad_(True)
    exact.load_state_dict({name: tensor.float() for name, tensor in layer.state_dict().items()})
    fast_linears(layer)
    multiplied: list[torch.dtype] = []
    plain = F.linear
    monkeypatch.setattr(F, "linear", lambda a, *others: (multiplied.append(a.dtype), plain(a, *others))[1])
    output, wanted = layer(x), plain(exact_x, exact.weight, exact.bias)
    upstream = torch.randn_like(output)
    found = torch.autograd.grad(output, [x, layer.weight, layer.bias], upstream)
    assert set(multiplied) == {torch.float32}
    exactly = torch.autograd.grad(wanted, [exact_x, exact.weight, exact.bias], upstream.float())
    for tensor, want in zip((output, *found), (wanted, *exactly), strict=True):
        torch.testing.assert_close(tensor, want.to(dtype), atol=2 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_product_added_to_a_total(avx512: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "has_avx512", lambda: avx512)
    torch.manual_seed(0)
    total, a, b = torch.randn(5, 7), torch.randn(5, 3, dtype=dtype), torch.randn(7, 3, dtype=dtype)
    wanted = total + a.float() @ b.float().T
    linear.add_product_(total, a, b)
    torch.testing.assert_close(total, wanted, atol=10 * torch.finfo(dtype).eps, rtol=torch.finfo(dtype).eps)
