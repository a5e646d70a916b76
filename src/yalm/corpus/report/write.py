"""The report of a corpus: report.json with all facts, report.html for people who would rather look, and the card.

The page is self-contained: pictures are inline SVG and CSS that take the page's colours, nothing is fetched, no script
runs. Texts of documents are shown in it, which are anybody's, so everything is escaped by the template engine.
"""

import json
from importlib.resources import files
from pathlib import Path

from yalm.atomic import write_text
from yalm.corpus.report.card import card
from yalm.corpus.report.facts import corpus_facts
from yalm.corpus.report.figures import count, percent, short, size
from yalm.errors import YalmError

REPORT, FACTS, CARD = "report.html", "report.json", "card.md"


def write_report(output: Path) -> Path:
    """Write report.json, card.md and report.html into the corpus at `output`; the path of the last.

    YalmError if there is no finished corpus, or jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError:
        raise YalmError("the report needs jinja2; run: pip install 'openyalm[corpus]'") from None
    facts = corpus_facts(output)
    strict = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    strict.filters |= {"count": count, "percent": percent, "short": short, "size": size, "steps": _steps}
    template = strict.from_string((files("yalm.corpus.report") / "report.html").read_text(encoding="utf-8"))
    write_text(output / FACTS, json.dumps(facts, ensure_ascii=False, allow_nan=False, indent=1) + "\n")
    write_text(output / CARD, card(facts))
    write_text(output / REPORT, template.render(facts))
    return output / REPORT


def _steps(layers: list[list[int]], width: float, height: float) -> list[str]:
    """Stacked histograms as SVG paths, one a layer, the first at the bottom; the highest bin fills the height."""
    bins = len(layers[0])
    scale = height / max(1, *(sum(layer[i] for layer in layers) for i in range(bins)))
    step = width / bins
    paths = []
    below = [0] * bins
    for layer in layers:
        bars = []
        for i, value in enumerate(layer):
            if value:
                top, bar = height - scale * (below[i] + value), scale * value
                bars.append(f"M{i * step:.2f} {top:.2f}h{0.9 * step:.2f}v{bar:.2f}h-{0.9 * step:.2f}z")
        below = [a + b for a, b in zip(below, layer, strict=True)]
        paths.append("".join(bars))
    return paths
