"""From sources to documents and tokens: what is kept, the same for any engine, after any interruption."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from made_up import text
from yalm.corpus import stage as stages
from yalm.corpus.engine import Engine
from yalm.corpus.pipeline import Corpus, build
from yalm.corpus.settings import CorpusSettings
from yalm.errors import YalmError
from yalm.tokens.documents import find_files, read_raw
from yalm.tokens.folder import TokenFolder

STAGES = ("read", "clean", "signatures", "copies", "members", "candidates", "shingles", "compare-00-slices")
STAGES += ("compare-unsettled-0-pairs", "compare-settled-0", "duplicates", "domain-counts", "domains", "documents")


def write_lines(path: Path, documents: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents))


def planted(folder: Path) -> dict[str, str]:
    """Two files of documents, good and bad; by id the rule that each should fall by, empty for those to keep."""
    rules: dict[str, str] = {}
    russian, english = [], []
    for number in range(40):
        language = "ru" if number % 2 else "en"
        (russian if number % 2 else english).append({"id": f"good-{number}", "text": text(number, language)})
        rules[f"good-{number}"] = ""
    for number in range(4):
        words = text(2 * number + 1).split(" ")
        words[20] = "другое"
        russian.append({"id": f"near-{number}", "text": " ".join(words)})
        english.append({"id": f"copy-{number}", "text": text(2 * number, "en")})
        rules |= {f"near-{number}": "duplicates", f"copy-{number}": "duplicates"}
    for number in range(24):
        lines = [f"Товар номер {number} стоит {number * 7} рублей.", *text(7000, sentences=15).split("\n")]
        shop = {"id": f"shop-{number}", "url": f"https://www.shop.example/{number}"}
        russian.append(shop | {"text": "\n".join([*lines, text(9000 + number, sentences=3)])})
        rules[f"shop-{number}"] = "domains"
    write_lines(folder / "ru.jsonl", russian)
    write_lines(folder / "en.jsonl", english)
    return rules


def settings(folder: Path, output: str, *overrides: str) -> CorpusSettings:
    parts = ", ".join(
        f"{{name='{name}', weight={weight}, source={{kind='jsonl', paths=['{folder / name}.jsonl']}}}}"
        for name, weight in (("ru", 3), ("en", 1))
    )
    small = ["shard_bytes=20000", "duplicates.bands=3", "duplicates.rows=2", f"output={folder / output}"]
    return CorpusSettings.load(None, [f"parts=[{parts}]", *small, *overrides])


def content(corpus: Corpus) -> dict[str, bytes]:
    """The files of the last stage, by name; records name the folder they are in, and so differ."""
    files = (file for kind in ("*.jsonl.zst", "*.parquet") for file in corpus.documents.rglob(kind))
    return {str(file.relative_to(corpus.documents)): file.read_bytes() for file in files}


def fates(corpus: Corpus) -> dict[str, str]:
    """By id the rule a document fell by, empty if it was kept."""
    found = {
        json.loads(raw.data)["meta"]["id"]: "" for file in find_files([corpus.documents]) for raw in read_raw(file)
    }
    for folder in (corpus.stages / "clean", corpus.documents):
        for file in folder.glob("*.dropped.parquet"):
            table = pq.read_table(file)
            found |= dict(zip(table["id"].to_pylist(), table["rule"].to_pylist(), strict=True))
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], Corpus]:
    folder = tmp_path_factory.mktemp("corpus")
    rules = planted(folder)
    return folder, rules, build(settings(folder, "one"), Engine(workers=1))


def test_every_document_is_kept_or_falls_by_the_rule_meant_for_it(
    built: tuple[Path, dict[str, str], Corpus],
) -> None:
    _, rules, corpus = built
    assert fates(corpus) == rules


def test_two_workers_make_the_same_bytes(built: tuple[Path, dict[str, str], Corpus]) -> None:
    folder, _, corpus = built
    assert content(build(settings(folder, "two"), Engine(workers=2))) == content(corpus)


def test_nothing_is_done_twice(built: tuple[Path, dict[str, str], Corpus], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _, _ = built

    def forbidden(task: dict[str, Any]) -> dict[str, Any]:
        raise AssertionError(f"done again: {task['task']['name']}")

    monkeypatch.setattr(stages, "run_task", forbidden)
    build(settings(folder, "one"), Engine(workers=1))


def test_new_settings_of_a_late_rule_leave_the_early_stages_alone(tmp_path: Path) -> None:
    planted(tmp_path)
    first = build(settings(tmp_path, "out"), Engine(workers=1))
    before = {file: file.stat().st_mtime_ns for file in first.stages.glob("clean/*.parquet")}
    corpus = build(settings(tmp_path, "out", "domains.max_template_share=1"), Engine(workers=1))
    assert {file: file.stat().st_mtime_ns for file in first.stages.glob("clean/*.parquet")} == before
    assert "domains" not in fates(corpus).values()


def test_a_kill_in_any_stage_costs_nothing_but_time(built: tuple[Path, dict[str, str], Corpus], tmp_path: Path) -> None:
    """Killed with -9 as the first task of each stage in turn has written its files, and run again."""
    folder, _, corpus = built
    script = """
