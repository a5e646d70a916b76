"""Properties of the network beyond the golden values."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import DocumentAttention, Yalm, build, initialize, parts

CONFIG = ModelConfig(
    vocab_size=61, embedding_size=12, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=40, max_positions=64
)


@pytest.fixture(scope="module")
def model() -> Yalm:
    return initialize(build(CONFIG), seed=1, table_std=0.2)


@given(length=st.integers(2, 20), changed=st.integers(1, 19), seed=st.integers(0, 99))
def test_no_position_sees_a_later_one(model: Yalm, length: int, changed: int, seed: int) -> None:
    changed = min(changed, length - 1)
    ids = torch.randint(CONFIG.vocab_size, (1, length), generator=torch.Generator().manual_seed(seed))
    other = ids.clone()
    other[0, changed] = (other[0, changed] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = model(ids), model(other)
    torch.testing.assert_close(before[:, :changed], after[:, :changed], atol=1e-5, rtol=1e-5)
    assert (before[:, changed:] - after[:, changed:]).abs().max() > 1e-4


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_document_attention_equals_documents_alone(model: Yalm, lengths: list[int], seed: int) -> None:
    ids = torch.randint(CONFIG.vocab_size, (1, sum(lengths)), generator=torch.Generator().manual_seed(seed))
    documents = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    with torch.no_grad():
        packed = model(ids, attention=DocumentAttention(documents))
        alone = torch.cat([model(document) for document in ids.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=1e-4)


def test_only_distances_matter(model: Yalm) -> None:
    ids = torch.arange(10)[None]
    with torch.no_grad():
        here, there = model(ids), model(ids, positions=torch.arange(10) + 37)
    torch.testing.assert_close(here, there, atol=1e-4, rtol=1e-4)


def test_weights_come_from_the_seed_alone() -> None:
    first, again, other = (initialize(build(CONFIG), seed) for seed in (5, 5, 6))
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
        assert a.dim() == 1 or not torch.equal(a, c), name


@given(st.integers(1, 4).map(lambda n: 96 * n), st.integers(1, 12))
@settings(max_examples=10)
def test_products_keep_their_scale_and_the_residual_too(width: int, layers: int) -> None:
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_layers": layers}
    model = initialize(build(CONFIG.model_copy(update=sizes)), seed=0).model
    attention, mlp = model.layers[-1].self_attn, model.layers[-1].mlp
    for linear, share in ((attention.qkv_proj, 1.0), (mlp.gate_proj, 1.0), (attention.o_proj, 0.5 / layers)):
        variance = linear.weight.detach().pow(2).sum(dim=1).mean()
        assert float(variance) == pytest.approx(share, rel=0.1)
    assert float(mlp.down_proj.weight.detach().std()) == pytest.approx((4 * width * layers) ** -0.5, rel=0.1)


def test_the_table_is_tied() -> None:
    model = build(CONFIG)
    assert model.lm_head.weight is model.model.embed_tokens.tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_parts_hold_every_parameter_once() -> None:
    model = build(CONFIG, "meta")
    names = [f"{prefix}.{name}" for prefix, part in parts(model) for name, _ in part.named_parameters()]
    assert sorted([*names, "lm_head.bias"]) == sorted(dict(model.named_parameters()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "multiple of 2 x num_heads"),
        ({"embedding_size": 25}, "must not exceed hidden_size"),
        ({"num_layers": 0}, "num_layers = 0"),
        ({"hiden_size": 24}, "did you mean 'hidden_size'"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(YalmError, match=message):
        ModelConfig.parse(CONFIG.model_dump() | change, source="model")
