"""Costs on paper against the network itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from yalm.errors import YalmError
from yalm.model import costs
from yalm.model.config import ModelConfig
from yalm.model.network import build, initialize
from yalm.model.ops.linear import fast_linears
from yalm.model.presets import PRESETS, preset


def product_flops(a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
    """A multiply-add for each of (M, K) x (N, K)."""
    return 2 * a[0] * a[1] * b[0]


CONFIGS = st.builds(
    lambda vocab, embedding, pairs, heads, extra, layers, intermediate: ModelConfig(
        vocab_size=vocab,
        embedding_size=min(embedding, 2 * pairs * heads),
        hidden_size=2 * pairs * heads,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=intermediate,
        max_positions=64 + extra,
    ),
    *(st.integers(1, high) for high in (200, 64, 8, 6, 8, 4, 100)),
)


@given(CONFIGS)
def test_parameters_equal_the_networks(config: ModelConfig) -> None:
    model = build(config, "meta")
    counted = costs.parameters(config)
    assert counted["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counted["embedding"] == sum(parameter.numel() for parameter in model.model.embed_tokens.parameters())
    for part, names in {"attention": ("self_attn",), "feed_forward": ("mlp",), "layer_norms": ("layernorm",)}.items():
        parameters = model.model.layers.named_parameters()
        assert counted[part] == sum(p.numel() for name, p in parameters if any(word in name for word in names))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_the_size_they_say(name: str) -> None:
    total = costs.parameters(preset(name))["total"]
    assert total == sum(parameter.numel() for parameter in build(preset(name), "meta").parameters())
    if name != "demo":
        words = name.removeprefix("yalm-")
        stated = float(words[:-1]) * {"m": 1e6, "b": 1e9}[words[-1]]
        assert total == pytest.approx(stated, rel=0.12)


def test_unknown_preset_suggests_the_nearest() -> None:
    with pytest.raises(YalmError, match="did you mean 'yalm-100b'"):
        preset("yalm100b")


def test_flops_equal_those_of_a_counted_step() -> None:
    config = ModelConfig(
        vocab_size=300,
        embedding_size=24,
        hidden_size=48,
        num_layers=3,
        num_heads=4,
        intermediate_size=80,
        max_positions=64,
    )
    model = initialize(build(config), seed=0)
    ids = torch.randint(config.vocab_size, (2, 33))
    fast_linears(model)
    with (
        FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: product_flops}) as counter,
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(ids[:, :-1], ids[:, 1:]).backward()
    # The plain kernel computes the whole square of attention: each token against all 32 positions.
    forward = costs.forward_flops(config, context=32)["total"]
    # The first layer's input needs its gradient too (the embedding learns), so backward is exactly twice forward.
    assert counter.get_total_flops() == 3 * forward * ids[:, :-1].numel()


def test_training_flops_count_half_the_square() -> None:
    config = preset("25m")
    matmuls = sum(costs.matmul_parameters(config).values())
    sequence = 512
    attention = 6 * config.num_layers * config.hidden_size * (sequence + 1)
    assert costs.training_flops(config, sequence) == pytest.approx(6 * matmuls + attention)


def test_description_is_plain_numbers() -> None:
    facts = costs.describe(preset("yalm-100b"))
    assert facts["parameters"]["total"] == pytest.approx(100e9, rel=0.02)
    assert facts["weight_bytes"]["bf16"] == 2 * facts["parameters"]["total"]
    # 3.28 MB a token in 16 bits, as the model's page says.
    assert facts["cache_bytes_per_token"]["bf16"] == pytest.approx(3.28e6, rel=0.01)
