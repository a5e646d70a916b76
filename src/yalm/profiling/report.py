"""The profile as one self-contained page: the facts of `yalm.profiling.profile.describe` and nothing else.

Bars and the picture of memory are plain HTML and SVG, so that the page opens anywhere and at once. The price: nothing
can be zoomed into; for that there is the trace.
"""

from importlib.resources import files
from itertools import pairwise
from typing import Any

COLOURS = ("#4c78d0", "#e0803a", "#3fa66b", "#b565c9", "#c9524f", "#8a8f98", "#c7a93c", "#52a9b8")
WIDTH, HEIGHT = 1000, 260


def page(facts: dict[str, Any]) -> str:
    """The page of these facts."""
    import jinja2

    strict = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = strict.from_string((files("yalm.profiling") / "profile.html").read_text(encoding="utf-8"))
    shares = {
        name: {part: seconds / facts["profiled_seconds"] for part, seconds in facts[name].items()}
        for name in ("phases", "kinds")
    }
    areas = memory_areas(facts["memory_series"])
    return template.render(facts=facts, shares=shares, colours=COLOURS, areas=areas, width=WIDTH, height=HEIGHT)


def memory_areas(series: list[list[float]]) -> list[str]:
    """Points of one polygon for each kind of memory, stacked, in a picture of WIDTH by HEIGHT; none of no points.

    `series` as in `yalm.profiling.memory.memory_use`.
    """
    if len(series) < 2:
        return []
    start, span = series[0][0], series[-1][0] - series[0][0]
    top = max(sum(point[1:]) for point in series)
    edges = [
        [
            (WIDTH * (point[0] - start) / (span or 1), HEIGHT * (1 - sum(point[1 : 1 + count]) / (top or 1)))
            for point in series
        ]
        for count in range(len(series[0]))
    ]
    return [" ".join(f"{x:.1f},{y:.1f}" for x, y in [*upper, *reversed(lower)]) for lower, upper in pairwise(edges)]
