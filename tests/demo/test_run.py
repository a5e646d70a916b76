"""The whole demonstration, on made-up texts and a tiny network: what it leaves, and that a rerun goes on."""

import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import yalm.cli.demo
from yalm.config import read_toml
from yalm.demo import run
from yalm.demo.texts import Source
from yalm.errors import YalmError
from yalm.model.costs import parameters
from yalm.model.presets import preset
from yalm.tokens.tokenizer import Tokenizer
from yalm.training.metrics import Metrics
from yalm.training.settings import ScheduleSettings, TrainSettings

TINY = [
    "model.embedding_size=8",
    "model.hidden_size=16",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.intermediate_size=24",
    "data.sequence_length=32",
    "schedule.tokens=2048",
    "schedule.warmup_tokens=256",
    "validation.every_steps=4",
    "validation.sequences=2",
    "checkpoint.every_steps=2",
    "metrics.every_steps=2",
    "metrics.tensorboard=false",
    "compute.threads=1",
]
WORDS = {
    "ru": ["дом", "стоит", "у", "реки", "и", "старый", "учитель", "говорит", "что", "слово", "живёт"],
    "en": ["the", "house", "stands", "by", "the", "river", "and", "an", "old", "teacher", "says"],
}

Demo = Callable[..., run.DemoResult]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Source]]:
    """An installed package for each language, of 300 documents that differ."""
    site = tmp_path_factory.mktemp("site")
    found = []
    for language, words in WORDS.items():
        package = site / f"fabricated_{language}"
        package.mkdir()
        (package / "__init__.py").touch()
        lines = (" ".join(words[(i * j) % len(words)] for j in range(60)) + f" {i}" for i in range(1, 300))
        (package / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
        found.append(Source(f"made-up {language}", package.name, "texts.txt", language, "none", read_lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        yield found


def read_lines(path: Path) -> Any:
    yield from path.read_text(encoding="utf-8").splitlines()


@pytest.fixture
def demo(tmp_path: Path, sources: list[Source], monkeypatch: pytest.MonkeyPatch) -> Demo:
    """The demonstration in `tmp_path / "demo"`; its report is left to `whole`, for speed."""
    monkeypatch.setattr(run, "write_report", lambda folder: (folder / "report.html").touch())
    run_demo = run.run_demo

    def call(fresh: bool = False, **changes: Any) -> run.DemoResult:
        options: dict[str, Any] = {"overrides": TINY, "sources": sources, "vocab_size": 400} | changes
        return run_demo(tmp_path / "demo", fresh, **options)

    return call


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, sources: list[Source]) -> run.DemoResult:
    """A demonstration that nothing disturbed."""
    return run.run_demo(tmp_path_factory.mktemp("whole") / "run", overrides=TINY, sources=sources, vocab_size=400)


def count(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """The stages that do work from now on, by the functions of `run` they call."""
    done: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            done.append(name)
            return function(*arguments, **options)

        return call

    for name in names:
        monkeypatch.setattr(run, name, counted(name, getattr(run, name)))
    return done


def content(folder: Path) -> dict[str, bytes]:
    """What a run has that must not change, whichever way it went."""
    names = ("texts/*", "tokenizer.model", "tokens/*/*/*.bin", "samples.jsonl", "checkpoints/*/model*")
    files = [file for name in names for file in sorted(folder.glob(name))]
    assert files
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_from_texts_to_samples_and_report(whole: run.DemoResult) -> None:
    assert set(whole.headline["validation"]) == {"ru", "en"}
    assert all(part["bits_per_byte"] > 0 for part in whole.headline["validation"].values())
    assert whole.headline["tokens"] == 2048
    assert [(sample["language"], sample["prefix"]) for sample in whole.samples] == list(run.PROMPTS)
    assert any(sample["suffix"] for sample in whole.samples)
    assert whole.model.resolve() == whole.training.checkpoint.resolve()
    page = whole.report.read_text(encoding="utf-8")
    assert page.count('class="sample"') == len(run.PROMPTS)
    assert run.PROMPTS[0][1] in page
    saved = read_toml(whole.report.parent / "settings.toml")  # repeats the run: `yalm train` reads it
    assert saved["schedule"]["tokens"] == 2048
    assert {part["language"] for part in saved["data"]["parts"]} == {"ru", "en"}


def test_the_settings_fit_the_preset(tmp_path: Path) -> None:
    settings = run.demo_settings(tmp_path)
    sizes = settings.model.config(preset("demo").vocab_size)
    assert sizes == preset("demo")
    assert settings.data.sequence_length <= sizes.max_positions
    assert 1e6 < parameters(sizes)["total"] < 1e7


UNSCHEDULED = [override for override in TINY if not override.startswith("schedule.")]


@pytest.mark.parametrize(("rate", "share"), [(2.0, 0.5), (4.0, 1.0), (1e9, 1.0)])
def test_a_slow_machine_trains_on_fewer_tokens(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float, share: float
) -> None:
    tokens = 4 * run.MOST_SECONDS
    full = ScheduleSettings(tokens=tokens, warmup_tokens=tokens // 10)
    settings = run.demo_settings(tmp_path / "demo").model_copy(update={"schedule": full})
    monkeypatch.setattr(run, "demo_settings", lambda folder: settings)
    monkeypatch.setattr(run, "tokens_per_second", lambda settings: rate)
    demo(overrides=UNSCHEDULED)
    saved = read_toml(tmp_path / "demo" / "settings.toml")["schedule"]
    assert saved["tokens"] == share * tokens
    assert saved["warmup_tokens"] == share * tokens / 10
    # What is begun is finished as it was begun, however fast the machine is by then.
    monkeypatch.setattr(run, "tokens_per_second", lambda settings: rate / 2)
    steps = count_steps(monkeypatch)
    demo(overrides=UNSCHEDULED)
    assert steps == []


def test_the_trial_leaves_nothing(whole: run.DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings.load(whole.report.parent / "settings.toml")
    steps = count_steps(monkeypatch)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    before = time.perf_counter()
    rate = run.tokens_per_second(settings)
    seconds = time.perf_counter() - before
    assert len(steps) == 2 * run.TRIAL_STEPS
    assert rate > len(steps) / 2 * settings.tokens_per_step / seconds
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_trial_it_ends_as_it_would(
    whole: run.DemoResult, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals
) -> None:
    monkeypatch.setattr(Metrics, "advance", lambda self, step: signal.raise_signal(number))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        run.tokens_per_second(TrainSettings.load(whole.report.parent / "settings.toml"))
    assert stopped.value.code == 128 + number
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_does_no_work_and_changes_nothing(
    demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo()
    before = content(tmp_path / "demo")
    done = count(monkeypatch, "write_jsonl", "train_tokenizer")
    encoded = count_encoding(monkeypatch)
    steps = count_steps(monkeypatch)
    demo()
    assert done == encoded == steps == []
    assert content(tmp_path / "demo") == before


def count_encoding(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    batches: list[int] = []
    encode = Tokenizer.encode_batch

    def counted(self: Tokenizer, texts: list[str], threads: int = 1) -> list[list[int]]:
        batches.append(len(texts))
        return encode(self, texts, threads)

    monkeypatch.setattr(Tokenizer, "encode_batch", counted)
    return batches


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    monkeypatch.setattr(Metrics, "advance", lambda self, step: steps.append(step))
    return steps


@pytest.mark.parametrize("stage", ["write_jsonl", "train_tokenizer", "build_shards", "train", "write_samples"])
def test_killed_at_a_stage_it_goes_on_to_the_same(
    demo: Demo, whole: run.DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, stage, die)
        with pytest.raises(KeyboardInterrupt):
            demo()
    demo()
    assert content(tmp_path / "demo") == content(whole.report.parent)


@pytest.mark.parametrize("last", [1, 5])
def test_stopped_in_training_it_goes_on_from_there(
    demo: Demo, whole: run.DemoResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    def stop(metrics: Metrics, step: int) -> None:
        if step == last:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "advance", stop)
        stopped = demo()
    assert stopped.training.stopped_by == signal.SIGTERM
    assert not stopped.report.exists()
    steps = count_steps(monkeypatch)
    assert demo().training.stopped_by is None
    assert steps == list(range(last + 1, 9))
    assert content(tmp_path / "demo") == content(whole.report.parent)


def test_damaged_files_are_made_again(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo()
    before = content(tmp_path / "demo")
    for name in ("texts/train.ru.jsonl", "tokenizer.model"):
        file = tmp_path / "demo" / name
        file.write_bytes(file.read_bytes()[:-20])
    next((tmp_path / "demo" / "tokens/en/train").glob("*.bin")).write_bytes(b"")
    done = count(monkeypatch, "write_jsonl", "train_tokenizer", "build_shards")
    demo()
    assert done == ["write_jsonl", "train_tokenizer", *["build_shards"] * 4]
    assert content(tmp_path / "demo") == before


def test_other_texts_or_vocabulary_end_in_one_line_until_fresh(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    demo()
    with pytest.raises(YalmError, match=r"its tokenizer would differ.*--fresh"):
        demo(vocab_size=410)
    monkeypatch.setattr(run, "_size", lambda path: 7)
    with pytest.raises(YalmError, match=r"its texts would differ.*--fresh"):
        demo()
    demo(fresh=True, vocab_size=410)


def test_fresh_removes_only_what_the_demonstration_wrote(demo: Demo, tmp_path: Path) -> None:
    demo()
    before = content(tmp_path / "demo")
    mine = [tmp_path / "demo" / name for name in ("notes.txt", "texts/mine.txt", "tokens/mine/file")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    demo(fresh=True)
    assert all(file.read_text() == "mine" for file in mine)
    (tmp_path / "demo/texts/mine.txt").unlink()
    assert content(tmp_path / "demo") == before


def test_a_folder_of_something_else_is_left_alone(demo: Demo, tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "tokenizer.model").write_text("mine")
    for fresh in (False, True):
        with pytest.raises(YalmError, match="no demonstration; choose another --output"):
            demo(fresh=fresh)
    assert [file.name for file in (tmp_path / "demo").iterdir()] == ["tokenizer.model"]


def test_wrong_overrides_and_missing_texts_write_nothing(demo: Demo, tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="did you mean 'tokens'"):
        demo(overrides=["schedule.token=3"])
    with pytest.raises(YalmError, match="name it with --output"):
        demo(overrides=["output=elsewhere"])
    missing = Source("missing", "no_such_package", "x", "en", "none", read_lines)
    with pytest.raises(YalmError, match=r"pip install 'openyalm\[demo\]'"):
        demo(sources=[missing])
    assert not (tmp_path / "demo").exists()


def invoke(demo: Demo, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    monkeypatch.setattr(run, "run_demo", lambda folder, fresh, overrides: demo(fresh))
    app = typer.Typer()
    app.command()(yalm.cli.demo.demo)
    return CliRunner().invoke(app, arguments)


def test_the_last_line_is_the_path_of_the_report(demo: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "demo"
    shown = invoke(demo, monkeypatch, "--output", str(folder))
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert lines[-1] == str(folder / "report.html")
    assert Path(lines[-1]).exists()
    assert any(line.startswith(f"  yalm generate {folder / 'model'} --prompt") for line in lines)
    assert "bits per byte, ru" in shown.stdout
    facts = json.loads(invoke(demo, monkeypatch, "--output", str(folder), "--json").stdout)
    assert facts["report"] == lines[-1]
    assert facts["model"] == str(folder / "model")
    assert len(facts["samples"]) == len(run.PROMPTS)
