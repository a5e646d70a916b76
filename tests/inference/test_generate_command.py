"""`yalm generate`, its four ways, as a person types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner, Result

from yalm.cli.generate import generate
from yalm.errors import YalmError
from yalm.inference.language_model import LanguageModel

app = typer.Typer()
app.command()(generate)


def invoke(*words: object, text: str | None = None) -> Result:
    result = CliRunner().invoke(app, [str(word) for word in words], input=text)
    if isinstance(result.exception, Exception):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


def test_a_prompt_streams_its_continuation(lm: LanguageModel, folder: Path) -> None:
    options = ["--max-tokens", 12, "--temperature", 0.8, "--top-k", 50, "--top-p", 0.95, "--seed", 3]
    expected = lm.generate("Повар", max_tokens=12, temperature=0.8, top_k=50, top_p=0.95, seed=3)[0]
    assert invoke(folder, "--prompt", "Повар", *options).stdout == expected.text + "\n"
    shown = json.loads(invoke(folder, "--prompt", "Повар", *options, "--json").stdout)
    assert shown == {
        "prompt": "Повар",
        "text": expected.text,
        "finish_reason": expected.finish_reason,
        "prompt_tokens": expected.prompt_tokens,
        "tokens": len(expected.ids),
    }


def test_stop_and_penalty_reach_the_model(lm: LanguageModel, folder: Path) -> None:
    options = {"max_tokens": 30, "repetition_penalty": 1.5}
    whole = lm.generate("Повар", **options)[0].text
    stop = whole[5:7]
    words = ["--prompt", "Повар", "--max-tokens", 30, "--repetition-penalty", 1.5]
    assert invoke(folder, *words).stdout == whole + "\n"
    shown = invoke(folder, *words, "--stop", "never there", "--stop", stop).stdout
    assert shown == whole[: whole.index(stop)] + "\n"


def test_a_conversation(lm: LanguageModel, folder: Path) -> None:
    """Prompts are numbered, so the same one twice gives two texts; a prompt that is too long is no end."""
    prompts = ["Повар", "%" * 300, "Повар"]
    result = invoke(folder, "--max-tokens", 6, text="\n".join(prompts) + "\n")
    expected = [lm.generate("Повар", max_tokens=6, first_prompt=place)[0].text for place in (0, 2)]
    assert expected[0] != expected[1]
    assert result.stdout == "".join(text + "\n" for text in expected)
    assert "shorten" in result.stderr
    objects = invoke(folder, "--max-tokens", 6, "--json", text="Повар\n").stdout
    assert json.loads(objects)["text"] == expected[0]


def test_a_file(lm: LanguageModel, folder: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prefix": "Повар", "id": 1}\n{"prefix": "If", "id": 2}\n')
    words = ["--input", source, "--output", output, "--max-tokens", 5, "--batch-size", 2]
    summary = json.loads(invoke(folder, *words, "--json").stdout)
    assert (summary["texts"], summary["resumed_at"], summary["output"]) == (2, 0, str(output))
    expected = lm.generate(["Повар", "If"], max_tokens=5)
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert records == [
        {"prefix": "Повар", "id": 1, "suffix": expected[0].text},
        {"prefix": "If", "id": 2, "suffix": expected[1].text},
    ]
    result = invoke(folder, *words)
    assert result.stdout == ""
    assert "2 texts" in result.stderr


def test_texts_from_nothing(lm: LanguageModel, folder: Path, tmp_path: Path) -> None:
    expected = [one.text for one in lm.generate("", num_samples=3, max_tokens=6)]
    assert len(set(expected)) == 3
    words = [folder, "--unconditional", 3, "--max-tokens", 6]
    assert invoke(*words).stdout == "\n--------\n".join(expected) + "\n"
    assert [json.loads(line)["text"] for line in invoke(*words, "--json").stdout.split("\n")[:-1]] == expected
    invoke(*words, "--output", tmp_path / "texts.jsonl")
    assert [json.loads(line)["text"] for line in (tmp_path / "texts.jsonl").read_text().splitlines()] == expected


def test_threads(folder: Path) -> None:
    before = torch.get_num_threads()
    try:
        invoke(folder, "--prompt", "a", "--max-tokens", 1, "--threads", before + 1)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prompt", "a", "--unconditional", 1], "exclude each other"),
        (["--input", "in.jsonl"], "--input needs --output"),
        (["--output", "out.jsonl"], "--output goes with"),
        (["--prompt", "a", "--temperature", -1], "temperature"),
        (["--prompt", "a", "--dtype", "fp64"], "fp64"),
    ],
)
def test_wrong_options(folder: Path, words: list[object], message: str) -> None:
    with pytest.raises(YalmError, match=message):
        invoke(folder, *words)


def test_module_level_is_light() -> None:
    """Help answers at once only if reading the file imports nothing heavy."""
    probe = "import sys, yalm.cli.generate; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout == "False\n"
