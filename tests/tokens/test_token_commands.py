"""The commands: `yalm tokenizer …` and `yalm tokens …` from text to a folder and back."""

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from yalm.cli.tokenizer import app as tokenizer_app
from yalm.cli.tokens import app as tokens_app
from yalm.errors import YalmError


def run(app: typer.Typer, *words: object, text: str | None = None) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], input=text)
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_from_text_to_folder_and_back(corpus: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "t.model", tmp_path / "out"
    assert "400 pieces" in run(tokenizer_app, "train", corpus, "--output", model, "--vocab-size", 400)
    ids = run(tokenizer_app, "encode", model, "Документ 😀").split()
    assert run(tokenizer_app, "decode", model, *ids) == "Документ 😀\n"
    shown = json.loads(run(tokenizer_app, "encode", model, "--json", text="Документ 😀"))
    assert shown["ids"] == [int(token) for token in ids]
    assert run(tokenizer_app, "encode", model, "Документ 😀", "--pieces").split() == shown["pieces"]
    run(tokens_app, "build", corpus, "--tokenizer", model, "--output", out, "--workers", 1, "--language", "ru")
    manifest = json.loads(run(tokens_app, "info", out, "--json"))
    assert (manifest["documents"], manifest["language"]) == (120, "ru")
    table = run(tokens_app, "info", out, "--verify")
    assert f"{manifest['tokens']:,}" in table
    assert "verified" in table


def test_a_damaged_folder_does_not_verify(corpus: Path, tmp_path: Path) -> None:
    run(tokenizer_app, "train", corpus, "--output", tmp_path / "t.model", "--vocab-size", 400)
    run(tokens_app, "build", corpus, "--tokenizer", tmp_path / "t.model", "--output", tmp_path / "out", "--workers", 1)
    file = tmp_path / "out" / "shard-000000.bin"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(YalmError, match=r"shard-000000\.bin"):
        run(tokens_app, "info", tmp_path / "out", "--verify")
