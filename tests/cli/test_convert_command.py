"""`yalm convert` and `yalm verify` from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from support import GOLDEN
from yalm.cli import app
from yalm.errors import YalmError
from yalm.model.folder import read_config

WEIGHTS, VOCAB = str(GOLDEN / "weights"), str(GOLDEN / "vocab.sp")


def yalm(*arguments: str) -> str:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).stdout


def test_there_verified_and_back(tmp_path: Path) -> None:
    model, back = str(tmp_path / "model"), str(tmp_path / "back")
    options = ("--heads", "4", "--positions", "64", "--dtype", "fp16", "--layers", "0:2", "--intermediate", "256")
    shown = yalm("convert", WEIGHTS, model, "--vocab", VOCAB, *options)
    assert shown.startswith(f"{model}: ")
    assert all(word in shown for word in ("4 files", "GB/s"))
    config = read_config(model)
    assert (config.num_layers, config.num_heads, config.max_positions, config.intermediate_size) == (2, 4, 64, 256)
    assert "whole" in yalm("verify", model)
    facts = json.loads(yalm("verify", model, "--json"))
    assert (facts["dtype"], facts["forward_pass"], facts["shards"]) == ("float16", "finite", 4)
    result = json.loads(yalm("convert", model, back, "--to", "release", "--json"))
    assert (result["folder"], result["files"], result["kept"]) == (back, 5, 0)


def test_quantized_from_the_release_or_from_a_folder(tmp_path: Path) -> None:
    plain, direct, again = (str(tmp_path / name) for name in ("plain", "direct", "again"))
    yalm("convert", WEIGHTS, plain, "--vocab", VOCAB, "--heads", "4")
    yalm("convert", WEIGHTS, direct, "--vocab", VOCAB, "--heads", "4", "--quantize", "int4")
    yalm("convert", plain, again, "--quantize", "int4")
    assert Path(again, "SHA256SUMS").read_text() == Path(direct, "SHA256SUMS").read_text()
    assert "in bfloat16, matrices in int4" in yalm("verify", again)
    for options, message in (
        ((), "is a model folder already; give --quantize int8"),
        (("--quantize", "int5"), "'int5' is not known"),
        (("--quantize", "int8", "--vocab", VOCAB), "--vocab has no meaning where"),
        (("--to", "release", "--quantize", "int8"), "--quantize has no meaning with --to release"),
    ):
        with pytest.raises(YalmError, match=message):
            yalm("convert", plain, str(tmp_path / "refused"), *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give it with --vocab FILE"),
        (["--vocab", "nowhere.sp"], "nowhere.sp"),
        (["--vocab", VOCAB], "give it with --heads"),
        (["--vocab", VOCAB, "--heads", "4", "--dtype", "fp8"], "dtype 'fp8' is not known"),
        (["--vocab", VOCAB, "--heads", "4", "--layers", "1:2"], "write it as 0:N"),
        (["--vocab", VOCAB, "--heads", "4", "--layers", "0:7"], "has 3 layers"),
        (["--vocab", VOCAB, "--heads", "4", "--intermediate", "0"], "intermediate"),
        (["--to", "release", "--heads", "4"], "--heads has no meaning with --to release"),
        (["--to", "release"], "config.json: not found"),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(YalmError) as error:
        yalm("convert", WEIGHTS, str(tmp_path / "model"), *options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
