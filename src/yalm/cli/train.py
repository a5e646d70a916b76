"""`yalm train`."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="Settings in TOML, for example configs/demo.toml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as section.key=value.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
) -> None:
    """Train a model, or continue where the run in the output folder stopped.

    Example: yalm train configs/25m.toml schedule.tokens=20e6 output=runs/small
    """
    from yalm.training.settings import TrainSettings

    settings = TrainSettings.load(config, overrides or [])
    from yalm.training.loop import train as run  # takes seconds, which a wrong setting should not cost

    result = run(settings, fresh=fresh)
    if result.stopped_by is not None:
        raise typer.Exit(128 + result.stopped_by)
    typer.echo(result.checkpoint)