import os, signal, sys
from pathlib import Path
from test_pipeline import settings
from yalm.corpus import stage
from yalm.corpus.engine import Engine
from yalm.corpus.pipeline import build
write = stage.write_text
def killed(path, text):
    if path.parent.parent.name == sys.argv[3] and path.parent.name == stage.RECORDS:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, text)
stage.write_text = killed
build(settings(Path(sys.argv[1]), sys.argv[2]), Engine(workers=1))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    kept: dict[Path, int] = {}
    for name in STAGES:
        command = [sys.executable, "-c", script, str(folder), "killed", name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, f"{name}: {done.stderr[-2000:]}"
        now = {file: file.stat().st_mtime_ns for file in (folder / "killed/stages").glob("[rc]*/records/*.json")}
        assert now.items() >= {file: time for file, time in kept.items() if file in now}.items(), f"{name}: done again"
        kept = now
    assert content(build(settings(folder, "killed"), Engine(workers=1))) == content(corpus)


@pytest.mark.slow
def test_ray_keeps_the_same_documents(built: tuple[Path, dict[str, str], Corpus]) -> None:
    pytest.importorskip("ray")
    folder, _, corpus = built
    script = (
        "import sys; from pathlib import Path; from test_pipeline import settings\n"
        "from yalm.corpus.engine import Engine; from yalm.corpus.pipeline import build\n"
        "build(settings(Path(sys.argv[1]), 'ray'), Engine('ray', workers=2))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    subprocess.run([sys.executable, "-c", script, str(folder)], env=environment, check=True)
    assert content(Corpus(folder / "ray")) == content(corpus)


def test_tokens_and_a_file_for_training(built: tuple[Path, dict[str, str], Corpus]) -> None:
    folder, _, _ = built
    lines: list[str] = []
    chosen = settings(folder, "tokens", "tokens.vocab_size=400", "validation_share=0.2")
    corpus = build(chosen, Engine(workers=1), lines.append)
    mixture = json.loads((corpus.tokens / "mixture.json").read_text())
    for part in mixture["parts"]:
        assert part["has"] == TokenFolder(corpus.tokens / part["name"] / "train").manifest.tokens
    assert sum(part["takes"] for part in mixture["parts"]) == mixture["tokens"]
    shares = {part["name"]: part["share_percent"] for part in mixture["parts"]}
    assert shares == pytest.approx({"ru": 75, "en": 25}, abs=0.1)
    assert any("estimated" in line for line in lines)
    assert TokenFolder(corpus.tokens / "ru" / "validation").manifest.documents > 0
    before = {file: file.stat().st_mtime_ns for file in corpus.tokens.rglob("*.bin")}
    build(chosen, Engine(workers=1))
    assert {file: file.stat().st_mtime_ns for file in corpus.tokens.rglob("*.bin")} == before


def test_training_and_validation_have_no_document_in_common(tmp_path: Path) -> None:
    planted(tmp_path)
    corpus = build(settings(tmp_path, "out", "validation_share=0.3"), Engine(workers=1))
    split = {
        name: {raw.text() for file in corpus.documents.glob(f"*/{name}/*") for raw in read_raw(file)}
        for name in ("train", "validation")
    }
    assert all(split.values())
    assert not split["train"] & split["validation"]


def test_a_broken_source_ends_the_build(tmp_path: Path) -> None:
    planted(tmp_path)
    draw = random.Random(0)
    lines = (tmp_path / "ru.jsonl").read_text().splitlines()
    broken = [line[: len(line) // 2] if draw.random() < 0.3 else line for line in lines]
    (tmp_path / "ru.jsonl").write_text("\n".join(broken))
    with pytest.raises(YalmError, match=r"part 'ru'.*are broken.*max_reject_share"):
        build(settings(tmp_path, "out"), Engine(workers=1))
    corpus = build(settings(tmp_path, "out", "max_reject_share=0.5"), Engine(workers=1))
    rejects = [json.loads(line) for file in corpus.stages.glob("read/*.rejects.jsonl") for line in file.open()]
    assert len(rejects) == sum(line != whole for line, whole in zip(broken, lines, strict=True))


def test_a_part_may_skip_rules(tmp_path: Path) -> None:
    planted(tmp_path)
    part = f"{{name='ru', skip=['duplicates', 'domains'], source={{kind='jsonl', paths=['{tmp_path}/ru.jsonl']}}}}"
    corpus = build(settings(tmp_path, "out", f"parts=[{part}]"), Engine(workers=1))
    assert set(fates(corpus).values()) == {""}
    assert len(fates(corpus)) == len((tmp_path / "ru.jsonl").read_text().splitlines())


def test_wrong_settings_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="two parts are named 'a'"):
        CorpusSettings.load(None, ["output=x", "parts=[" + "{name='a', source={kind='jsonl', paths=['x']}}," * 2 + "]"])
    with pytest.raises(YalmError, match="kind"):
        CorpusSettings.load(None, ["output=x", "parts=[{name='a', source={kind='jsnl', paths=['x']}}]"])
    with pytest.raises(YalmError, match="no such file or folder"):
        build(settings(tmp_path, "out"), Engine(workers=1))
