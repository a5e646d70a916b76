"""`yalm generate`: a prompt, a conversation with prompts, a file of prompts, or texts from nothing."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from yalm.inference.language_model import Generation, LanguageModel


def generate(
    model: Annotated[Path, typer.Argument(help="Model folder, or released files (with --vocab).")],
    prompt: Annotated[str | None, typer.Option(help="Continue this text; the answer streams.")] = None,
    input: Annotated[Path | None, typer.Option(help="JSON lines, each with `prefix`; needs --output.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON lines to write: `suffix` for --input, or `text`.")] = None,
    unconditional: Annotated[int | None, typer.Option(min=1, help="Make this many texts from nothing.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest continuation, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens of this total; 0 is off.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 repeats less; 1 is off.")] = 1.0,
    stop: Annotated[list[str] | None, typer.Option(help="Text at which to stop; may be given often.")] = None,
    seed: Annotated[int, typer.Option(help="Decides all draws.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts under way at a time.")] = 16,
    dtype: Annotated[str, typer.Option(help="fp32, bf16, fp16 or auto.")] = "auto",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; a GPU if there is one.")] = "auto",
    memory: Annotated[
        str | None, typer.Option(help="Of the device, as 8GiB; layers beyond are read as it runs.")
    ] = None,
    host_memory: Annotated[str | None, typer.Option(help="For layers beside a GPU; the rest stay on disk.")] = None,
    devices: Annotated[
        str | None, typer.Option(metavar="N", help="Divide the model: 4, or tensor=2,pipeline=2.")
    ] = None,
    vocab: Annotated[Path | None, typer.Option(help="The tokenizer of released files (voc_100b.sp).")] = None,
    heads: Annotated[int | None, typer.Option(help="Of released files whose sizes no preset has.")] = None,
    positions: Annotated[int | None, typer.Option(help="Likewise, the longest sequence.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show where layers would lie and the time of a token.")] = False,
    hardware: Annotated[
        str | None, typer.Option(help="With --plan: a device by name instead of this machine; MODEL may be a preset.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; by default all cores.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON objects, one a line.")] = False,
) -> None:
    """Continue texts. Without --prompt, --input or --unconditional it asks for prompts; Ctrl-D ends.

    Example: yalm generate runs/demo/model --prompt "Сегодня" --temperature 0.8 --top-p 0.9

    Example: yalm generate runs/demo/model --input prompts.jsonl --output answers.jsonl

    Example: yalm generate yalm-100b --plan --hardware a100-80gb --devices 4
    """
    from yalm.errors import YalmError

    if sum(way is not None for way in (prompt, input, unconditional)) > 1:
        raise YalmError("--prompt, --input and --unconditional exclude each other; give one of them")
    if input is not None and output is None:
        raise YalmError("--input needs --output; say where to write, for example --output answers.jsonl")
    if output is not None and input is None and unconditional is None:
        raise YalmError("--output goes with --input or --unconditional; for one prompt redirect standard output")

    from yalm.cli.placement import launch, parse_devices, show_plan

    tensor, pipeline = parse_devices(devices)
    if hardware is not None and not plan:
        raise YalmError("--hardware only changes what --plan shows; add --plan")
    if not plan:
        launch(tensor * pipeline)

    import torch

    from yalm.inference.sampling import SamplingSettings

    settings = SamplingSettings.parse(
        {
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_k": top_k,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
            "stop": tuple(stop or ()),
            "seed": seed,
        },
        source="options",
    )
    if threads is not None:
        torch.set_num_threads(threads)
    texts = 1 if unconditional is None and input is None else batch_size
    where: dict[str, Any] = {
        "dtype": dtype,
        "device": device,
        "heads": heads,
        "positions": positions,
        "memory": memory,
        "host_memory": host_memory,
        "tensor": tensor,
        "pipeline": pipeline,
        "texts": texts,
        "tokens": max_tokens + (_prompt_tokens(prompt) if unconditional is None else 1),
    }
    if plan:
        from yalm.cli.output import print_json
        from yalm.inference.forecast import forecast

        facts = forecast(model, hardware=hardware, **where)
        return print_json({"model": str(model), **facts}) if json else show_plan(str(model), facts)

    from yalm.inference.loading import load

    with load(model, vocab=vocab, **where) as lm:
        options = settings.model_dump()
        if not lm.leads:
            lm.follow()
        elif prompt is not None:
            _answer(lm, prompt, 0, options, json)
        elif input is not None and output is not None:
            _complete(lm, input, output, batch_size, f"{_identity(model)} {dtype}", options, json)
        elif unconditional is not None:
            _from_nothing(lm, unconditional, output, batch_size, options, json)
        else:
            _converse(lm, options, json)


def _answer(lm: "LanguageModel", prompt: str, number: int, options: dict[str, Any], json: bool) -> None:
    """One continuation on standard output, as it is made, or as an object when it is done."""
    if json:
        _print_object(_facts(lm.generate(prompt, first_prompt=number, **options)[0]))
        return
    for piece in lm.stream(prompt, first_prompt=number, **options):
        typer.echo(piece, nl=False)
    typer.echo()


def _converse(lm: "LanguageModel", options: dict[str, Any], json: bool) -> None:
    """Ask for a prompt, stream its continuation, and again; Ctrl-C ends an answer, Ctrl-D the conversation."""
    import contextlib
    import sys

    from yalm.errors import YalmError
    from yalm.inference.parallel import LostRankError

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing for input()
    asks = sys.stdin.isatty()
    if asks:
        typer.echo("A line is a prompt, to be continued. Ctrl-C stops an answer, Ctrl-D ends.", err=True)
    number = 0
    while True:
        try:
            prompt = input("> " if asks else "")
        except (EOFError, KeyboardInterrupt):
            if asks:
                typer.echo(err=True)
            return
        try:
            _answer(lm, prompt, number, options, json)
        except LostRankError:
            raise
        except YalmError as error:  # a prompt that is too long, say; the next one may do
            typer.echo(f"yalm: {error}", err=True)
        except KeyboardInterrupt:
            typer.echo()
        number += 1


def _complete(
    lm: "LanguageModel",
    source: Path,
    output: Path,
    batch_size: int,
    identity: str,
    options: dict[str, Any],
    json: bool,
) -> None:
    """Continue a file, with a progress bar; what an earlier, killed run has done is kept."""
    import time

    from yalm.inference.files import complete_file

    started = time.perf_counter()
    run = complete_file(lm, source, output, batch_size=batch_size, identity=identity, **options)
    state = first = next(run)
    with _progress() as progress:
        task = progress.add_task("texts", total=first.total, completed=first.records, rate="")
        for state in run:
            rate = state.tokens / (time.perf_counter() - started)
            progress.update(task, completed=state.records, rate=f"{rate:,.0f} tokens/s")
    seconds = time.perf_counter() - started
    if json:
        facts = {"output": str(output), "texts": state.total, "resumed_at": first.records}
        _print_object(facts | {"tokens": state.tokens, "seconds": round(seconds, 3)})
    else:
        kept = f" ({first.records} of them from an earlier run)" if first.records else ""
        rate = state.tokens / seconds
        typer.echo(f"{output}: {state.total} texts{kept}, {state.tokens} tokens made, {rate:,.0f} a second", err=True)


def _from_nothing(
    lm: "LanguageModel", count: int, output: Path | None, batch_size: int, options: dict[str, Any], json: bool
) -> None:
    """Texts from `<s>` alone: into a file, as JSON lines, or one after the other with a line of dashes between."""
    from json import dumps

    from yalm.atomic import write_text

    options |= {"num_samples": count}
    texts: dict[int, Generation] = {}
    with _progress() as progress:
        task = progress.add_task("texts", total=count, rate="")
        for place, generation in lm.generate_each("", batch_size=batch_size, **options):
            texts[place] = generation
            progress.update(task, advance=1)
    facts = [
        {"text": one.text, "finish_reason": one.finish_reason, "tokens": len(one.ids)}
        for _, one in sorted(texts.items())
    ]
    if output is not None:
        write_text(output, "".join(dumps(one, ensure_ascii=False) + "\n" for one in facts))
        typer.echo(f"{output}: {count} texts", err=True)
    elif json:
        for one in facts:
            _print_object(one)
    else:
        typer.echo("\n--------\n".join(one.text for _, one in sorted(texts.items())))


def _facts(generation: "Generation") -> dict[str, Any]:
    return {
        "prompt": generation.prompt,
        "text": generation.text,
        "finish_reason": generation.finish_reason,
        "prompt_tokens": generation.prompt_tokens,
        "tokens": len(generation.ids),
    }


def _print_object(facts: dict[str, Any]) -> None:
    from json import dumps

    typer.echo(dumps(facts, ensure_ascii=False))


def _progress() -> Any:
    """A bar with count, rate and time left on standard error; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description} {task.fields[rate]}"))
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal, transient=True)


def _prompt_tokens(prompt: str | None) -> int:
    """Room for a prompt: no token is less than a byte; 128 for prompts that are not known yet."""
    return 1 + len(prompt.encode()) if prompt is not None else 128


def _identity(model: Path) -> str:
    """The model as it is now: another, or one written anew, is another model."""
    return f"{model.resolve()} {max(file.stat().st_mtime_ns for file in model.iterdir())}"
