"""DeepSpeed as the engine: the same losses, the same checkpoints, to and fro between engines."""

import pytest

from ranks import run_ranks
from saving import train_rank
from support import MakeSettings, losses
from yalm.training.loop import train

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

DEEPSPEED = "compute.engine=deepspeed"
# Fifty steps of eight sequences; two ranks accumulate over two micro-batches. The sizes of the model are odd, so that
# ranks do not divide its tensors.
FIFTY = (
    "schedule.tokens=9600",
    "validation.every_steps=25",
    "checkpoint.every_steps=1000",
    "batch.micro_sequences=2",
    "model.embedding_size=15",
    "model.intermediate_size=49",
)


@pytest.mark.parametrize(
    "how",
    [
        ("compute.zero=1",),
        ("compute.zero=2", "compute.offload=true"),
        ("compute.zero=3",),
        ("compute.zero=3", "compute.recompute=full", "compute.offload=true", "compute.prefetch=0"),
    ],
    ids=lambda how: " ".join(how),
)
def test_fifty_steps_are_those_of_one_process(make_settings: MakeSettings, how: tuple[str, ...]) -> None:
    alone = make_settings(*FIFTY, output="alone")
    train(alone)
    divided = make_settings(*FIFTY, *how, DEEPSPEED, output="divided")
    run_ranks(2, train_rank, divided)
    assert len(losses(alone)) == 50
    assert losses(divided) == pytest.approx(losses(alone), rel=1e-4)
