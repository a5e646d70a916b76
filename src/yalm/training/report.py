"""The report of a run: one HTML file that says how the training went, for people who would rather look than read.

Everything in it comes out of the run's folder (settings, metrics, the newest checkpoint's sizes, the token folders,
`samples.jsonl` if there is one), so `yalm report RUN` can write it again at any time, of a run that is still going too.
The file is self-contained: the curves are inline SVG that takes the page's colours, the style stands in the page,
nothing is fetched. The price is a still picture; TensorBoard has the same numbers to zoom into.
"""

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from yalm.atomic import write_text
from yalm.config import read_toml
from yalm.errors import YalmError
from yalm.model.costs import describe
from yalm.model.folder import read_config
from yalm.tokens.batches import Batches
from yalm.training.metrics import METRICS_FILE, PHASES, read_metrics
from yalm.training.run import CHECKPOINTS_FOLDER, REPORT_FILE, SETTINGS_FILE
from yalm.training.settings import TrainSettings

SAMPLES_FILE = "samples.jsonl"
COLOURS = ("#4c78d0", "#e0803a", "#3fa66b", "#b565c9", "#c9524f", "#8a8f98")
MOST_POINTS = 400  # on a curve; more are averaged
_INK = "#010203"  # stands for the page's text colour until the SVG is inlined


def write_report(run_folder: str | Path) -> Path:
    """Write RUN/report.html and return its path.

    Raises YalmError if the folder holds no run, or the packages that draw the report are not installed.
    """
    folder = Path(run_folder)
    try:
        import jinja2
        import matplotlib
    except ImportError as error:
        raise YalmError(f"the report needs {error.name}; run: pip install 'openyalm[report]'") from None
    matplotlib.use("Agg", force=False)
    if not (folder / SETTINGS_FILE).exists():
        raise YalmError(f"{folder}: no {SETTINGS_FILE}, so no run of `yalm train`; give the folder of a run")
    settings = TrainSettings.parse(read_toml(folder / SETTINGS_FILE), str(folder / SETTINGS_FILE))
    records = read_metrics(folder)
    training = [record for record in records if "loss" in record]
    validation = [record for record in records if "validation" in record]
    if not training:
        raise YalmError(f"{folder / METRICS_FILE}: no step has been recorded yet; report when the run is under way")
    strict = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    template = strict.from_string((files("yalm.training") / "report.html").read_text(encoding="utf-8"))
    page = template.render(
        name=folder.resolve().name,
        headline=headline(records),
        progress={"step": training[-1]["step"], "steps": settings.total_steps},
        charts=charts(training, validation),
        phases=phase_shares(training),
        samples=read_samples(folder),
        model=_model(folder, settings.data.sequence_length),
        data=_data(settings, training[-1]["step"]),
        settings=settings.to_toml(),
        colours=COLOURS,
    )
    write_text(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def headline(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers to know of a run: validation by language, tokens, tokens per second, MFU and minutes.

    `records` are those of metrics.jsonl; empty if no step is among them. The rates are means over the time of all
    recorded steps; validation and checkpoints do not count as time.
    """
    training = [record for record in records if "loss" in record]
    if not training:
        return {}
    validation = [record["validation"] for record in records if "validation" in record]
    seconds = [sum(record["seconds"].values()) for record in training]

    def mean(key: str) -> float:
        values = (record[key] * time for record, time in zip(training, seconds, strict=True))
        return float(sum(values) / sum(seconds))

    return {
        "validation": validation[-1] if validation else {},
        "loss": training[-1]["loss"],
        "tokens": training[-1]["tokens"],
        "tokens_per_second": mean("tokens_per_second"),
        "mfu": mean("mfu"),
        "minutes": sum(seconds) / 60,
    }


def phase_shares(training: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The share of the training time that each phase of the step took."""
    seconds = {phase: sum(record["seconds"][phase] for record in training) for phase in PHASES}
    total = sum(seconds.values())
    return {phase: time / total if total else 0.0 for phase, time in seconds.items()}


def read_samples(folder: Path) -> list[dict[str, str]]:
    """Texts that the model wrote, from RUN/samples.jsonl as `yalm generate --output` writes it; none if it is missing.

    Each has a `prefix`, its `suffix`, and a `language` that may be empty.
    """
    path = folder / SAMPLES_FILE
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
        return [{key: str(record.get(key, "")) for key in ("language", "prefix", "suffix")} for record in records]
    except (ValueError, AttributeError) as error:
        raise YalmError(f"{path}: not lines of JSON objects ({error}); mend it or remove it") from None


def _model(folder: Path, sequence_length: int) -> dict[str, Any] | None:
    """Sizes and costs of the newest checkpoint's model; None before the first checkpoint."""
    checkpoints = sorted((folder / CHECKPOINTS_FOLDER).glob("step-*"))
    return describe(read_config(checkpoints[-1]), sequence_length) if checkpoints else None


def _data(settings: TrainSettings, step: int) -> list[dict[str, Any]]:
    """What the run has read of each part of its mixture; empty if the token folders are gone."""
    try:
        data = Batches(settings.data.parts, settings.data.sequence_length, settings.seed)
        parts = data.mixture.report(step * settings.batch.sequences)
    except YalmError:
        return []
    return [
        {
            "name": part.name,
            "language": part.language or "",
            "documents": folder.num_documents,
            "bytes": folder.text_bytes,
            "available": folder.num_tokens,
            "bytes_per_token": folder.text_bytes / folder.num_tokens,
            "read": part.tokens,
            "share": part.share,
            "epochs": part.epochs,
        }
        for part, folder in zip(parts, data.folders, strict=True)
    ]


# The curves -----------------------------------------------------------------------------------------------------------


def charts(
    training: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]
) -> list[tuple[str, str, Any]]:
    """The curves as (title, what the axis shows, safe inline SVG), all against tokens."""
    tokens = _thin([record["tokens"] for record in training])
    seen = [record["tokens"] for record in validation]
    names = list(dict.fromkeys(name for record in validation for name in record["validation"]))

    def of_language(name: str, key: str) -> tuple[str, Sequence[float], Sequence[float]]:
        points = [(at, record["validation"][name][key]) for at, record in zip(seen, validation, strict=True)]
        return name, [at for at, _ in points], [value for _, value in points]

    def of_training(key: str, label: str) -> tuple[str, Sequence[float], Sequence[float]]:
        return label, tokens, _thin([record[key] for record in training])

    nats = [of_training("loss", "training")] + [of_language(name, "nats_per_token") for name in names]
    bits = [of_language(name, "bits_per_byte") for name in names]
    found = [("Loss", "nats per token", _curves(nats, marked=names))]
    if bits:
        found.append(("Validation", "bits per byte", _curves(bits, marked=names, skip=1)))
    found += [
        ("Learning rate", "of the step", _curves([of_training("lr", "learning rate")], zero=True)),
        ("Gradient norm", "before clipping, logarithmic", _curves([of_training("grad_norm", "norm")], log=True)),
        ("Speed", "tokens per second", _curves([of_training("tokens_per_second", "tokens/s")], zero=True)),
        ("Time of the phases", "ms per thousand tokens", _stack(training)),
    ]
    return found


def _curves(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    marked: Sequence[str] = (),
    skip: int = 0,
    log: bool = False,
    zero: bool = False,
) -> Any:
    """Lines of (label, tokens, values); those `marked` have dots, `skip` colours are passed over, `zero` is in view."""
    figure, axes = _axes()
    for (label, x, y), colour in zip(series, (COLOURS * len(series))[skip:], strict=False):
        if label in marked:
            axes.plot(x, y, color=colour, label=label, linewidth=1.6, marker="o", markersize=3.2)
        else:
            axes.plot(x, y, color=colour, label=label, linewidth=1.2)
    if log and all(value > 0 for _, _, y in series for value in y):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.2g}")
        axes.yaxis.set_minor_formatter("{x:.2g}")
    if zero:
        axes.set_ylim(bottom=0)
    if len(series) > 1:
        axes.legend(frameon=False)
    return _inline(figure)


