"""Times: a step on paper against hand-made sums and against common sense."""

from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yalm.model.costs import parameters, training_flops
from yalm.model.presets import preset
from yalm.planning.hardware import GPUS, gpu, group_bandwidth
from yalm.planning.memory import Layout
from yalm.planning.reliability import DAY, interval, reliability
from yalm.planning.time import micro_batch_seconds, seconds_at, step, traffic, utilization

A100 = gpu("a100-80gb")
CONFIG = preset("13b")
LAYOUTS = st.builds(
    Layout,
    data=st.sampled_from([1, 2, 8, 64]),
    tensor=st.sampled_from([1, 2, 8]),
    pipeline=st.sampled_from([1, 2, 8]),
    zero=st.integers(0, 2),
    sequence=st.sampled_from([512, 1024, 2048]),
    micro_batch=st.integers(1, 8),
    accumulation=st.integers(8, 64),
    recompute=st.sampled_from(["none", "selective", "full"]),
    flash=st.booleans(),
)


@given(LAYOUTS, st.sampled_from(["a100-40gb", "a100-80gb", "h100-80gb", "b200-180gb"]))
@settings(deadline=None)
def test_what_holds_of_every_layout(layout: Layout, name: str) -> None:
    device = gpu(name)
    parts = step(CONFIG, layout, device)
    mfu = utilization(CONFIG, layout, device, parts.seconds)
    assert 0 < mfu < device.matmul_share
    assert min(parts.compute, parts.optimizer) > 0 <= min(parts.bubble, parts.tensor, parts.pipeline, parts.data)
    assert parts.data <= traffic(CONFIG, layout, device).seconds("data") * (1 + 1e-9)
    assert seconds_at(CONFIG, layout, device, mfu) == pytest.approx(parts.seconds)

    def seconds(**changes: object) -> float:
        return step(CONFIG, layout.model_copy(update=changes), device).seconds

    assert seconds(recompute="full") >= seconds(recompute="selective") >= seconds(recompute="none")
    assert seconds(accumulation=layout.accumulation + 1) > seconds()
    assert seconds(interleave=2) == seconds() if layout.pipeline == 1 else True


def test_zero_moves_what_rajbhandari_says() -> None:
    # Section 7, in units of the parameters: 2 for stages 0 to 2, 3 for stage 3; here gradients are fp32, weights bf16.
    count, ranks = parameters(CONFIG)["total"], 64
    for stage, size in enumerate([8, 6, 6, 8]):
        moved = traffic(CONFIG, Layout(data=ranks, zero=stage, sequence=1024), A100)
        assert moved.data == pytest.approx(size * count * 63 / 64)
        assert moved.tensor == moved.pipeline == 0
    assert traffic(CONFIG, Layout(data=1, sequence=1024), A100).data == 0


def test_tensors_and_pipelines_move_activations() -> None:
    layout = Layout(data=1, tensor=4, pipeline=2, zero=0, sequence=1024, accumulation=3)
    moved, activation = traffic(CONFIG, layout, A100), 2 * 1024 * 5120
    assert moved.tensor == 3 * 20 * 8 * activation * 3 / 4
    assert moved.pipeline == 3 * 2 * activation / 4


def test_the_bubble_is_narayanans() -> None:
    layout = Layout(data=1, pipeline=4, zero=0, sequence=1024, accumulation=12)
    parts = step(CONFIG, layout, A100)
    assert parts.bubble / parts.compute == pytest.approx(3 / 12)
    twice = step(CONFIG, layout.model_copy(update={"interleave": 2}), A100)
    assert twice.bubble == pytest.approx(parts.bubble / 2)


def test_recomputing_all_costs_a_third_more() -> None:
    without, full = (
        micro_batch_seconds(CONFIG, Layout(data=1, sequence=1024, recompute=how), A100) for how in ("none", "full")
    )
    assert full / without == pytest.approx(4 / 3, rel=0.02)


def test_rings_across_nodes_use_every_adapter_of_their_members() -> None:
    assert group_bandwidth(A100, 8, 1) == A100.link
    assert group_bandwidth(A100, 2, 4) == A100.link
    assert group_bandwidth(A100, 800, 1) == 8 * A100.network
    assert group_bandwidth(A100, 100, 8) == A100.network


def test_utilization_counts_the_models_flops_alone() -> None:
    layout = Layout(data=8, sequence=1024, micro_batch=2, accumulation=3, recompute="full")
    expected = training_flops(CONFIG, 1024) * 8 * 2 * 3 * 1024 / (2.0 * 8 * 312e12)
    assert utilization(CONFIG, layout, A100, 2.0) == pytest.approx(expected)


@pytest.mark.parametrize("name", GPUS)
def test_data_sheets_are_in_proportion(name: str) -> None:
    device = gpu(name)
    assert device.flops["fp32"] <= device.flops.get("tf32", device.flops["fp32"]) <= device.flops["fp16"]
    assert device.network < device.link < device.bandwidth


@given(st.floats(1, 1e3), st.floats(1e4, 1e7))
def test_youngs_interval_loses_least(save: float, between: float) -> None:
    def lost(every: float) -> float:
        return save / every + every / 2 / between

    best = interval(save, between)
    assert best == pytest.approx(sqrt(2 * save * between))
    assert lost(best) <= min(lost(0.9 * best), lost(1.1 * best))


def test_more_gpus_fail_more_often_and_save_sooner() -> None:
    few, many = (reliability(preset("yalm-100b"), gpus, 8, 8) for gpus in (64, 800))
    assert many.failures_per_day == pytest.approx(12.5 * few.failures_per_day)
    assert many.interval_seconds < few.interval_seconds < DAY
    assert many.checkpoint_bytes == 12 * parameters(preset("yalm-100b"))["total"]
