"""`yalm profile`: where a training step goes, and what to do about it."""

from pathlib import Path
from typing import Annotated, Any

import typer


def profile(
    config: Annotated[Path, typer.Argument(help="Settings in TOML, as for yalm train.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as section.key=value.")] = None,
    steps: Annotated[int, typer.Option(help="To record, after as many that are only timed.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Show the time and the memory of some training steps by phase, module and kind, and what would be faster.

    Writes OUTPUT/profile/profile.html and trace.json.gz; a run in OUTPUT stays as it is.

    Example: yalm profile configs/25m.toml --steps 5 batch.micro_sequences=8
    """
    from yalm.cli.output import print_json
    from yalm.training.settings import TrainSettings

    settings = TrainSettings.load(config, overrides or [])
    from yalm.profiling.profile import profile as run  # takes seconds, which a wrong setting should not cost

    facts = run(settings, steps)
    if facts is not None:
        print_json(facts) if as_json else _print_profile(facts)


def _print_profile(facts: dict[str, Any]) -> None:
    from yalm.cli.output import print_table

    seconds = facts["profiled_seconds"]
    print_table(
        f"{facts['run']}: {facts['profiled_steps']} steps, {facts['ranks']} x {facts['device']}, {facts['precision']}",
        ("", "value"),
        (
            ("seconds a step", f"{facts['step_seconds']:,.4f}"),
            ("seconds a step under the profiler", f"{seconds:,.4f}"),
            ("tokens a second", f"{facts['tokens_per_second']:,.0f}"),
            ("MFU, of the peak measured", f"{facts['mfu']:.1%}"),
            ("peak of products, GFLOP/s", f"{facts['machine']['flops'] / 1e9:,.0f}"),
            ("bandwidth of memory, GB/s", f"{facts['machine']['bandwidth'] / 1e9:,.1f}"),
            ("communication hidden, ms", f"{1e3 * facts['communication']['hidden']:,.1f}"),
        ),
    )
    for title in ("phases", "kinds"):
        print_table(
            f"Time by {title[:-1]}",
            (title[:-1], "ms", "share"),
            ((name, f"{1e3 * value:,.2f}", f"{value / seconds:.1%}") for name, value in facts[title].items()),
        )
    print_table(
        "Time by module",
        ("module", "forward, ms", "backward, ms", "share"),
        (
            (
                name,
                f"{1e3 * value['forward']:,.2f}",
                f"{1e3 * value['backward']:,.2f}",
                f"{sum(value.values()) / seconds:.1%}",
            )
            for name, value in list(facts["modules"].items())[:12]
        ),
    )
    print_table(
        "Memory when each phase holds most, MB",
        ("phase", *facts["memory_kinds"], "together"),
        (
            (phase, *(f"{size / 1e6:,.1f}" for size in kinds.values()), f"{sum(kinds.values()) / 1e6:,.1f}")
            for phase, kinds in facts["memory"].items()
        ),
    )
    print_table(
        "Large operations (their shapes are in the page)",
        ("operation", "module", "share", "GFLOP/s", "bound", "of its roof"),
        (
            (
                op["name"].split("::")[-1].removeprefix("_"),
                f"{op['module'].removeprefix('model.layers.*.')} {op['phase']}",
                f"{op['share']:.1%}",
                f"{op['flops_per_second'] / 1e9:,.0f}" if op["flops_per_second"] else "",
                op["bound"],
                f"{op['roof']:.0%}",
            )
            for op in facts["operations"][:12]
        ),
    )
    typer.echo("What to do")
    for number, advice in enumerate(facts["advice"], 1):
        learnt = "" if advice["same_result"] else " (changes what is learnt)"
        typer.echo(f"{number}. {advice['rule']}: {advice['why']}{learnt}")
        typer.echo(f"   {' '.join(advice['change'])}  saves about {advice['gain']:.0%}, {advice['speedup']:.2f} x")
    if not facts["advice"]:
        typer.echo("No rule finds a fault worth 2 % of the step.")
    typer.echo(f"\n{facts['files']['page']}\n{facts['files']['trace']}")
