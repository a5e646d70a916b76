"""From a trace to what it says: every operation with its kind, its phase and the module it works for.

The forward pass of a module is what runs inside its scope. The backward pass is found by autograd's sequence numbers: a
backward function carries that of the forward operation it differentiates, and so belongs to the same module. A forward
operation that runs in the backward phase is recomputation. Of nested operations a matrix product or an attention counts
as a whole, others by what they do themselves.

Time is the device's: operations on CPUs, kernels on GPUs, where those that compiled code launches count as
element-wise, of no module. Communication counts where it is seen, as it waits (exposed) or beside computing (hidden);
waiting for data as the whole of its phase; idle is what is left of the step, on a CPU that of the interpreter.
"""

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from yalm.profiling.record import MODULE_SCOPE
from yalm.training.metrics import PHASES

KINDS = (
    "matmul",
    "attention",
    "element-wise",
    "loss",
    "optimizer",
    "communication exposed",
    "data",
    "idle",
)
MATMULS = {
    *("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm"),
    "mkldnn::_linear_pointwise",
}
COMMUNICATION = ("c10d::", "gloo:", "nccl:", "_c10d_functional::")
# What shards are packed into and out of; it takes the device's time, whether or not the transfer hides.
PACKING = "fsdp::"
WRAPPERS = ("autograd::", "torch::autograd::")
BACKWARD_FUNCTION = 1  # the scope that torch gives to events of backward functions

Interval = tuple[float, float]


@dataclass(frozen=True)
class Operation:
    """One run of one operation; `seconds` are the device's own."""

    name: str
    kind: str
    phase: str
    module: str
    """As in the network, layers all as one: `model.layers.*.mlp.up_proj`; or `optimizer`, `sharding`."""
    backward: bool
    recomputed: bool
    seconds: float
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class Timeline:
    """What a few steps did; seconds are those of one step."""

    steps: int
    seconds: float
    operations: Sequence[Operation]
    """Of all steps."""
    phases: dict[str, float]
    exposed: float
    """Communication that nothing hides, packing included."""
    hidden: float
    waits: dict[str, float]
    """Exposed communication by the name of the operation; where several wait at once, each counts."""

    def total(self, **wanted: object) -> float:
        """Seconds of a step in operations whose attributes are all those `wanted`."""
        found = (op.seconds for op in self.operations if all(getattr(op, key) == v for key, v in wanted.items()))
        return sum(found) / self.steps

    @property
    def kinds(self) -> dict[str, float]:
        """Seconds of a step by kind (KINDS), which add up to the whole of it."""
        seconds = {kind: self.total(kind=kind) for kind in KINDS}
        seconds |= {"communication exposed": self.exposed, "data": self.phases["batch"]}
        seconds["idle"] = max(0.0, self.seconds - sum(seconds.values()))
        return seconds

    @property
    def modules(self) -> dict[str, dict[str, float]]:
        """Seconds of a step by module, `forward` and `backward` (with what is recomputed); the largest first."""
        found: dict[str, dict[str, float]] = defaultdict(lambda: {"forward": 0.0, "backward": 0.0})
        for op in self.operations:
            found[op.module]["backward" if op.phase == "backward" else "forward"] += op.seconds / self.steps
        return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


@dataclass
class _Context:
    """What the scopes around an event say of it."""

    module: str = ""
    backward: bool = False
    inside: bool = False
    """Whether an operation that computes is around it."""


def read_timeline(events: Iterable[FunctionEvent], steps: int) -> Timeline:
    """Sort out the events of a profile of `steps` steps (`Recording.profiler.events()`)."""
    ordered = sorted(events, key=lambda event: event.time_range.start)
    on_gpu = any(event.device_type == DeviceType.CUDA for event in ordered)
    host = [event for event in ordered if event.device_type == DeviceType.CPU]
    phases = [event for event in host if event.name in {f"phase {phase}" for phase in PHASES}]
    starts = [event.time_range.start for event in phases]

    def phase_of(event: FunctionEvent) -> str:
        place = bisect_right(starts, event.time_range.start) - 1
        inside = place >= 0 and event.time_range.start < phases[place].time_range.end
        return phases[place].name.removeprefix("phase ") if inside else ""

    operations: list[Operation] = []
    computing: list[Interval] = []
    for event, context in _walk(host):
        phase = phase_of(event)
        if phase == "batch":  # all of it is waiting for data, whatever it does
            continue
        if not on_gpu and not context.inside:
            computing.append(_interval(event))
        if seconds := _seconds(event, on_gpu):
            kind = _kind(event.name, phase, context.module)
            operations.append(
                Operation(
                    event.name,
                    kind,
                    phase,
                    "optimizer" if kind == "optimizer" else context.module,
                    context.backward,
                    phase == "backward" and not context.backward and context.module.startswith(("model", "lm_head")),
                    seconds,
                    _shapes(event),
                    tuple(event.input_dtypes or ()),
                )
            )
    transfers: dict[str, list[Interval]] = defaultdict(list)
    for event in ordered:
        if on_gpu and event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            if event.name.startswith("nccl"):
                transfers[event.name].append(_interval(event))
            else:
                computing.append(_interval(event))
        elif not on_gpu and event.name.startswith(COMMUNICATION):
            transfers[event.name].append(_interval(event))
    if on_gpu:
        # Compiled code launches kernels itself; they are busy time that no operation accounts for.
        rest = length(merged(computing)) / 1e6 - sum(op.seconds for op in operations)
        operations.append(Operation("compiled kernels", "element-wise", "", "", False, False, max(0.0, rest), (), ()))
    span = phases[-1].time_range.end - phases[0].time_range.start if phases else 0.0
    busy = merged(computing)
    everything = merged([one for intervals in transfers.values() for one in intervals])
    hidden = overlap(everything, busy)
    packing = sum(op.seconds for op in operations if op.kind == "communication")
    return Timeline(
        steps,
        span / steps / 1e6,
        operations,
        {
            phase: length(_interval(event) for event in phases if event.name == f"phase {phase}") / steps / 1e6
            for phase in PHASES
        },
        ((length(everything) - hidden) / 1e6 + packing) / steps,
        hidden / 1e6 / steps,
        {
            name: (length(merged(intervals)) - overlap(merged(intervals), busy)) / 1e6 / steps
            for name, intervals in transfers.items()
        },
    )


