"""`yalm corpus`: make a corpus, report on it, ask what became of a document, teach the quality classifier."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from yalm.cli.output import print_json, print_table

app = typer.Typer(no_args_is_help=True, help="Make a clean, deduplicated, weighted corpus out of raw texts.")
classifier = typer.Typer(no_args_is_help=True, help="The classifier that tells good texts from random ones.")
app.add_typer(classifier, name="classifier")


@app.command()
def build(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A settings file, such as configs/corpus/yalm.toml.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Settings to change.")
    ] = None,
    engine: Annotated[
        Literal["native", "ray"], typer.Option(help="Daft's runner: this machine, or a Ray cluster.")
    ] = "native",
    address: Annotated[str | None, typer.Option(help="A running Ray cluster, host:port or auto.")] = None,
    workers: Annotated[int | None, typer.Option(help="Tasks at once; all cores if not given.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report's facts as one JSON object.")] = False,
) -> None:
    """Make a corpus, or go on with one; it ends with a report.

    Example: yalm corpus build configs/corpus/local.toml output=runs/corpus
    """
    from yalm.corpus.engine import Engine
    from yalm.corpus.pipeline import build as build_corpus
    from yalm.corpus.report.write import write_report
    from yalm.corpus.settings import CorpusSettings

    settings = CorpusSettings.load(config, overrides or ())
    tell = (lambda line: typer.echo(line, err=True)) if as_json else typer.echo
    corpus = build_corpus(settings, Engine(engine, address, workers), tell)
    _report(corpus.output, as_json, write_report(corpus.output))


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The output of `yalm corpus build`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object.")] = False,
) -> None:
    """Write the report of a corpus anew: report.html, report.json and the corpus card.

    Example: yalm corpus report runs/corpus
    """
    from yalm.corpus.report.write import write_report

    _report(folder, as_json, write_report(folder))


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The output of `yalm corpus build`.")],
    why_dropped: Annotated[str, typer.Option(metavar="ID", help="The id or uid of a document.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as one JSON object.")] = False,
) -> None:
    """Say what became of a document, and why.

    Example: yalm corpus inspect runs/corpus --why-dropped page-17
    """
    from yalm.corpus.report.inspect import why_dropped as fates_of

    fates = fates_of(folder, why_dropped)
    if as_json:
        print_json({"documents": [fate.as_dict() for fate in fates]})
        return
    for fate in fates:
        rows = {name: str(value) for name, value in fate.as_dict().items() if value not in ("", None)}
        print_table(fate.id, ("", ""), rows.items())


@classifier.command()
def train(
    good: Annotated[
        list[Path], typer.Argument(metavar="GOOD", help="Texts as they should be: .jsonl[.zst|.gz] or .txt.")
    ],
    random: Annotated[list[Path], typer.Option(help="Texts as they come, of the same languages.")],
    output: Annotated[Path, typer.Option(help="The model file to write.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Settings to change.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the evaluation as one JSON object.")] = False,
) -> None:
    """Teach the quality classifier, and say how well it does on documents it has not seen.

    Example: yalm corpus classifier train linked-pages.jsonl.zst --random pages.jsonl.zst --output quality.safetensors
    """
    from yalm.corpus.classifier import ClassifierSettings
    from yalm.corpus.classifier import train as train_classifier

    report = train_classifier(good, random, output, ClassifierSettings.load(None, overrides or ()))
    if as_json:
        print_json(report.model_dump(mode="json"))
        return
    title = f"{output}: ROC-AUC {report.auc:.3f}, calibration error {report.calibration_error:.3f}"
    rows = (
        (f"{cut.threshold:.2f}", f"{cut.precision:.1%}", f"{cut.good_kept:.1%}", f"{cut.random_kept:.1%}")
        for cut in report.cuts
    )
    print_table(title, ("threshold", "precision", "good kept", "random kept"), rows)


def _report(folder: Path, as_json: bool, page: Path) -> None:
    """What came of a build: the facts, or the way of the documents in a table and the path of the page."""
    facts = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if as_json:
        print_json(facts)
        return
    print_table(str(folder), ("", "documents", "MB"), _waterfall(facts))
    typer.echo(page)


def _waterfall(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(step["name"], f"{step['documents']:,}", f"{step['bytes'] / 1e6:,.1f}") for step in facts["waterfall"]]
