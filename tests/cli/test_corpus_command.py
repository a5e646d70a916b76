"""`yalm corpus`: the commands, what they print, and what becomes of bad input."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from made_up import text
from yalm.cli import app
from yalm.errors import YalmError


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["corpus", *arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with texts, a settings file, and the corpus built of them."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [{"id": f"d{number}", "text": text(number, ("ru", "en")[number % 2])} for number in range(20)]
    lines.append({"id": "tiny", "text": "Слишком мало."})
    (folder / "texts.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (folder / "corpus.toml").write_text(
        f'output = "{folder}/out"\n[[parts]]\nname = "web"\n'
        f'source = {{ kind = "jsonl", paths = ["{folder}/texts.jsonl"] }}\n'
    )
    built = run("build", str(folder / "corpus.toml"), "--workers", "1")
    assert built.exit_code == 0, built.output
    assert "report.html" in built.output
    assert "kept" in built.output
    return folder


def test_the_facts_are_the_same_in_every_form(folder: Path) -> None:
    printed = run("build", str(folder / "corpus.toml"), "--workers", "1", "--json")
    facts = json.loads(printed.stdout)
    assert facts == json.loads((folder / "out" / "report.json").read_text())
    assert json.loads(run("report", str(folder / "out"), "--json").stdout) == facts
    assert facts["waterfall"][0]["documents"] == 21
    assert facts["waterfall"][-1]["documents"] == 20


def test_why_a_document_fell(folder: Path) -> None:
    found = json.loads(run("inspect", str(folder / "out"), "--why-dropped", "tiny", "--json").stdout)["documents"]
    assert [(fate["kept"], fate["rule"]) for fate in found] == [(False, "length")]
    assert "length" in run("inspect", str(folder / "out"), "--why-dropped", "tiny").output


def test_overrides_reach_the_rules(folder: Path) -> None:
    built = run(
        "build", str(folder / "corpus.toml"), f"output={folder}/other", "rules.length.min_words={ru=1,en=6}", "--json"
    )
    settings = tomllib.loads(json.loads(built.stdout)["settings"])
    assert settings["rules"]["length"]["min_words"] == {"ru": 1, "en": 6}


def test_a_classifier_is_taught(folder: Path) -> None:
    for name, language in (("good", "ru"), ("random", "en")):
        lines = (json.dumps({"text": text(seed, language)}) for seed in range(400))
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    arguments = [str(folder / "good.jsonl"), "--random", str(folder / "random.jsonl")]
    taught = run("classifier", "train", *arguments, "--output", str(folder / "q.safetensors"), "--json")
    assert taught.exit_code == 0, taught.output
    assert json.loads(taught.stdout)["auc"] > 0.99
    chosen = ["quality.threshold=0.9", f"quality.model={folder}/q.safetensors", f"output={folder}/judged"]
    facts = json.loads(run("build", str(folder / "corpus.toml"), *chosen, "--json").stdout)
    assert facts["waterfall"][-1]["documents"] == 10  # the Russian half


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["build", "none.toml"], "cannot read the settings file"),
        (["build", "{folder}/corpus.toml", "rules.lenght.min_words=3"], "did you mean 'length'"),
        (["build", "{folder}/corpus.toml", "--address", "auto"], "--engine ray"),
        (["build", "{folder}/corpus.toml", "--workers", "0"], "at least 1"),
        (["report", "{folder}"], "settings.toml"),
        (["inspect", "{folder}/out", "--why-dropped", "nobody"], "nobody"),
        (["classifier", "train", "{folder}/none", "--random", "{folder}/none", "--output", "x"], "no such file"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[str], words: str) -> None:
    result = run(*(argument.replace("{folder}", str(folder)) for argument in arguments))
    assert isinstance(result.exception, YalmError)
    assert words in str(result.exception)
    assert "\n" not in str(result.exception)
