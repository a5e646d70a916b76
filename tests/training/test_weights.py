"""A run's first weights: those of the seed, whatever part of them a rank holds and in whatever type."""

from typing import Any

import pytest
import torch

from ranks import run_ranks
from sharding import CONFIG, one_world
from yalm.model.network import build, initialize
from yalm.training.parallel import join_world, parallelize
from yalm.training.precision import keep_weights
from yalm.training.settings import ComputeSettings
from yalm.training.weights import draw_weights, held, materialize

CASES: list[dict[str, Any]] = [
    {"zero": 0},
    {"zero": 3},
    {"zero": 3, "offload": True},
    {"zero": 3, "precision": "bf16"},
]


def difference_from_seed(cases: list[dict[str, Any]], more: dict[str, Any]) -> list[list[str]]:
    """For each case, the names of weights of which this rank holds other values than a whole model has there."""
    found = []
    with one_world():
        for case in cases:
            settings = ComputeSettings(device="cpu", threads=1, **case, **more if case["zero"] else {})
            kept: Any = "bf16" if settings.precision == "bf16" else "fp32"
            whole, model = initialize(build(CONFIG), seed=3), build(CONFIG, "meta")
            keep_weights(whole, kept)
            keep_weights(model, kept)
            expected = dict(whole.named_parameters())
            with join_world(settings) as world:
                parallelize(model, world, settings)
                materialize(model, world.device, settings.offload)
                draw_weights(model, 3, world.device)
                assert model.lm_head.weight is model.model.embed_tokens.tokens.weight
                parts = {name: held(parameter) for name, parameter in model.named_parameters()}
            found.append([name for name, (mine, part) in parts.items() if not torch.equal(mine, expected[name][part])])
            assert set(parts) == set(expected)
    return found


@pytest.mark.parametrize(
    ("ranks", "more"), [(1, {}), pytest.param(3, {}, marks=pytest.mark.slow), (4, {"replicate": 2})]
)
def test_every_rank_draws_its_part_of_the_same_model(ranks: int, more: dict[str, Any]) -> None:
    for found in run_ranks(ranks, difference_from_seed, CASES, more):
        assert found == [[]] * len(CASES)
