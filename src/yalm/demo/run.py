"""The demonstration: from real texts to a small bilingual model, its samples and a report, in one call.

Six stages, each leaving files in one folder and each skipped when a call before has done it: texts, tokenizer, token
folders, training, samples, report. A stage is done when its files still hold what they held (texts and tokenizer by
checksums in `demo.json`, token folders by their manifests, training by its checkpoints), not when they merely exist;
samples and report take seconds and are always written anew.

The amount of training is a count of tokens, so that a run that was stopped on the way makes the model of one that was
not. A machine that would need more than MOST_SECONDS for all of them, by a short trial before, gets fewer.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from yalm.atomic import write_text
from yalm.config import apply_override, read_toml
from yalm.demo.texts import SOURCES, Source, read_texts, write_jsonl
from yalm.errors import YalmError
from yalm.inference.loading import load
from yalm.model.presets import preset
from yalm.tokens.build import build_shards
from yalm.tokens.documents import read_texts as read_documents
from yalm.tokens.folder import TOKENIZER, file_sha256
from yalm.tokens.mixture import PartSettings
from yalm.tokens.tokenizer import train_tokenizer
from yalm.training.loop import TrainResult, train
from yalm.training.metrics import read_metrics
from yalm.training.report import SAMPLES_FILE, headline, read_samples, write_report
from yalm.training.run import REPORT_FILE, SETTINGS_FILE, clear_run
from yalm.training.settings import (
    BatchSettings,
    CheckpointSettings,
    DataSettings,
    MetricsSettings,
    ModelSettings,
    OptimizerSettings,
    ScheduleSettings,
    TrainSettings,
    ValidationSettings,
)

LANGUAGES = ("ru", "en")
TEXTS = tuple(f"texts/{part}.{language}.jsonl" for part in ("train", "validation") for language in LANGUAGES)
MODEL = "model"
# By the trial, of whose speed a shared machine has kept as little as two thirds over minutes; six are the limit.
MOST_SECONDS = 200
TRIAL_STEPS = 20
PROMPTS = (
    ("ru", "Он вошёл в комнату и"),
    ("ru", "дом — "),
    ("ru", "Старый учитель сказал, что"),
    ("en", "And the LORD said unto"),
    ("en", "ROMEO\n"),
    ("en", "In the beginning"),
    ("", ""),
    ("", ""),
)


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration made: the run, its numbers (see `report.headline`), samples, model folder and report."""

    training: TrainResult
    headline: dict[str, Any]
    samples: list[dict[str, str]]
    model: Path
    report: Path


def demo_settings(folder: Path) -> TrainSettings:
    """The training of the demonstration at its fullest: five minutes of two CPU cores at 8,300 tokens a second.

    Found by trials at equal CPU time: with so little of it, what counts is the number of steps, so sequences, batches
    and network are small. A rate of 2e-3 was better than 1e-3 and 3e-3; a network of half these parameters ended level
    with it after 300 seconds of one core. The rate ends near zero, where samples are best.
    """

    def parts(part: str) -> tuple[PartSettings, ...]:
        return tuple(
            PartSettings(name=language, path=str(folder / "tokens" / language / part), weight=0.5, language=language)
            for language in LANGUAGES
        )

    return TrainSettings(
        output=folder,
        model=ModelSettings(preset="demo"),
        data=DataSettings(parts=parts("train"), validation=parts("validation"), sequence_length=128),
        batch=BatchSettings(sequences=8, micro_sequences=8),
        optimizer=OptimizerSettings(lr=2e-3),
        schedule=ScheduleSettings(tokens=2_400_000, warmup_tokens=120_000, final_lr_ratio=0.02),
        validation=ValidationSettings(every_steps=200, sequences=96),
        checkpoint=CheckpointSettings(every_steps=200, keep=1),
    )


