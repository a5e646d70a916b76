"""Data parallelism: however the model is divided it learns the same, in the bytes of the formula, gathering ahead."""

import itertools

import pytest

from ranks import run_ranks
from sharding import CONFIG, LENGTH, SEQUENCES, count_bytes, count_collectives, record_gathers, train_each
from support import MakeSettings, losses
from yalm.errors import YalmError
from yalm.planning.memory import Layout, bytes_per_rank
from yalm.training.loop import train
from yalm.training.settings import ComputeSettings

STEPS = ("schedule.tokens=9600", "validation.every_steps=1000", "checkpoint.every_steps=1000")  # 50 of them
# ZeRO's stage, sequences of a micro-batch, what is computed again, and more: a step has eight sequences, so two ranks
# accumulate over micro-batches of two and four ranks over those of one.
TWO_RANKS = [
    (0, 4, "none"),
    (0, 2, "selective"),
    (1, 4, "selective"),
    (1, 2, "full"),
    (2, 4, "full"),
    (2, 2, "none", "compute.prefetch=0"),
    (3, 4, "none", "compute.prefetch=2"),
    (3, 2, "selective", "compute.offload=true"),
]
FOUR_RANKS = [(3, 1, "full", "compute.replicate=2")]


def test_fifty_steps_are_the_same_however_the_model_is_divided(make_settings: MakeSettings) -> None:
    alone = make_settings(*STEPS, output="alone")
    train(alone)
    assert len(losses(alone)) == 50
    for ranks, cases in ((2, TWO_RANKS), (4, FOUR_RANKS)):
        runs = [
            make_settings(
                *STEPS,
                f"compute.zero={zero}",
                f"batch.micro_sequences={micro}",
                f"compute.recompute={recompute}",
                *more,
                output=f"{ranks} ranks, run {index}",
            )
            for index, (zero, micro, recompute, *more) in enumerate(cases)
        ]
        run_ranks(ranks, train_each, runs)
        for case, settings in zip(cases, runs, strict=True):
            assert losses(settings) == pytest.approx(losses(alone), rel=1e-4), case


@pytest.mark.parametrize("ranks", [2, 4])
def test_bytes_are_those_of_the_formula(ranks: int) -> None:
    cases = [
        (ComputeSettings(device="cpu", threads=1, zero=zero, recompute=recompute, prefetch=prefetch), micro_batches)
        for zero, recompute, prefetch, micro_batches in itertools.product(
            (0, 1, 2, 3), ("none", "selective", "full"), (1,), (1, 2)
        )
    ]
    cases += [(ComputeSettings(device="cpu", threads=1, prefetch=prefetch), 1) for prefetch in (0, 2)]
    for measured in run_ranks(ranks, count_bytes, cases):
        for (settings, micro_batches), found in zip(cases, measured, strict=True):
            layout = Layout(
                data=ranks,
                zero=settings.zero,
                sequence=LENGTH,
                micro_batch=SEQUENCES,
                accumulation=micro_batches,
                prefetch=settings.prefetch,
                recompute=settings.recompute,
                precision="fp32",
            )
            expected = bytes_per_rank(CONFIG, layout)
            expected["parameters"] += expected["gathered"]
            assert found == pytest.approx({kind: expected[kind] for kind in found}, rel=0.05), settings


def test_no_stage_communicates_needlessly() -> None:
    layers, parts, micro_batches = 4, 5, 2
    # What gathers and reduces among the ranks that share a model, and sums over all ranks or groups, in one step.
    expected = {
        (0, 1): (0, 0, parts),
        (1, 1): (parts, parts, 0),
        (2, 1): (parts, parts * micro_batches, 0),
        (3, 1): ((2 * layers + 1) * micro_batches, parts * micro_batches, 0),
        (1, 2): (parts, parts, parts),
        (2, 2): (parts, parts * micro_batches, parts),
        (3, 2): ((2 * layers + 1) * micro_batches, parts * micro_batches, parts),
    }
    cases = [ComputeSettings(device="cpu", threads=1, zero=zero, replicate=groups) for zero, groups in expected]
    for counts in run_ranks(4, count_collectives, cases, micro_batches):
        assert [tuple(count.values()) for count in counts] == list(expected.values())


def test_the_next_layers_are_gathered_before_a_layer_computes() -> None:
    for prefetch in (0, 1, 2):
        for events in run_ranks(2, record_gathers, prefetch):
            forward, backward = (expected_events(order, prefetch) for order in ([0, 1, 2, 3], [3, 2, 1, 0]))
            assert events == ["gather rest", *forward, *backward], prefetch


def expected_events(layers: list[int], prefetch: int) -> list[str]:
    """Each layer computed when it and the `prefetch` that follow have been asked for, and no others."""
    events: list[str] = []
    for index, layer in enumerate(layers):
        wanted = [f"gather {later}" for later in layers[index : index + 1 + prefetch]]
        events += [gather for gather in wanted if gather not in events] + [f"compute {layer}"]
    return events


def test_impossible_divisions_are_one_line(make_settings: MakeSettings) -> None:
    with pytest.raises(YalmError, match="replicate is for zero 1, 2 or 3"):
        make_settings("compute.zero=0", "compute.replicate=2")
    with pytest.raises(YalmError, match="replicate 3 must divide the 1 ranks"):
        train(make_settings("compute.replicate=3"))