def _stack(training: Sequence[Mapping[str, Any]]) -> Any:
    """Milliseconds of each phase for a thousand tokens, stacked."""
    figure, axes = _axes()
    rows = [_thin([1e6 * record["seconds"][phase] / _tokens_timed(record) for record in training]) for phase in PHASES]
    axes.stackplot(_thin([record["tokens"] for record in training]), *rows, colors=COLOURS, labels=PHASES, linewidth=0)
    axes.legend(frameon=False, ncols=len(PHASES), loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0)
    return _inline(figure)


def _tokens_timed(record: Mapping[str, Any]) -> float:
    """The tokens that a record's seconds were spent on."""
    return float(record["tokens_per_second"] * sum(record["seconds"].values()))


def _axes() -> tuple[Any, Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(5.6, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(which="both", colors=_INK)
    axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    axes.set_xlabel("tokens", color=_INK)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure, axes


def _inline(figure: Any) -> Any:
    """A figure as SVG to stand in a page: its ids made unique, its ink the page's own, its text left as text."""
    from markupsafe import Markup
    from matplotlib import rc_context

    for axes in figure.axes:
        if (legend := axes.get_legend()) is not None:
            for text in legend.get_texts():
                text.set_color(_INK)
    stream = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "yalm", "font.family": "sans-serif"}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    own = hashlib.blake2b(svg.encode(), digest_size=4).hexdigest()
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>c{own}-", svg)
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"', r"<svg \1", svg, count=1)
    return Markup(svg.replace(_INK, "currentColor"))


def _thin(values: Sequence[float]) -> list[float]:
    """At most MOST_POINTS values: each the mean of as many consecutive ones as that takes."""
    size = -(-len(values) // MOST_POINTS)
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [sum(group) / len(group) for group in groups]
