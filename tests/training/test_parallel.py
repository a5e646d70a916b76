"""Data parallelism: however the model is divided it learns the same, in the bytes of the formula, gathering ahead."""

import itertools
import json
import platform
import subprocess
import sys
from dataclasses import replace
from typing import Literal

import pytest
import torch

from ranks import run_ranks
from sharding import (
    CONFIG,
    LENGTH,
    SEQUENCES,
    count_bytes,
    count_collectives,
    impossible_divisions,
    record_gathers,
    train_each,
)
from support import MakeSettings, losses, validations
from yalm.errors import YalmError
from yalm.model.network import Yalm, build
from yalm.planning.memory import Layout, bytes_per_rank
from yalm.training import parallel
from yalm.training.loop import train
from yalm.training.parallel import join_world, parallelize
from yalm.training.settings import ComputeSettings

UNDISTURBED = ("validation.every_steps=1000", "checkpoint.every_steps=1000")
# A step has eight sequences: with micro-batches of two, ranks that read different data accumulate, and pipelines fill.
TWO_RANKS = [
    "zero=0 micro=4",
    "zero=0 micro=2 recompute=selective",
    "zero=1 micro=4 recompute=selective",
    "zero=1 micro=2 recompute=full",
    "zero=2 micro=4 recompute=full",
    "zero=2 micro=2 prefetch=0",
    "zero=3 micro=4 prefetch=2",
    "zero=3 micro=2 recompute=selective offload=true",
    "tensor=2 micro=8",
    "tensor=2 micro=2 recompute=selective",
    "pipeline=2 micro=2 recompute=full",
    "pipeline=2 micro=8 zero=0",
]
FOUR_RANKS = [
    "zero=3 micro=1 recompute=full replicate=2",
    "tensor=2 zero=3 micro=2",
    "pipeline=2 zero=1 micro=1",
    "pipeline=2 zero=3 micro=1 offload=true recompute=selective",
    "pipeline=2 tensor=2 micro=2",
]


COMPILED = [
    "zero=3 micro=2 recompute=selective compile=on",
    "zero=0 micro=4 recompute=full compile=on",
    "tensor=2 micro=8 compile=on",
    "tensor=2 micro=2 recompute=full compile=on",
    "pipeline=2 micro=2 recompute=selective compile=on",
]


def overrides(case: str) -> list[str]:
    """The settings of a case; `micro` are the sequences of a micro-batch."""
    pairs = [pair.split("=") for pair in case.split()]
    return [f"batch.micro_sequences={value}" if key == "micro" else f"compute.{key}={value}" for key, value in pairs]


def slow(*values: object) -> object:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("steps", "ranks", "cases"),
    [
        (8, 2, TWO_RANKS),
        slow(50, 2, TWO_RANKS),
        slow(50, 4, FOUR_RANKS),
        *(slow(50, 2, [case]) for case in COMPILED),
    ],
    ids=["two ranks", "two ranks for long", "four ranks for long", *COMPILED],
)
def test_losses_are_the_same_however_the_model_is_divided(
    make_settings: MakeSettings, steps: int, ranks: int, cases: list[str]
) -> None:
    length = f"schedule.tokens={steps * 8 * 24}"
    alone = make_settings(length, *UNDISTURBED, output="alone")
    train(alone)
    assert len(losses(alone)) == steps
    runs = [make_settings(length, *UNDISTURBED, *overrides(case), output=case) for case in cases]
    run_ranks(ranks, train_each, runs)
    for case, settings in zip(cases, runs, strict=True):
        assert losses(settings) == pytest.approx(losses(alone), rel=1e-4), case
        for part, expected in validations(alone)[steps].items():
            assert validations(settings)[steps][part] == pytest.approx(expected, rel=1e-4), case


def test_half_precision_on_meshes_follows_fp32(make_settings: MakeSettings) -> None:
    alone = make_settings("batch.micro_sequences=4", output="alone")
    train(alone)
    cases = ("tensor=2 micro=4 recompute=full", "pipeline=2 micro=2")
    runs = [make_settings(*overrides(case), "compute.precision=bf16", output=case) for case in cases]
    run_ranks(2, train_each, runs)
    for case, settings in zip(cases, runs, strict=True):
        assert losses(settings) == pytest.approx(losses(alone), rel=3e-3), case
        assert losses(settings) != pytest.approx(losses(alone), rel=1e-6), case  # it was computed in bf16


