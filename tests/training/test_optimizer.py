"""AdamW for weights kept in bf16: rounding without bias, and updates too small for plain rounding."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ranks import run_ranks
from yalm.model.config import ModelConfig
from yalm.model.network import Yalm, build, initialize
from yalm.training.optimizer import StochasticAdamW, make_optimizer, places, random_bits, round_stochastically
from yalm.training.parallel import join_world
from yalm.training.settings import ComputeSettings, OptimizerSettings

ALL_BITS = torch.arange(2**16, dtype=torch.int32)
CONFIG = ModelConfig(
    vocab_size=64, embedding_size=16, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48, max_positions=32
)


@given(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100))
def test_rounding_has_no_bias(value: float) -> None:
    rounded = round_stochastically(torch.full(ALL_BITS.shape, value), ALL_BITS).double()
    assert float(rounded.mean()) == value  # exact: all sums are of multiples of one power of two
    assert len(rounded.unique()) <= 2
    if value == float(torch.tensor(value).bfloat16()):
        assert torch.equal(rounded, torch.full_like(rounded, value))


def test_numbers_that_are_not_finite_stay_so() -> None:
    for value in (float("inf"), float("-inf"), float("nan")):
        rounded = round_stochastically(torch.full(ALL_BITS.shape, value), ALL_BITS)
        assert torch.equal(rounded, torch.full_like(rounded, value)) or bool(rounded.isnan().all())


def test_bits_are_fair_and_each_step_has_its_own() -> None:
    where = torch.arange(200_000)
    draws = [random_bits(where, key) for key in ((0, 1, 1), (0, 2, 1), (1, 1, 1), (0, 1, 2))]
    for draw in draws:
        assert int(draw.min()) >= 0
        assert int(draw.max()) < 2**16
        shares = torch.stack([(draw >> bit) & 1 for bit in range(16)]).double().mean(1)
        assert float((shares - 0.5).abs().max()) < 5 * 0.5 / 200_000**0.5
    correlations = torch.corrcoef(torch.stack(draws).double()) - torch.eye(len(draws))
    assert float(correlations.abs().max()) < 5 / 200_000**0.5
    assert abs(float(torch.corrcoef(torch.stack([draws[0][:-1], draws[0][1:]]).double())[0, 1])) < 5 / 200_000**0.5
    assert torch.equal(random_bits(where[1000:1010], (0, 1, 1)), draws[0][1000:1010])


def sharded_update(kind: str) -> Any:
    """Three updates of bf16 weights spread over ranks by rows, or by columns; the whole of them."""
    with join_world(ComputeSettings(device="cpu", threads=1)) as world:
        generator = torch.Generator().manual_seed(0)
        whole = torch.randn(7, 5, generator=generator).bfloat16()
        parameter = torch.nn.Parameter(distribute_tensor(whole, world.mesh, [Shard(0 if kind == "rows" else 1)]))
        assert isinstance(parameter, DTensor)
        optimizer = StochasticAdamW([{"params": [parameter], "weight_decay": 0.1}], 1e-2, (0.9, 0.95), 1e-8, seed=3)
        for _ in range(3):
            gradient = torch.randn(7, 5, generator=generator).bfloat16()
            parameter.grad = distribute_tensor(gradient, world.mesh, parameter.placements)
            optimizer.step()
        assert torch.equal(
            distribute_tensor(torch.arange(35).view(7, 5), world.mesh, parameter.placements).to_local(),
            places(parameter),
        )
        return parameter.detach().full_tensor().float().numpy()


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_any_number_of_ranks_rounds_alike(kind: str) -> None:
    alone = sharded_update(kind)
    for together in run_ranks(2, sharded_update, kind):
        assert (together == alone).all()


def learn(kind: str, steps: int = 200) -> list[float]:
    """Losses on one batch at a rate whose updates are mostly less than half of bf16's last digit."""
    model: Yalm = initialize(build(CONFIG), seed=0)
    settings = OptimizerSettings(lr=2e-5, weight_decay=0.0)
    if kind != "fp32":
        model.bfloat16()
    if kind == "stochastic bf16":
        settings = settings.model_copy(update={"weights": "bf16"})
    optimizer = make_optimizer(model, settings, seed=0)
    ids = torch.randint(CONFIG.vocab_size, (4, 17), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(steps):
        loss = model(ids[:, :-1], ids[:, 1:], torch.full((4, 16), 1 / 64))
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_stochastic_rounding_follows_fp32_where_plain_rounding_stalls() -> None:
    exact, plain, stochastic = (learn(kind) for kind in ("fp32", "plain bf16", "stochastic bf16"))
    fallen = exact[0] - exact[-1]
    assert stochastic[-1] == pytest.approx(exact[-1], abs=0.02 * fallen)
    assert plain[0] - plain[-1] < 0.4 * fallen


def test_an_update_of_nothing_changes_nothing() -> None:
    parameter = torch.nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(0)).bfloat16())
    before = parameter.detach().clone()
    parameter.grad = torch.zeros_like(parameter)
    StochasticAdamW([{"params": [parameter], "weight_decay": 0.1}], 0.0, (0.9, 0.95), 1e-8, seed=0).step()
    assert torch.equal(parameter, before)


def test_updates_are_adamws_up_to_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(50, 20, generator=generator).bfloat16()
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.float())
    settings: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    optimizers = (
        StochasticAdamW([{"params": [ours], "weight_decay": 0.1}], seed=0, **settings),
        torch.optim.AdamW([theirs], weight_decay=0.1, **settings),
    )
    for _ in range(4):
        theirs.grad = torch.randn(50, 20, generator=generator).bfloat16().float()
        ours.grad = theirs.grad.bfloat16()
        for optimizer in optimizers:
            optimizer.step()
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.allclose(optimizers[0].state[ours][name], optimizers[1].state[theirs][name], rtol=1e-5, atol=1e-7)
    difference = ours.detach().float() - theirs.detach()
    assert float(difference.abs().max()) < 4 * 2**-7 * float(start.float().abs().max())
    assert abs(float(difference.mean())) < 2e-4
