"""The command line: instant help, examples, machine-readable facts, and errors of one line."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from yalm.cli import app

HEAVY = ("torch", "numpy", "sentencepiece", "pydantic", "safetensors", "tensorboard", "matplotlib", "transformers")


def yalm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yalm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name), command
        yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))
VERBS = [path for path, command in COMMANDS.items() if not hasattr(command, "commands")]


def test_help_loads_nothing_heavy() -> None:
    script = f"import sys, yalm.cli; print([name for name in {HEAVY} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "line",
    [
        "model info yalm-100b",
        "plan 13b --gpus 64 --gpu h100-80gb --tokens 300e9",
        "train nowhere.toml",
        "profile nowhere.toml",
    ],
)
def test_torch_is_loaded_by_what_needs_it(line: str) -> None:
    """And by no more than that: it takes seconds."""
    script = (
        "import atexit, sys, yalm.cli\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        f"sys.argv = ['yalm', *{line.split()}]\n"
        "yalm.cli.main()"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert shown.stdout.splitlines()[-1] == "False", shown.stderr


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_verb_has_an_example(path: tuple[str, ...]) -> None:
    text = COMMANDS[path].help or ""
    assert f"yalm {' '.join(path)}" in text.partition("Example")[2]


@pytest.mark.parametrize("path", VERBS, ids=" ".join)
def test_every_option_is_explained(path: tuple[str, ...]) -> None:
    for parameter in COMMANDS[path].params:
        if parameter.name != "help":
            assert getattr(parameter, "help", None), f"{path} {parameter.name}"


def test_help_lists_every_verb() -> None:
    shown = yalm("--help")
    assert shown.returncode == 0
    assert all(path[0] in shown.stdout for path in VERBS)


def test_model_info_as_json() -> None:
    shown = yalm("model", "info", "yalm-100b", "--json")
    facts = json.loads(shown.stdout)
    assert facts["parameters"]["total"] == sum(v for k, v in facts["parameters"].items() if k != "total")
    assert facts["parameters"]["total"] > 100e9
    assert facts["unaligned_bf16"] == {"intermediate_size": [27_308, 27_328]}


def test_model_info_as_tables() -> None:
    shown = yalm("model", "info", "25m")
    assert shown.returncode == 0
    assert "intermediate_size 1,376 is no multiple of 64, as bf16 tensor cores want; 1,408 is" in shown.stdout
    assert all(word in shown.stdout for word in ("feed_forward", "total", "training", "bf16"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model", "info", "yalm-10b"], "did you mean 'yalm-100b'"),
        (["train", "nowhere.toml"], "nowhere.toml: cannot read the settings file"),
        (["tokens", "info", "nowhere"], "nowhere"),
        (["generate", "nowhere", "--prompt", "x"], "nowhere"),
        (["tokenizer", "encode", "nowhere.model", "x"], "nowhere.model"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    shown = yalm(*arguments)
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert message in shown.stderr
    assert shown.stderr.startswith("yalm: ")
    assert shown.stderr.count("\n") == 1


def test_a_wrong_setting_names_the_key(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[data]\nparts = [{ name = "a", path = "a", weight = 1 }]\n')
    shown = yalm("train", str(config), "optimizer.lrate=1")
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert "unknown key 'optimizer.lrate'; did you mean 'lr'" in shown.stderr