def run_demo(
    folder: str | Path = Path("runs/demo"),
    fresh: bool = False,
    *,
    overrides: Sequence[str] = (),
    sources: Sequence[Source] = SOURCES,
    vocab_size: int | None = None,
) -> DemoResult:
    """Make the demonstration in `folder`, or go on where a call before stopped; `fresh` starts over.

    `overrides` change the training (`section.key=value`); the vocabulary is the preset's unless `vocab_size` is given.
    A training stopped by a signal leaves samples and report as they were. YalmError if the texts are not installed, or
    `folder` holds something else, or a demonstration of other texts or settings.
    """
    folder = Path(folder)
    values = demo_settings(folder).model_dump(mode="json", exclude_none=True)
    for override in overrides:
        apply_override(values, override)
    settings = TrainSettings.parse(values, "demo")
    if settings.output != folder:
        raise YalmError("override 'output': the demonstration keeps all in one folder; name it with --output")
    vocab_size = vocab_size or preset("demo").vocab_size
    data = {source.name: _size(source.locate()) for source in sources}
    record = Record.open(folder, fresh)
    console = Console(stderr=True)

    def say(stage: int, line: str) -> None:
        console.print(f"[{stage}/6] {line}", highlight=False, markup=False, soft_wrap=True)

    with console.status("reading the texts"):
        record.make("texts", data, TEXTS, lambda: write_jsonl(read_texts(sources), folder / "texts"))
    sizes = (f"{Path(name).stem} {(folder / name).stat().st_size / 1e6:.1f} MB" for name in TEXTS)
    say(1, f"texts: {', '.join(sizes)}")

    tokenizer, learnt = folder / TOKENIZER, [folder / name for name in TEXTS if "train" in name]
    with console.status("training the tokenizer"):
        record.make(
            "tokenizer",
            {"vocab_size": vocab_size, "texts": [file_sha256(file) for file in learnt]},
            [TOKENIZER],
            lambda: train_tokenizer(read_documents(learnt), tokenizer, vocab_size=vocab_size),
        )
    say(2, f"tokenizer: {vocab_size:,} pieces for both languages")

    counts = []
    for name in TEXTS:
        part, language = Path(name).stem.split(".")
        built = build_shards([folder / name], tokenizer, folder / "tokens" / language / part, language=language)
        counts.append(f"{part}.{language} {built.num_tokens / 1e6:.2f} M")
    say(3, f"tokens: {', '.join(counts)}")

    if not any(override.startswith("schedule.") for override in overrides):
        say(4, "timing this machine, to train for three to five minutes")
        settings = fit_schedule(settings, folder / SETTINGS_FILE)
    say(4, f"training on {settings.schedule.tokens / 1e6:.2f} M tokens; Ctrl-C stops, the same command goes on")
    result = train(settings)
    if result.stopped_by is None:
        link_model(folder / MODEL, result.checkpoint)
        write_samples(folder / MODEL, folder / SAMPLES_FILE)
        say(5, "samples in both languages")
        write_report(folder)
        say(6, "report")
    return DemoResult(
        training=result,
        headline=headline(read_metrics(folder)),
        samples=read_samples(folder),
        model=folder / MODEL,
        report=folder / REPORT_FILE,
    )


def fit_schedule(settings: TrainSettings, begun: Path) -> TrainSettings:
    """The settings with no more tokens than this machine learns from in MOST_SECONDS, or those it has `begun` with."""
    full = settings.schedule
    if begun.exists():
        schedule = TrainSettings.parse(read_toml(begun), str(begun)).schedule
    else:
        share = min(1.0, MOST_SECONDS * tokens_per_second(settings) / full.tokens)
        counts = {"tokens": int(share * full.tokens), "warmup_tokens": int(share * full.warmup_tokens)}
        schedule = full.model_copy(update=counts)
    return settings.model_copy(update={"schedule": schedule})


