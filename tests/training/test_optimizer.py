"""AdamW for weights and moments kept in bf16: on any number of ranks, and with updates too small for plain rounding."""

from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from ranks import run_ranks
from yalm.model.config import ModelConfig
from yalm.model.network import Yalm, build, initialize
from yalm.training.optimizer import MOMENTS, TYPES, StochasticAdamW, make_optimizer
from yalm.training.parallel import join_world
from yalm.training.settings import ComputeSettings, OptimizerSettings, WeightType

CONFIG = ModelConfig(
    vocab_size=64, embedding_size=16, hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48, max_positions=32
)


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
        return parameter.detach().full_tensor().float().numpy()


@pytest.mark.parametrize("kind", ["rows", "columns"])
def test_any_number_of_ranks_rounds_alike(kind: str) -> None:
    alone = sharded_update(kind)
    for together in run_ranks(2, sharded_update, kind):
        assert (together == alone).all()


def learn(kind: str, steps: int = 200, **changes: Any) -> list[float]:
    """Losses on one batch at a rate whose updates are mostly less than half of bf16's last digit."""
    model: Yalm = initialize(build(CONFIG), seed=0)
    settings = OptimizerSettings(lr=2e-5, weight_decay=0.0).model_copy(update=changes)
    if "bf16" in kind:
        model.bfloat16()
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
    exact, plain, stochastic = learn("fp32"), learn("plain bf16"), learn("bf16", weights="bf16")
    fallen = exact[0] - exact[-1]
    assert stochastic[-1] == pytest.approx(exact[-1], abs=0.02 * fallen)
    assert plain[0] - plain[-1] < 0.4 * fallen


@pytest.mark.parametrize("beta2", [0.95, 0.999])
def test_bf16_moments_learn_as_fp32_ones(beta2: float) -> None:
    exact, halved = (learn("fp32", lr=2e-3, beta2=beta2, moments=moments) for moments in ("fp32", "bf16"))
    fallen = exact[0] - exact[-1]
    assert fallen > 1
    assert halved == pytest.approx(exact, abs=0.03 * fallen)
    assert halved != exact


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


@pytest.mark.parametrize(("saved", "loaded"), [("fp32", "bf16"), ("bf16", "fp32"), ("bf16", "bf16")])
def test_moments_are_loaded_in_the_type_that_is_asked_for(saved: WeightType, loaded: WeightType) -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(6, 4, generator=generator))
    parameter.grad = torch.randn(6, 4, generator=generator)
    layer = torch.nn.Module()
    layer.weight = parameter
    before, after = (make_optimizer(layer, OptimizerSettings(moments=moments), seed=0) for moments in (saved, loaded))
    before.step()
    after.load_state_dict(before.state_dict())
    for name in MOMENTS:
        was, now = (optimizer.state[parameter][name] for optimizer in (before, after))
        assert now.dtype == TYPES[loaded]
        assert torch.equal(now, was.to(now.dtype))
        assert now.data_ptr() != was.data_ptr()
    assert int(after.state[parameter]["step"]) == 1
