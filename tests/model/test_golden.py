"""The original code's outputs on its tiny model, and proof that a wiring mistake would show in them."""

import json
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from support import GOLDEN, load_golden_model
from yalm.model import network
from yalm.model.network import Rotary, Yalm

LOGITS = load_file(GOLDEN / "logits.safetensors")
HALF_LOGITS = load_file(GOLDEN / "logits_halfprec.safetensors")
LOSSES = json.loads((GOLDEN / "loss.json").read_text())
CASES = sorted(name.removeprefix("input_ids.") for name in LOGITS if name.startswith("input_ids."))
# From the golden set's README.
TOLERANCE = 1e-4
HALF_TOLERANCES = {"bf16": 0.5, "fp16": 0.06}


def logits_error(model: Yalm, case: str) -> float:
    with torch.no_grad():
        return float((model(LOGITS[f"input_ids.{case}"]).float() - LOGITS[f"logits.{case}"]).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_logits(golden_model: Yalm, case: str) -> None:
    assert logits_error(golden_model, case) < TOLERANCE


@pytest.mark.parametrize("case", ["b3_s7", "b1_s64"])
def test_hidden_states(golden_model: Yalm, case: str) -> None:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    golden_model.model.embed_tokens.register_forward_hook(keep("after_projector"))
    golden_model.model.layers[0].register_forward_hook(keep("after_layer_1"))
    golden_model.model.layers[-1].register_forward_hook(keep("after_last_layer"))
    with torch.no_grad():
        golden_model(LOGITS[f"input_ids.{case}"])
    assert len(seen) == 3
    for name, value in seen.items():
        assert (value - LOGITS[f"hidden.{case}.{name}"]).abs().max() < TOLERANCE, name


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("case", ["b1_s7", "b1_s64"])
def test_half_precision_logits(dtype: str, case: str) -> None:
    model = load_golden_model({"bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
    with torch.no_grad():
        logits = model(LOGITS[f"input_ids.{case}"]).float()
    assert (logits - HALF_LOGITS[f"{dtype}.logits.{case}"]).abs().max() < HALF_TOLERANCES[dtype]


@pytest.mark.parametrize("item", LOSSES, ids=lambda item: f"{len(item['tokens'])}-tokens")
def test_losses(golden_model: Yalm, item: dict[str, list[float]]) -> None:
    ids = torch.tensor([item["tokens"]])
    inputs, targets = ids[:, :-1], ids[:, 1:]
    with torch.no_grad():
        per_token = F.cross_entropy(golden_model(inputs)[0], targets[0], reduction="none")
        mean = golden_model(inputs, targets) / targets.numel()
    assert (per_token - torch.tensor(item["per_token_loss"])).abs().max() < TOLERANCE
    assert float(mean) == pytest.approx(item["mean_loss"], abs=TOLERANCE)


def swap_gate(model: Yalm, patch: pytest.MonkeyPatch) -> None:
    for layer in model.model.layers:
        layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj


def tanh_gelu(model: Yalm, patch: pytest.MonkeyPatch) -> None:
    exact = F.gelu
    patch.setattr(network.F, "gelu", lambda x: exact(x, approximate="tanh"))


def first_layer_norm(model: Yalm, patch: pytest.MonkeyPatch) -> None:
    config = model.config
    model.model.layers[0].input_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


def interleaved_rotary(model: Yalm, patch: pytest.MonkeyPatch) -> None:
    def turn(self: Rotary, x: Tensor) -> Tensor:
        a, b = x[..., ::2], x[..., 1::2]
        return torch.stack((self.cos * a - self.sin * b, self.sin * a + self.cos * b), -1).flatten(-2)

    patch.setattr(Rotary, "__call__", turn)


def smaller_eps(model: Yalm, patch: pytest.MonkeyPatch) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 1e-6


def padding_on_the_left(model: Yalm, patch: pytest.MonkeyPatch) -> None:
    embedding = model.model.embed_tokens
    patch.setattr(type(embedding), "forward", lambda self, ids: F.pad(self.norm(self.tokens(ids)), (self.padding, 0)))


MISTAKES = [swap_gate, tanh_gelu, first_layer_norm, interleaved_rotary, smaller_eps, padding_on_the_left]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.__name__)
def test_a_wiring_mistake_would_be_caught(
    golden_model: Yalm, monkeypatch: pytest.MonkeyPatch, mistake: Callable[[Yalm, pytest.MonkeyPatch], None]
) -> None:
    mistake(golden_model, monkeypatch)
    # Ten times the tolerance, so that the check has room on both sides.
    assert logits_error(golden_model, "b1_s64") > 10 * TOLERANCE
