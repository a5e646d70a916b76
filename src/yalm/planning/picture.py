"""The plan as a picture: the best layouts side by side, a rank's bytes by kind and a step's seconds by part."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from yalm.atomic import atomic_file
from yalm.errors import YalmError

# Told apart in grey and by people who see red and green alike: Okabe and Ito's eight, the grey one for what is fixed.
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#e69f00", "#f0e442", "#d55e00", "#cc79a7", "#999999")
FORMATS = (".svg", ".png")


def draw(facts: dict[str, Any], file: Path) -> None:
    """Draw the candidates of `search.plan` into an SVG or a PNG, by its name; YalmError for other names."""
    if file.suffix not in FORMATS:
        raise YalmError(f"--picture {file}: the name must end in {' or '.join(FORMATS)}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise YalmError("--picture needs matplotlib; run: pip install 'openyalm[report]'") from None
    candidates = facts["candidates"]
    labels = [mesh(candidate["layout"]) for candidate in candidates]
    figure = Figure(figsize=(13.5, 1.6 + 0.5 * len(candidates)), layout="constrained")
    memory, time = figure.subplots(1, 2, sharey=True)
    _bars(memory, labels, ({k: v / 1e9 for k, v in one["bytes_per_rank"].items()} for one in candidates))
    memory.axvline(facts["gpu_memory"] / 1e9, color="black", linestyle="--", linewidth=1)
    memory.set_xlabel("GB on the fullest rank; dashed: what it has")
    _bars(time, labels, (one["step_parts"] for one in candidates))
    time.set_xlabel("seconds of a step")
    for bar, candidate in enumerate(candidates):
        rate = f"  {candidate['tokens_per_second']:,.0f} tokens/s" + ("" if candidate["fits"] else ", does not fit")
        time.annotate(rate, (candidate["step_seconds"], bar), va="center", fontsize="small")
    time.margins(x=0.35)
    memory.invert_yaxis()
    question = facts["question"]
    figure.suptitle(f"{facts['model']} on {question['gpus']} {question['gpu']}: the fastest layout of each mesh")
    with atomic_file(file) as temporary:
        figure.savefig(
            temporary, format=file.suffix[1:], dpi=120, metadata={"Date": None} if file.suffix == ".svg" else {}
        )


def mesh(layout: dict[str, Any]) -> str:
    """A layout in a line: ranks by dimension, stage, micro-batches, recomputation."""
    return (
        f"{layout['data']} x {layout['tensor']} x {layout['pipeline']}, zero {layout['zero']}, "
        f"{layout['accumulation']} x {layout['micro_batch']} sequences, recompute {layout['recompute']}"
    )


def _bars(axes: Any, labels: list[str], values: Iterable[dict[str, float]]) -> None:
    """A stacked bar a label, from the top; a total is not drawn."""
    rows = list(values)
    left = [0.0] * len(rows)
    kinds = [kind for kind in rows[0] if kind != "total"]
    for kind, colour in zip(kinds, COLOURS, strict=False):
        widths = [row[kind] for row in rows]
        axes.barh(range(len(rows)), widths, left=left, color=colour, label=kind, edgecolor="white", linewidth=0.5)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(rows)), labels)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        fontsize="small", ncols=-(-len(kinds) // 2), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False
    )
