"""`yalm tokens`: build token folders and look into them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from yalm.cli.output import print_json, print_table

if TYPE_CHECKING:
    from yalm.tokens.folder import Manifest

app = typer.Typer(no_args_is_help=True, help="Encode documents into token folders, and look into them.")


@app.command()
def build(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help=".jsonl[.zst|.gz] or .txt files or folders.")],
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer's model file.")],
    output: Annotated[Path, typer.Option(help="The token folder to write.")],
    workers: Annotated[int | None, typer.Option(help="Worker processes; all cores if not given.")] = None,
    language: Annotated[str | None, typer.Option(help="The documents' language, for reports.")] = None,
    text_field: Annotated[str, typer.Option(help="The field of a JSON line that holds the text.")] = "text",
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object.")] = False,
) -> None:
    """Encode documents into a token folder; a build that was interrupted goes on.

    Example: yalm tokens build corpus/ --tokenizer tokenizer.model --output tokens/wiki --language ru
    """
    import os

    from yalm.tokens.build import build_shards

    folder = build_shards(
        inputs,
        tokenizer,
        output,
        workers=workers if workers is not None else os.cpu_count() or 1,
        language=language,
        text_field=text_field,
    )
    _show(output, folder.manifest, as_json)


@app.command()
def info(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A token folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte and compare the checksums.")] = False,
) -> None:
    """Show what a token folder holds.

    Example: yalm tokens info tokens/wiki --verify
    """
    from yalm.tokens import folder as folders

    manifest = folders.verify(folder) if verify else folders.TokenFolder(folder).manifest
    _show(folder, manifest, as_json, verified=verify)


def _show(folder: Path, manifest: "Manifest", as_json: bool, verified: bool = False) -> None:
    """Print a manifest for people or for programs."""
    if as_json:
        print_json(manifest.model_dump(mode="json"))
        return
    rows = {
        "documents": f"{manifest.documents:,}",
        "left out, being empty": f"{manifest.empty_documents:,}",
        "tokens": f"{manifest.tokens:,} of {manifest.dtype}",
        "text": f"{manifest.text_bytes / 1e6:,.1f} MB, {manifest.text_bytes / manifest.tokens:.2f} bytes a token",
        "language": manifest.language or "not named",
        "vocabulary": f"{manifest.vocab_size:,} pieces, sha256 {manifest.tokenizer_sha256[:16]}…",
        "source files": f"{len(manifest.sources):,}",
        "shards": f"{len(manifest.shards):,}" + (", every byte verified" if verified else ""),
    }
    print_table(str(folder), ("", ""), rows.items())
