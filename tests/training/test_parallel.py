"""Data parallelism: however the model is divided, it learns the same."""

import pytest

from ranks import run_ranks
from sharding import train_each
from support import MakeSettings, losses
from yalm.errors import YalmError
from yalm.training.loop import train

STEPS = ("schedule.tokens=9600", "validation.every_steps=1000", "checkpoint.every_steps=1000")  # 50 of them
TWO_RANKS = [
    *((f"compute.zero={zero}", f"batch.micro_sequences={micro}") for zero in range(4) for micro in (4, 2)),
    ('compute.recompute="selective"', "batch.micro_sequences=2", "compute.prefetch=0"),
    ('compute.recompute="full"', "compute.offload=true", "batch.micro_sequences=2", "compute.prefetch=2"),
]
FOUR_RANKS = [
    *((f"compute.zero={zero}", "compute.replicate=2", "batch.micro_sequences=1") for zero in (1, 2, 3)),
    ("compute.replicate=2", "batch.micro_sequences=2", 'compute.recompute="full"'),
]


def test_fifty_steps_are_the_same_however_the_model_is_divided(make_settings: MakeSettings) -> None:
    alone = make_settings(*STEPS, output="alone")
    train(alone)
    assert len(losses(alone)) == 50
    for ranks, cases in ((2, TWO_RANKS), (4, FOUR_RANKS)):
        runs = [make_settings(*STEPS, *case, output=f"{ranks}-{index}") for index, case in enumerate(cases)]
        run_ranks(ranks, train_each, runs)
        for case, settings in zip(cases, runs, strict=True):
            assert losses(settings) == pytest.approx(losses(alone), rel=1e-4), case


def test_impossible_divisions_are_one_line(make_settings: MakeSettings) -> None:
    with pytest.raises(YalmError, match="replicate is for zero 1, 2 or 3"):
        make_settings("compute.zero=0", "compute.replicate=2")
    with pytest.raises(YalmError, match="replicate 3 must divide the 1 ranks"):
        train(make_settings("compute.replicate=3"))
