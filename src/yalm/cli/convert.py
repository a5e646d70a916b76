"""`yalm convert` and `yalm verify`: model folders from the released files, back again, and whether one is whole."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from yalm.errors import YalmError


class Layout(StrEnum):
    """What to convert to."""

    FOLDER = "folder"
    RELEASE = "release"


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Released files; to quantize, or with --to release, a model folder."),
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The folder to make.")],
    vocab: Annotated[Path | None, typer.Option(help="The tokenizer (voc_100b.sp); it becomes part of DST.")] = None,
    to: Annotated[Layout, typer.Option(help="A model folder, or the released layout.")] = Layout.FOLDER,
    heads: Annotated[int | None, typer.Option(help="Attention heads, where no preset has the model's sizes.")] = None,
    positions: Annotated[int | None, typer.Option(help="Longest sequence; the preset's, or 1,024.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; the source's own if not given.")] = None,
    layers: Annotated[str | None, typer.Option(metavar="0:N", help="Keep only the first N layers.")] = None,
    intermediate: Annotated[
        int | None,
        typer.Option(
            help="Feed-forward width to store. By default the model's own, padded with zeros to a multiple of 1,024 "
            "where that adds at most 2 % (27,308 to 27,648); --to release undoes the padding."
        ),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="int8 or int4: store the layers' matrices in fewer bits (bf16 / 2, bf16 / 4).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Convert the released weights, whole or split over ranks, to a model folder, or a model folder back to them.

    Needs the memory of one layer. A conversion that was interrupted goes on with the same command.

    Example: yalm convert yalm100b_checkpoint/weights yalm-100b --vocab yalm100b_checkpoint/vocab/voc_100b.sp

    Example: yalm convert yalm-100b yalm-100b-int4 --quantize int4
    """
    from dataclasses import asdict

    from yalm.cli.output import print_json
    from yalm.model.convert import convert_folder, convert_release, quantize_folder
    from yalm.model.folder import CONFIG_FILE
    from yalm.model.quantize import Quantization
    from yalm.tokens.tokenizer import Tokenizer

    quantization = Quantization.named(quantize) if quantize is not None else None
    unused = {"--vocab": vocab, "--heads": heads, "--positions": positions, "--layers": layers}
    if to is Layout.RELEASE:
        _refuse(unused | {"--quantize": quantize}, "with --to release")
        result = convert_folder(source, destination, dtype=dtype, intermediate_size=intermediate)
    elif (source / CONFIG_FILE).is_file():
        _refuse(unused | {"--intermediate": intermediate}, f"where {source} is a model folder")
        if quantization is None:
            raise YalmError(
                f"{source}: is a model folder already; give --quantize int8, --quantize int4 or --to release"
            )
        result = quantize_folder(source, destination, quantization, dtype=dtype)
    else:
        if vocab is None:
            raise YalmError("a model folder needs its tokenizer; give it with --vocab FILE")
        result = convert_release(
            source,
            destination,
            vocab,
            pieces=Tokenizer(vocab).vocab_size,
            num_heads=heads,
            max_positions=positions,
            num_layers=_first_layers(layers),
            dtype=dtype,
            intermediate_size=intermediate,
            quantization=quantization,
        )
    if as_json:
        print_json({**asdict(result), "folder": str(result.folder)})
        return
    kept = f", {result.kept} more were there already" if result.kept else ""
    typer.echo(
        f"{result.folder}: {result.bytes / 1e9:,.2f} GB in {result.files - result.kept} files "
        f"in {result.seconds:,.1f} s ({result.gigabytes_per_second:.2f} GB/s){kept}"
    )


def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A model folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """Check a model folder whole: names, shapes, checksums, and a forward pass, in the memory of one layer.

    Example: yalm verify yalm-100b
    """
    from yalm.cli.output import print_json
    from yalm.model.verify import verify as check

    facts = check(folder)
    if as_json:
        print_json(facts)
        return
    checksums = f"{facts['checksums']} checksums agree" if facts["checksums"] else "no checksums to compare"
    quantized = f", matrices in {facts['quantization']}" if facts["quantization"] else ""
    typer.echo(
        f"{folder}: whole. {facts['parameters']:,} parameters in {facts['dtype']}{quantized}, {facts['shards']} shards "
        f"of {facts['bytes'] / 1e9:,.2f} GB, {checksums}, a forward pass gives finite numbers"
    )


def _refuse(options: dict[str, Any], case: str) -> None:
    """YalmError if one of these options was given."""
    for option, value in options.items():
        if value is not None:
            raise YalmError(f"{option} has no meaning {case}; leave it out")


def _first_layers(text: str | None) -> int | None:
    """N of `0:N`, `:N` or `N`."""
    if text is None:
        return None
    first, _, last = text.rpartition(":")
    if first not in ("", "0") or not last.isdigit():
        raise YalmError(
            f"--layers {text}: write it as 0:N; a model begins with its first layer, the one without an input LayerNorm"
        )
    return int(last)