@pytest.mark.parametrize(("ranks", "numbers"), [(2, (1, 2)), slow(4, (1, 2))])
def test_bytes_are_those_of_the_formula(ranks: int, numbers: tuple[int, ...]) -> None:
    """Of steps of as many micro-batches as `numbers` has."""
    plain = ComputeSettings(device="cpu", threads=1)
    stages, recomputes = (0, 1, 2, 3), ("none", "selective", "full")
    choices = [
        *({"zero": zero, "recompute": how} for zero, how in itertools.product(stages, recomputes)),
        *({"zero": zero, "recompute": how, "offload": True} for zero, how in itertools.product(stages, recomputes)),
        *({"tensor": 2, "recompute": how} for how in recomputes),
        *({"pipeline": 2, "zero": zero, "recompute": how} for zero, how in itertools.product((0, 1, 2), recomputes)),
        *({"prefetch": prefetch} for prefetch in (0, 2)),
        *([{"pipeline": 2, "tensor": 2, "zero": 1}] if ranks == 4 else []),
    ]
    cases = [(plain.model_copy(update=choice), number) for choice, number in itertools.product(choices, numbers)]
    measured = run_ranks(ranks, count_bytes, cases)
    for (settings, micro_batches), *found in zip(cases, *measured, strict=True):
        layout = Layout(
            data=ranks // settings.tensor // settings.pipeline,
            tensor=settings.tensor,
            pipeline=settings.pipeline,
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
        fullest = {kind: max(rank[kind] for rank in found) for kind in found[0]}
        assert fullest == pytest.approx({kind: expected[kind] for kind in fullest}, rel=0.05), (settings, micro_batches)


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
    with pytest.raises(YalmError, match=r"pipeline x compute.tensor 6 must divide the 1 ranks"):
        train(make_settings("compute.pipeline=3", "compute.tensor=2"))
    with pytest.raises(YalmError, match=r"must be a multiple of compute\.tensor 5"):
        make_settings("compute.tensor=5")
    with pytest.raises(YalmError, match="fp8 and tensor above 1"):
        make_settings("compute.precision=fp8", "compute.tensor=2")
    with pytest.raises(YalmError, match=r"bf16 and compute\.tensor above 1"):
        make_settings("compute.precision=bf16", "optimizer.weights=bf16", "compute.tensor=2")
    with pytest.raises(YalmError, match=r"moments bf16 and compute\.tensor above 1"):
        make_settings("optimizer.moments=bf16", "compute.tensor=2")
    for error in run_ranks(4, impossible_divisions, make_settings("compute.tensor=4", "model.num_heads=2")):
        assert error == "compute.tensor 4 does not divide the model's num_heads 2; choose a divisor"
    for error in run_ranks(4, impossible_divisions, make_settings("compute.pipeline=4", "model.num_layers=2")):
        assert error == "pipeline=4: the model has only 2 layers; choose at most 2 stages"


@pytest.mark.parametrize(
    ("device", "compile", "fused", "expected"),
    [
        ("cuda", "off", True, True),
        ("cuda", "off", False, False),
        ("cuda", "on", True, False),
        ("cuda", "auto", True, False),
        ("cpu", "auto", True, False),
    ],
)
def test_what_is_fused(
    device: str, compile: Literal["auto", "on", "off"], fused: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[Yalm] = []
    monkeypatch.setattr(parallel, "fuse", models.append)
    monkeypatch.setattr(parallel, "apply_precision", lambda *_: None)  # asks the GPU what it can
    model = build(CONFIG, "meta")
    with join_world(ComputeSettings(device="cpu")) as world:
        there = replace(world, device=torch.device(device))
        parallelize(model, there, ComputeSettings(compile=compile, fused=fused))
    assert (models == [model]) == expected


FREED = """
import resource, torch
from yalm.training.parallel import join_world
from yalm.training.settings import ComputeSettings

def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    parts = [torch.zeros(megabytes << 18) for megabytes in (25, 3, 30, 1, 12)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with join_world(ComputeSettings(device="cpu", threads=1)):
    print([step() for _ in range(8)])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_memory_that_a_step_frees_is_there_for_the_next() -> None:
    run = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    first, *others = json.loads(run.stdout)
    assert min(others) < 0.05 * first, "at the latest when the gaps that earlier steps left are large enough"
