"""What a trace is made into: the FLOPs of every module are found where `model.costs` says they are."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from yalm.model import costs
from yalm.profiling.classify import KINDS, Timeline, length, merged, overlap, read_timeline
from yalm.profiling.record import Recording
from yalm.profiling.roofline import flops_and_bytes

Recorded = Callable[..., Recording]
WAYS = {
    "plain": (),
    "bf16, sharded": ("compute.precision=bf16",),
    "recomputed": ("compute.recompute=full",),
    "within documents": ("data.cross_documents=false",),
}


def timeline_of(recording: Recording) -> Timeline:
    return read_timeline(recording.profiler.events(), recording.steps)


def flops_of(timeline: Timeline, **wanted: object) -> float:
    found = (op for op in timeline.operations if all(getattr(op, key) == value for key, value in wanted.items()))
    return sum(flops_and_bytes(op)[0] for op in found) / timeline.steps


@pytest.mark.parametrize("way", WAYS)
def test_products_are_where_the_formulas_have_them(recorded: Recorded, way: str) -> None:
    recording = recorded(*WAYS[way])
    timeline, config, tokens = timeline_of(recording), recording.config, recording.settings.tokens_per_step
    weights = costs.matmul_parameters(config)
    hidden, wide, layers = config.hidden_size, config.intermediate_size, config.num_layers
    linears = {
        "self_attn.qkv_proj": 3 * hidden * hidden,
        "self_attn.o_proj": hidden * hidden,
        "mlp.gate_proj": hidden * wide,
        "mlp.up_proj": hidden * wide,
        "mlp.down_proj": hidden * wide,
    }
    for name, weight in linears.items():
        module = f"model.layers.*.{name}"
        flops = 2 * tokens * layers * weight
        assert flops_of(timeline, kind="matmul", module=module, phase="forward") == flops
        assert flops_of(timeline, kind="matmul", module=module, backward=True) == 2 * flops
        assert flops_of(timeline, kind="matmul", module=module, recomputed=True) == flops * (way == "recomputed")
    # The loss takes all three products of the table in its forward pass.
    table = config.embedding_size * config.vocab_size
    assert flops_of(timeline, kind="matmul", module="lm_head") == 3 * 2 * tokens * table
    forward = costs.forward_flops(config, (recording.settings.data.sequence_length + 1) / 2)
    assert flops_of(timeline, kind="matmul", recomputed=False) == 3 * 2 * tokens * sum(weights.values())
    core = flops_of(timeline, kind="attention", phase="forward")
    assert core == tokens * forward["attention_core"]


def test_kinds_and_phases_are_the_whole_step(recorded: Recorded) -> None:
    timeline = timeline_of(recorded())
    assert tuple(timeline.kinds) == KINDS
    assert sum(timeline.kinds.values()) == pytest.approx(timeline.seconds)
    assert all(seconds > 0 for kind, seconds in timeline.kinds.items() if "communication" not in kind)
    assert 0.8 * timeline.seconds < sum(timeline.phases.values()) <= timeline.seconds
    modules = sum(sum(seconds.values()) for seconds in timeline.modules.values())
    assert modules == pytest.approx(timeline.total())
    named = [name for name in timeline.modules if name in ("optimizer", "lm_head") or name.startswith("model")]
    assert sum(sum(timeline.modules[name].values()) for name in named) > 0.9 * modules


def test_the_last_operation_of_a_forward_pass_owns_the_backward_one(recorded: Recorded) -> None:
    """Norms and the residual's sum have backward functions of their own, and no scope around them."""
    timeline = timeline_of(recorded())
    norms = {op.module for op in timeline.operations if "native_layer_norm_backward" in op.name}
    assert norms == {name for name in timeline.modules if name.endswith("norm") and name != "model.norm"}
    gelus = {op.module for op in timeline.operations if "gelu_backward" in op.name}
    assert gelus == {"model.layers.*.mlp", "model.norm"}


@pytest.mark.slow
def test_compiled_layers_are_modules_as_a_whole(recorded: Recorded) -> None:
    timeline = timeline_of(recorded("compute.compile=on"))
    weights = costs.matmul_parameters(recorded("compute.compile=on").config)
    tokens = recorded("compute.compile=on").settings.tokens_per_step
    layers = 2 * tokens * (weights["attention"] + weights["feed_forward"])
    assert flops_of(timeline, kind="matmul", module="model.layers.*", phase="forward") == layers
    assert flops_of(timeline, kind="matmul", module="model.layers.*", phase="backward") == 2 * layers


def event(name: str, start: float, end: float, gpu: bool = False, **more: Any) -> FunctionEvent:
    device = DeviceType.CUDA if gpu else DeviceType.CPU
    return FunctionEvent(0, name, 1, start, end, device_type=device, use_device="cuda", **more)


def test_on_gpus_time_is_that_of_kernels() -> None:
    """In 100 microseconds kernels at 10-30 and, compiled, 40-70; a gather at 60-90, which hides for a third."""
    product = event("aten::mm", 5, 8, input_shapes=[[2, 3], [3, 4]], input_dtypes=["float", "float"])
    product.append_kernel("gemm", 0, 20)
    timeline = read_timeline(
        [
            event("phase batch", 0, 2),
            event("phase forward", 2, 95),
            event("phase step", 95, 100),
            product,
            event("gemm", 10, 30, gpu=True),
            event("triton_poi_fused", 40, 70, gpu=True),
            event("ncclDevKernel_AllGather_RING_LL", 60, 90, gpu=True),
        ],
        steps=1,
    )
    expected = {"matmul": 20, "element-wise": 30, "communication exposed": 20, "data": 2, "idle": 28}
    assert timeline.kinds == pytest.approx(dict.fromkeys(KINDS, 0) | {k: v / 1e6 for k, v in expected.items()})
    assert timeline.hidden == pytest.approx(10e-6)
    assert timeline.waits == {"ncclDevKernel_AllGather_RING_LL": pytest.approx(20e-6)}
    assert timeline.seconds == pytest.approx(100e-6)


INTERVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 8)).map(lambda pair: (pair[0], sum(pair))))


@given(INTERVALS, INTERVALS)
def test_intervals_are_sets_of_moments(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> None:
    def moments(intervals: list[tuple[int, int]]) -> set[int]:
        return {moment for start, end in intervals for moment in range(start, end)}

    apart, other = merged(first), merged(second)
    assert length(apart) == len(moments(first))
    assert overlap(apart, other) == len(moments(first) & moments(second))