def tokens_per_second(settings: TrainSettings) -> float:
    """How fast this machine trains so: measured over TRIAL_STEPS steps after as many, of which nothing is kept."""
    with TemporaryDirectory() as folder:
        tokens = 2 * TRIAL_STEPS * settings.tokens_per_step
        changes = {
            "output": Path(folder),
            "data": settings.data.model_copy(update={"validation": ()}),
            "schedule": settings.schedule.model_copy(update={"tokens": tokens}),
            "metrics": MetricsSettings(every_steps=TRIAL_STEPS, tensorboard=False),
        }
        stopped_by = train(settings.model_copy(update=changes)).stopped_by
        if stopped_by is not None:  # as the command would end without a trial, and with the folder removed
            raise SystemExit(128 + stopped_by)
        rate: float = read_metrics(Path(folder))[-1]["tokens_per_second"]
        return rate


def link_model(link: Path, checkpoint: Path) -> None:
    """Give the newest checkpoint a name that stays: `link` beside the folder of checkpoints points to it."""
    temporary = link.with_name(f".{link.name}.partial")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(checkpoint.relative_to(link.parent))
    temporary.replace(link)


def write_samples(model: Path, file: Path) -> None:
    """Write what the model says to PROMPTS, in the form of `yalm generate --output`; the same on every call."""
    generations = load(model).generate(
        [prompt for _, prompt in PROMPTS], max_tokens=96, temperature=0.8, top_p=0.95, seed=0
    )
    lines = (
        json.dumps({"language": language, "prefix": prompt, "suffix": generation.text}, ensure_ascii=False)
        for (language, prompt), generation in zip(PROMPTS, generations, strict=True)
    )
    write_text(file, "".join(f"{line}\n" for line in lines))


class Record:
    """`demo.json`: what each stage was made from, and the checksums of the files it left.

    It also marks the folder as a demonstration's own, so that nothing of anybody else's is overwritten or removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "demo.json"

    @classmethod
    def open(cls, folder: Path, fresh: bool) -> "Record":
        """The record of `folder`, which is made if need be; `fresh` removes all that a demonstration wrote there."""
        record = cls(folder)
        if not record.file.exists():
            if folder.is_dir() and any(folder.iterdir()):
                raise YalmError(f"{folder}: holds something that is no demonstration; choose another --output")
            record.write({})
        elif fresh:
            clear_run(folder)
            for name in TEXTS:
                part, language = Path(name).stem.split(".")
                shutil.rmtree(folder / "tokens" / language / part, ignore_errors=True)
            for name in (*TEXTS, TOKENIZER, SAMPLES_FILE, MODEL):
                (folder / name).unlink(missing_ok=True)
            record.write({})
        return record

    def make(self, stage: str, made_from: Mapping[str, Any], files: Sequence[str], work: Callable[[], object]) -> None:
        """Do `work`, which writes `files`, unless they stand there as it left them.

        YalmError if the stage was made from something else before, since all that follows hangs on it.
        """
        stages = self.read()
        done = stages.get(stage)
        if done is not None and done["made_from"] != made_from:
            raise YalmError(
                f"{self.folder}: its {stage} would differ from those it was begun with; start over with --fresh, "
                "or choose another --output"
            )
        if done is None or done["sha256"] != self._sha256(files):
            work()
            self.write(stages | {stage: {"made_from": made_from, "sha256": self._sha256(files)}})

    def read(self) -> dict[str, Any]:
        """The stages that are done, by name."""
        try:
            stages: dict[str, Any] = dict(json.loads(self.file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise YalmError(f"{self.file}: cannot be read ({error}); remove the folder and start again") from None
        return stages

    def write(self, stages: Mapping[str, Any]) -> None:
        """Replace the record."""
        try:
            write_text(self.file, json.dumps(stages, ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise YalmError(f"{self.folder}: cannot write there ({error.strerror}); choose another --output") from None

    def _sha256(self, files: Sequence[str]) -> dict[str, str]:
        return {name: file_sha256(self.folder / name) for name in files}


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; caches of Python are not counted."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files if file.suffix != ".pyc")
