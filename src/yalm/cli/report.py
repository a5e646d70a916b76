"""`yalm report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The output folder of a training run, finished or not.")],
) -> None:
    """Write RUN/report.html: loss curves, time per phase, samples, sizes and settings, in one self-contained file.

    Example: yalm report runs/demo
    """
    from yalm.training.report import write_report

    typer.echo(write_report(run))