def _walk(host: Sequence[FunctionEvent]) -> Iterator[tuple[FunctionEvent, _Context]]:
    """Every event that computes, with its context; the insides of a product or an attention are part of it."""
    forward_modules: dict[int, str] = {}
    last_module = ""
    waiting = [(event, _Context()) for event in host if event.cpu_parent is None][::-1]
    while waiting:
        event, context = waiting.pop()
        module, backward, inside = context.module, context.backward, context.inside
        if event.name.startswith(MODULE_SCOPE):
            module, backward = re.sub(r"(layers)\.\d+", r"\1.*", event.name.removeprefix(MODULE_SCOPE)), False
        elif event.name.startswith("FSDP::"):
            module, backward = "sharding", False
        elif event.scope == BACKWARD_FUNCTION:
            # Adding a gradient up has no number; it follows the function that made the gradient.
            module, backward = forward_modules.get(event.sequence_nr, last_module), True
            last_module = module
        elif event.sequence_nr >= 0 and not event.name.startswith(WRAPPERS):
            forward_modules[event.sequence_nr] = module
        computes = _computes(event)
        if computes:
            yield event, _Context(module, backward, inside)
            if _whole(event.name):
                continue
        below = _Context(module, backward, inside or computes)
        children = sorted(event.cpu_children, key=lambda child: child.time_range.start, reverse=True)
        waiting += [(child, below) for child in children]


def _computes(event: FunctionEvent) -> bool:
    name = event.name
    named = "::" in name and not name.startswith((*COMMUNICATION, *WRAPPERS, "FSDP::"))
    return (named or name.startswith("triton_")) and not event.is_async


def _whole(name: str) -> bool:
    return name in MATMULS or "attention" in name


def _kind(name: str, phase: str, module: str) -> str:
    if name.startswith(PACKING):
        return "communication"
    if phase == "step":
        return "optimizer"
    if name in MATMULS:
        return "matmul"
    if "attention" in name:
        return "attention"
    return "loss" if module == "lm_head" else "element-wise"


def _seconds(event: FunctionEvent, on_gpu: bool) -> float:
    if _whole(event.name):
        return float(event.device_time_total if on_gpu else event.cpu_time_total) / 1e6
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6


def _shapes(event: FunctionEvent) -> tuple[tuple[int, ...], ...]:
    shapes: Any = event.input_shapes  # a list of lists, whatever its annotation says
    return tuple(tuple(shape) for shape in shapes or ())


# Intervals, in microseconds of the trace -----------------------------------------------------------------------------


def _interval(event: FunctionEvent) -> Interval:
    return event.time_range.start, event.time_range.end


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time as intervals that are apart and in order."""
    apart: list[Interval] = []
    for start, end in sorted(intervals):
        if apart and start <= apart[-1][1]:
            apart[-1] = apart[-1][0], max(apart[-1][1], end)
        else:
            apart.append((start, end))
    return apart


def length(apart: Iterable[Interval]) -> float:
    """The time in intervals that are apart."""
    return sum(end - start for start, end in apart)


def overlap(first: Sequence[Interval], second: Sequence[Interval]) -> float:
    """The time that two lists of intervals, each apart and in order, have in common."""
    common, i, j = 0.0, 0, 0
    while i < len(first) and j < len(second):
        common += max(0.0, min(first[i][1], second[j][1]) - max(first[i][0], second[j][0]))
        if first[i][1] <= second[j][1]:
            i += 1
        else:
            j += 1
    return common
