"""Memory of the device over the recorded steps, by kind.

Weights and the optimizer's state are there all the time; a gradient from the moment it is complete (shards' gradients:
from the end of the first backward pass) until the step is done; the rest of what the allocator has given out are
activations and temporary results. What an allocator keeps without having given it out is not counted.
"""

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from torch.autograd.profiler_util import FunctionEvent

from yalm.profiling.record import GRADIENT_SCOPE
from yalm.training.metrics import PHASES

MEMORY_KINDS = ("parameters", "optimizer", "gradients", "activations")
MOST_POINTS = 400


def memory_use(
    events: Iterable[FunctionEvent], allocations: Iterable[tuple[float, int]], state: dict[str, int]
) -> dict[str, Any]:
    """`phases`: bytes by kind when each phase holds most; `series`: [seconds, bytes of each of MEMORY_KINDS] over time.

    `allocations` are (microseconds of the trace, bytes taken or given back), `state` bytes from step to step, as
    `Recording` has them.
    """
    ordered = sorted(events, key=lambda event: event.time_range.start)
    phases = [event for event in ordered if event.name in {f"phase {phase}" for phase in PHASES}]
    starts = [event.time_range.start for event in phases]
    changes: list[tuple[float, str, int]] = [(time, "memory", size) for time, size in allocations]
    marks = [event for event in ordered if event.name.startswith(GRADIENT_SCOPE)]
    changes += [(mark.time_range.start, "gradient", int(mark.name.removeprefix(GRADIENT_SCOPE))) for mark in marks]
    for event in phases:
        if event.name == "phase step":
            changes.append((event.time_range.end, "done", 0))
        elif event.name == "phase backward" and not marks:
            changes.append((event.time_range.end, "gradient", state["gradients"]))
    lasting = state["parameters"] + state["optimizer"]
    live, gradients = lasting, 0
    peaks: dict[str, dict[str, int]] = {}
    series: list[list[float]] = []
    for time, what, size in sorted(changes):
        if what == "gradient":  # those of later micro-batches are added to it
            gradients = min(gradients + size, state["gradients"])
        elif what == "done":
            gradients = 0
        else:
            live += size
        rest = max(0, live - lasting - gradients)
        kinds = dict(zip(MEMORY_KINDS, (state["parameters"], state["optimizer"], gradients, rest), strict=True))
        series.append([time / 1e6, *kinds.values()])
        place = bisect_right(starts, time) - 1
        if place >= 0:
            phase = phases[place].name.removeprefix("phase ")
            if phase not in peaks or sum(kinds.values()) > sum(peaks[phase].values()):
                peaks[phase] = kinds
    return {"phases": {phase: peaks[phase] for phase in PHASES if phase in peaks}, "series": _thin(series)}


def _thin(series: list[list[float]]) -> list[list[float]]:
    """At most MOST_POINTS points: of as many consecutive ones as that takes, the one with the most memory."""
    size = -(-len(series) // MOST_POINTS) or 1
    return [
        max(series[start : start + size], key=lambda point: sum(point[1:])) for start in range(0, len(series), size)
    ]
