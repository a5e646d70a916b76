"""The table's gradient added up in place, against autograd's own sum."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from yalm.model.config import ModelConfig
from yalm.model.network import Yalm, build, initialize
from yalm.model.ops.tied_table import Fork, one_table_gradient

CONFIG = ModelConfig(
    vocab_size=40, embedding_size=12, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24, max_positions=32
)


def network(dtype: torch.dtype = torch.float32) -> Yalm:
    return initialize(build(CONFIG, dtype=dtype), seed=0, table_std=0.2)


def gradients(model: Yalm, ids: Tensor, passes: int = 2) -> dict[str, Tensor]:
    """Of the loss of `passes` micro-batches."""
    for shift in range(passes):
        places = (ids + shift) % CONFIG.vocab_size
        model(places[:, :-1], places[:, 1:]).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@given(st.lists(st.integers(0, CONFIG.vocab_size - 1), min_size=2, max_size=32))
def test_gradients_are_those_of_the_plain_network(words: list[int]) -> None:
    ids = torch.tensor([words])
    model = network()
    wanted = gradients(network(), ids)
    one_table_gradient(model)
    found = gradients(model, ids)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert found[name].layout == torch.strided
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)


def test_gradients_of_logits_too() -> None:
    ids = torch.randint(CONFIG.vocab_size, (2, 9), generator=torch.Generator().manual_seed(0))
    plain, model = network(), network()
    one_table_gradient(model)
    for each in (plain, model):
        each(ids).square().mean().backward()
    torch.testing.assert_close(model.lm_head.weight.grad, plain.lm_head.weight.grad)


def test_a_frequent_word_loses_nothing_in_bf16() -> None:
    """Added one after the other in bf16, ones stop counting at 256."""
    table = torch.zeros(40, 12, dtype=torch.bfloat16, requires_grad=True)
    looked_up, multiplied = Fork.apply(table)  # type: ignore[no-untyped-call]
    ones = torch.ones(40, 12, dtype=torch.bfloat16)
    (F.embedding(torch.full((512,), 7), looked_up, sparse=True).sum() + (multiplied * ones).sum()).backward()
    wanted = ones.clone()
    wanted[7] += 512
    assert table.grad is not None
    assert torch.equal(table.grad, wanted)


@pytest.mark.parametrize(("changed", "count"), [(True, 1), (False, 2)])
def test_there_is_one_gradient_of_the_tables_size(changed: bool, count: int) -> None:
    model, ids = network(), torch.arange(9)[None]
    if changed:
        one_table_gradient(model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(ids, ids).backward()
    size = model.lm_head.weight.nbytes
    assert [event.self_cpu_memory_usage for event in profiler.events()].count(size) == count  # type: ignore[no-untyped-call]


def test_the_model_is_as_before_after_a_pass_even_one_that_fails() -> None:
    model = network()
    table = model.lm_head.weight
    one_table_gradient(model)
    ids = torch.arange(9)[None]
    model(ids, ids)
    with pytest.raises(IndexError):
        model(ids + CONFIG.vocab_size, ids)
    assert model.lm_head.weight is table
    assert model.model.embed_tokens.tokens.weight is table
    assert not model.model.embed_tokens.tokens.sparse
    with torch.no_grad():
        assert not model(ids, ids).requires_grad
