"""`yalm plan`: a training run on paper."""

from pathlib import Path
from typing import Annotated, Any

import typer


def plan(
    preset: Annotated[str | None, typer.Argument(help="A preset's name (see README).")] = None,
    gpus: Annotated[int, typer.Option(help="How many.")] = 8,
    gpu: Annotated[str, typer.Option(help="Which, e.g. a100-80gb, h100-80gb.")] = "h100-80gb",
    tokens: Annotated[float, typer.Option(help="To be seen in all.")] = 300e9,
    sequence: Annotated[int | None, typer.Option(help="Tokens of a sequence; all positions by default.")] = None,
    batch: Annotated[float, typer.Option(help="Tokens of a step.")] = 2**21,
    zero: Annotated[int | None, typer.Option(help="ZeRO stage, 0 to 3; searched by default.")] = None,
    tensor: Annotated[int | None, typer.Option(help="Tensor-parallel ranks; searched by default.")] = None,
    pipeline: Annotated[int | None, typer.Option(help="Pipeline stages; searched by default.")] = None,
    recompute: Annotated[str | None, typer.Option(help="none, selective or full; searched by default.")] = None,
    precision: Annotated[str, typer.Option(help="bf16, fp16, tf32 or fp32.")] = "bf16",
    moments: Annotated[str, typer.Option(help="AdamW's moments: fp32, or bf16 for a quarter less memory.")] = "fp32",
    mfu: Annotated[float | None, typer.Option(help="Utilization, 0 to 1, instead of the predicted one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the candidates into this SVG or PNG file.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="Write the settings of the run for `yalm train` to this TOML file.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Shard the network over pretended ranks.")] = False,
    published: Annotated[bool, typer.Option("--published", help="The formulas against published runs.")] = False,
) -> None:
    """Work out days, MFU, memory, communication, energy and failures of a training run, and its best layout.

    Example: yalm plan yalm-100b --gpus 800 --gpu a100-80gb --tokens 300e9
    """
    from yalm.cli.output import print_json
    from yalm.errors import YalmError
    from yalm.model.presets import preset as preset_named
    from yalm.planning.published import table
    from yalm.planning.search import Question
    from yalm.planning.search import plan as planned

    if published:
        facts = table()
        print_json(facts) if as_json else _print_published(facts)
        return
    if preset is None:
        raise YalmError("yalm plan needs a preset's name, or --published")
    config = preset_named(preset)
    values = {
        "gpus": gpus,
        "gpu": gpu,
        "tokens": tokens,
        "sequence": config.max_positions if sequence is None else sequence,
        "batch": batch,
        "zero": zero,
        "tensor": tensor,
        "pipeline": pipeline,
        "recompute": recompute,
        "precision": precision,
        "moments": moments,
        "mfu": mfu,
    }
    facts = {"model": preset, **planned(config, Question.parse(values, "yalm plan"))}
    if dry_run:
        from yalm.planning.dry_run import dry_run as sharded
        from yalm.planning.memory import Layout

        facts["dry_run"] = sharded(config, Layout.parse(facts["layout"], "layout"))
    if picture is not None:
        from yalm.planning.picture import draw

        draw(facts, picture)
    if config_file is not None:
        from yalm.planning.settings_file import write_settings

        write_settings(facts, config, config_file)
    print_json(facts) if as_json else _print_plan(facts)


def _print_plan(facts: dict[str, Any]) -> None:
    from yalm.cli.output import print_table
    from yalm.planning.picture import mesh

    question, layout, trouble = facts["question"], facts["layout"], facts["reliability"]
    print_table(
        f"{facts['model']}: {question['tokens']:.3g} tokens on {question['gpus']} {question['gpu']}",
        ("", "value"),
        (
            ("days", f"{facts['days']:,.1f}"),
            ("days with saves and failures", f"{facts['calendar_days']:,.1f}"),
            ("seconds a step", f"{facts['step_seconds']:,.3f}"),
            (f"MFU, {facts['mfu_is']}", f"{facts['mfu']:.1%}"),
            ("tokens a second", f"{facts['tokens_per_second']:,.0f}"),
            ("tokens a step", f"{facts['batch_tokens']:,}"),
            ("steps", f"{facts['steps']:,}"),
            ("energy, MWh", f"{facts['energy_mwh']:,.1f}"),
            ("failures a day", f"{trouble['failures_per_day']:.2f}"),
            ("checkpoint, GB", f"{trouble['checkpoint_bytes'] / 1e9:,.1f}"),
            ("save every, minutes", f"{trouble['interval_seconds'] / 60:,.0f}"),
        ),
    )
    print_table("Layout", ("", "value"), ((key, str(value)) for key, value in layout.items()))
    print_table(
        "The fastest layout of each mesh (data x tensor x pipeline)",
        ("layout", "tokens a second", "GB a rank", ""),
        (
            (
                mesh(one["layout"]),
                f"{one['tokens_per_second']:,.0f}",
                f"{one['bytes_per_rank']['total'] / 1e9:,.1f}",
                "" if one["fits"] else "does not fit",
            )
            for one in facts["candidates"]
        ),
    )
    seconds = sum(facts["step_parts"].values())
    print_table(
        "A step as predicted",
        ("part", "seconds", "share", ""),
        ((k, f"{v:,.3f}", f"{v / seconds:.1%}", _bar(v / seconds)) for k, v in facts["step_parts"].items()),
    )
    print_table(
        "Communication of a rank in a step",
        ("kind", "GB", "seconds if not hidden"),
        ((k, f"{v['bytes'] / 1e9:,.2f}", f"{v['seconds']:,.3f}") for k, v in facts["communication"].items()),
    )
    print_table(
        f"Memory of the fullest rank, of {facts['gpu_memory'] / 1e9:,.0f} GB",
        ("kind", "GB", ""),
        ((k, f"{v / 1e9:,.2f}", _bar(v / facts["gpu_memory"])) for k, v in facts["bytes_per_rank"].items()),
    )
    if "dry_run" in facts:
        print_table(
            "The network sharded over pretended ranks",
            ("kind", "formula, MB", "sharded, MB", "error"),
            (
                (kind, f"{v['formula'] / 1e6:,.2f}", f"{v['sharded'] / 1e6:,.2f}", f"{v['error']:+.2%}")
                for kind, v in facts["dry_run"].items()
            ),
        )


def _bar(share: float) -> str:
    """Thirty cells, so many of them full."""
    return ("█" * round(30 * share)).ljust(30, "·")


def _print_published(facts: dict[str, Any]) -> None:
    from yalm.cli.output import print_table

    print_table(
        "Tokens a second for each GPU (sources: --json, docs/planning.md)",
        ("run", "GPUs", "reported", "predicted", "time", "used for"),
        (
            (
                run["name"],
                f"{run['gpus']} {run['gpu']}",
                f"{run['reported']:,.1f}",
                f"{run['predicted']:,.1f}",
                f"{run['error']:+.1%}",
                run["use"],
            )
            for run in facts["runs"]
        ),
    )
    typer.echo(
        f"median error of the {facts['tested']} runs tested: {facts['median_error']:.1%}; of the {facts['elsewhere']} "
        f"whose project has no fitted run: {facts['median_error_elsewhere']:.1%}"
    )
