"""`yalm tokenizer`: train a tokenizer, and see what it makes of a text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Train a tokenizer; turn text into ids and back.")


@app.command()
def train(
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help=".jsonl[.zst|.gz] or .txt files or folders.")],
    output: Annotated[Path, typer.Option(help="The model file to write.")],
    vocab_size: Annotated[int, typer.Option(help="Number of pieces, special ones and 256 bytes included.")],
    model_type: Annotated[Literal["bpe", "unigram"], typer.Option(help="unigram encodes faster.")] = "bpe",
    byte_fallback: Annotated[
        bool, typer.Option(help="Spell unknown characters as bytes, so that none is lost.")
    ] = True,
    text_field: Annotated[str, typer.Option(help="The field of a JSON line that holds the text.")] = "text",
    seed: Annotated[int, typer.Option(help="Draws the sample, if there is more text than one can train on.")] = 0,
) -> None:
    """Train a SentencePiece tokenizer on documents.

    Example: yalm tokenizer train corpus/ --output tokenizer.model --vocab-size 32000
    """
    from rich.console import Console

    from yalm.tokens.documents import read_texts
    from yalm.tokens.tokenizer import train_tokenizer

    with Console(stderr=True).status("training the tokenizer"):
        tokenizer = train_tokenizer(
            read_texts(inputs, text_field),
            output,
            vocab_size=vocab_size,
            model_type=model_type,
            byte_fallback=byte_fallback,
            seed=seed,
        )
    typer.echo(f"{tokenizer.file}: {tokenizer.vocab_size:,} pieces, sha256 {tokenizer.sha256[:16]}…")


@app.command()
def encode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tokenizer.")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text; standard input if absent.")] = None,
    pieces: Annotated[bool, typer.Option("--pieces", help="Show the pieces instead of their ids.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object with ids and pieces.")] = False,
) -> None:
    """Show the ids of a text.

    Example: yalm tokenizer encode tokenizer.model "Привет, мир!" --pieces
    """
    import json
    import sys

    from yalm.tokens.tokenizer import Tokenizer

    tokenizer = Tokenizer(file)
    ids = tokenizer.encode(sys.stdin.read() if text is None else text)
    spelled = [tokenizer.piece(token) for token in ids]
    if as_json:
        typer.echo(json.dumps({"ids": ids, "pieces": spelled}, ensure_ascii=False))
    else:
        typer.echo(" ".join(spelled if pieces else map(str, ids)))


@app.command()
def decode(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The tokenizer.")],
    ids: Annotated[list[int], typer.Argument(metavar="IDS", help="The ids, separated by spaces.")],
) -> None:
    """Show the text of ids.

    Example: yalm tokenizer decode tokenizer.model 1 318 372 452
    """
    from yalm.tokens.tokenizer import Tokenizer

    typer.echo(Tokenizer(file).decode(ids))
