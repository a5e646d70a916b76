"""`yalm model`: what a network of some size weighs and costs."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Sizes and costs of models.")


@app.callback()
def _group() -> None:
    """Sizes and costs of models."""


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A preset's name, or a model folder.")],
    sequence_length: Annotated[int | None, typer.Option(help="Tokens of a sequence; all positions by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show parameters by part, FLOPs per token and bytes at each type, without allocating anything.

    Example: yalm model info yalm-100b --json
    """
    from yalm.cli.output import print_json, print_table
    from yalm.model.costs import describe
    from yalm.model.presets import preset

    if Path(model).is_dir():
        from yalm.model.folder import read_config

        config = read_config(model)
    else:
        config = preset(model)
    facts = describe(config, sequence_length)
    if as_json:
        print_json({"model": model, **facts})
        return
    total = facts["parameters"]["total"]
    counts = facts["parameters"].items()
    print_table(
        f"{model}: parameters", ("part", "count", "share"), ((k, f"{v:,}", f"{v / total:.1%}") for k, v in counts)
    )
    flops = facts["flops_per_token"]
    print_table(
        f"FLOPs per token at sequence length {facts['sequence_length']}",
        ("part", "forward", "training"),
        ((k, f"{v / 1e6:,.1f} M", f"{3 * v / 1e6:,.1f} M") for k, v in flops["forward"].items()),
    )
    cache = facts["cache_bytes_per_token"]
    print_table(
        "Bytes",
        ("type", "weights", "cache per token"),
        ((k, f"{v / 1e9:,.3f} GB", f"{cache[k] / 1e3:,.1f} kB") for k, v in facts["weight_bytes"].items()),
    )
    for name, (size, padded) in facts["unaligned_bf16"].items():
        typer.echo(f"{name} {size:,} is no multiple of 64, as bf16 tensor cores want; {padded:,} is")
