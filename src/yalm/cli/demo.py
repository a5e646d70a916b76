"""`yalm demo`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as section.key=value.")] = None,
    output: Annotated[Path, typer.Option(help="The folder for all that is made.")] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of continuing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Make a small bilingual model from real texts in minutes: tokenizer, tokens, training, samples, report.

    Example: yalm demo
    """
    from yalm.cli.output import print_json, print_table
    from yalm.demo.run import run_demo

    result = run_demo(output, fresh, overrides=overrides or [])
    if result.training.stopped_by is not None:
        raise typer.Exit(128 + result.training.stopped_by)
    numbers = result.headline
    if as_json:
        print_json({**numbers, "samples": result.samples, "model": str(result.model), "report": str(result.report)})
        return
    rows = {f"bits per byte, {name}": f"{part['bits_per_byte']:.3f}" for name, part in numbers["validation"].items()}
    rows |= {
        "tokens": f"{numbers['tokens']:,}",
        "tokens per second": f"{numbers['tokens_per_second']:,.0f}",
        "of the peak FLOP/s": f"{numbers['mfu']:.0%}",
        "minutes of training": f"{numbers['minutes']:.1f}",
    }
    print_table("validation and speed", ("", ""), rows.items())
    for sample in result.samples:
        typer.secho(sample["prefix"] or "(no prompt) ", bold=True, nl=False)
        typer.echo(f"{sample['suffix']}\n")
    typer.echo("To go on from here:")
    for command in (
        f'yalm generate {result.model} --prompt "Он вошёл в комнату и"',
        f"yalm model info {result.model}",
        f"yalm train {output / 'settings.toml'} schedule.tokens=20e6 output=runs/longer",
        f"tensorboard --logdir {output / 'tensorboard'}",
    ):
        typer.echo(f"  {command}")
    typer.echo("The report, to open in a browser:")
    typer.echo(result.report)
