"""From sources to a corpus, stage after stage.

    read ──► clean ──► signatures ──► candidates ──► duplicates ──┐
               │                                     domains ─────┤
               └──────────────────────────────────────────────► select ──► documents/ ──► tokens/

Texts are written three times: as they were read, as they were mended, as they are kept. What lies between are small
tables beside them. Every stage is a folder that is made once (`stage`), so the same command goes on after any
interruption, and after a change of settings does again only what depends on it.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from yalm.atomic import write_text
from yalm.corpus import mixture
from yalm.corpus.engine import Engine, Task
from yalm.corpus.rules.rule import Rule
from yalm.corpus.settings import CorpusSettings
from yalm.corpus.stage import Stage, TaskRecord
from yalm.corpus.stages.clean import KEPT, clean_shard
from yalm.corpus.stages.domains import DOMAINS_FILE, judge_domains
from yalm.corpus.stages.duplicates import CLUSTERS, deduplicate
from yalm.corpus.stages.read import REJECTS, read_shards, read_tasks
from yalm.corpus.stages.select import select_shard
from yalm.corpus.work import Work
from yalm.errors import YalmError
from yalm.tokens.folder import file_sha256
from yalm.tokens.tokenizer import Tokenizer

_RECORDS_TO_JUDGE = 1000  # of a part, before its broken ones may end a build that is under way


class Corpus:
    """The folders of a corpus."""

    def __init__(self, output: str | Path) -> None:
        self.output = Path(output)
        self.settings_file = self.output / "settings.toml"
        self.stages = self.output / "stages"
        self.documents = self.output / "documents"
        self.tokens = self.output / "tokens"


def build(settings: CorpusSettings, engine: Engine, tell: Callable[[str], None] = lambda line: None) -> Corpus:
    """Make the corpus, or what of it is not made yet; YalmError for whatever a person has to mend first.

    `tell` hears a line for each stage that is done.
    """
    return _Build(settings, engine, tell).run()


class _Build:
    """One call of `build`."""

    def __init__(self, settings: CorpusSettings, engine: Engine, tell: Callable[[str], None]) -> None:
        self.settings, self.engine, self.tell = settings, engine, tell
        self.work = Work(engine, tell)
        self.corpus = Corpus(settings.output)
        self.parts = {part.name: part for part in settings.parts}

    def run(self) -> Corpus:
        """All stages in order."""
        tasks = read_tasks(self.settings.parts, self.settings.shard_bytes)
        write_text(self.corpus.settings_file, self.settings.to_toml())
        read = self.read(tasks)
        clean = self.clean(read)
        duplicates = deduplicate(
            self.work, self.corpus.stages, self.settings.duplicates, self.shards(clean, "duplicates"), clean
        )
        domains = judge_domains(
            self.work, self.corpus.stages, self.settings.domains, self.shards(clean, "domains"), clean, duplicates
        )
        selected = self.select(clean, duplicates, domains)
        if self.settings.tokens.wanted:
            self.make_tokens(selected)
        return self.corpus

    def read(self, tasks: dict[str, Task]) -> Stage:
        """Sources to shards; stops when a part turns out to be broken."""
        stage = Stage(self.corpus.stages / "read", {})
        seen: dict[str, Counter[str]] = {}

        def watch(record: TaskRecord) -> None:
            counts = seen.setdefault(record.facts["part"], Counter())
            counts.update(record.counts)
            if counts["documents"] + counts["rejects"] >= _RECORDS_TO_JUDGE:
                self.judge_source(record.facts["part"], counts, stage)

        self.work.do(stage, read_shards, tasks, watch=watch)
        for part, counts in seen.items():
            self.judge_source(part, counts, stage)
        return stage

    def judge_source(self, part: str, counts: Mapping[str, int], stage: Stage) -> None:
        """YalmError if a part has more broken records than its settings allow."""
        records, limit = counts["documents"] + counts["rejects"], self.settings.max_reject_share
        if counts["broken"] > limit * records:
            raise YalmError(
                f"part {part!r}: {counts['broken']:,} of {records:,} records are broken, more than max_reject_share = "
                f"{limit:g}; look into {stage.folder}/*{REJECTS}, and mend the source or raise the share"
            )

    def clean(self, read: Stage) -> Stage:
        """The rules on single documents."""
        rules = self.settings.rules.model_dump(mode="json")
        stage = Stage(
            self.corpus.stages / "clean", {"rules": rules, "files": fingerprints(self.settings.rules.rules())}
        )
        tasks = {}
        for record in read.manifest.tasks:
            part = self.parts[record.facts["part"]]
            for file in record.files:
                if file.name.endswith(".parquet"):
                    tasks[file.name.removesuffix(".parquet")] = {
                        "shard": str(read.folder / file.name),
                        "sha256": file.sha256,
                        "part": part.name,
                        "rules": rules,
                        "skip": list(part.skip),
                    }
        return self.work.do(stage, clean_shard, tasks)

    def shards(self, clean: Stage, rule: str) -> dict[str, Path]:
        """The files of clean documents, by name, of parts that do not skip a rule."""
        return {
            record.name: clean.folder / f"{record.name}{KEPT}"
            for record in clean.manifest.tasks
            if rule not in self.parts[record.facts["part"]].skip
        }

    def select(self, clean: Stage, duplicates: Stage, domains: Stage) -> Stage:
        """The kept documents, in their last form."""
        quality = self.settings.quality.model_dump(mode="json")
        share = self.settings.validation_share
        settings = {"quality": quality, "validation_share": share, "files": fingerprints([self.settings.quality])}
        inputs = {"clean": clean, "duplicates": duplicates, "domains": domains}
        stage = Stage(self.corpus.documents, settings, inputs)
        tasks = {}
        for record in clean.manifest.tasks:
            part = self.parts[record.facts["part"]]
            tasks[record.name] = {
                "shard": str(clean.folder / f"{record.name}{KEPT}"),
                "part": part.name,
                "duplicates": None if "duplicates" in part.skip else str(duplicates.folder / CLUSTERS),
                "domains": None if "domains" in part.skip else str(domains.folder / DOMAINS_FILE),
                "quality": None if "quality" in part.skip else quality,
                "validation_share": share,
            }
        return self.work.do(stage, select_shard, tasks)

    def make_tokens(self, selected: Stage) -> None:
        """The mixture, first as it is expected to be, then as it is; and the token folders."""
        settings, parts, corpus = self.settings.tokens, self.settings.parts, self.corpus
        tokenizer = self.tokenizer(selected)
        size = Counter[str]()
        for record in selected.manifest.tasks:
            size[record.facts["part"]] += record.counts.get("kept_bytes", 0)
        has = mixture.estimated_tokens(corpus.documents, parts, size, tokenizer)
        for line in mixture.mixture_table(parts, has, settings.total, estimated=True).lines():
            self.tell(line)
        has = mixture.build_tokens(corpus.documents, corpus.tokens, parts, tokenizer, self.engine.workers)
        table = mixture.mixture_table(parts, has, settings.total, estimated=False)
        write_text(corpus.tokens / mixture.MIXTURE, json.dumps(table.as_dict(), indent=1))

    def tokenizer(self, selected: Stage) -> Tokenizer:
        """The tokenizer of the settings, or one trained on what was selected."""
        settings = self.settings.tokens
        if settings.tokenizer is not None:
            return Tokenizer(settings.tokenizer)
        values = settings.model_dump(mode="json", exclude={"total"})
        weights = {part.name: part.weight for part in self.settings.parts}
        stage = Stage(
            self.corpus.stages / "tokenizer", {"settings": values, "weights": weights}, {"selected": selected}
        )
        task = {"documents": str(self.corpus.documents), "settings": values, "weights": weights}
        self.work.do(stage, mixture.train_on_corpus, {"tokenizer": task}, spread=False)
        return Tokenizer(stage.folder / mixture.TOKENIZER)


def fingerprints(rules: Iterable[Rule]) -> dict[str, str]:
    """The checksums of all files that rules depend on."""
    return {str(file): file_sha256(file) for rule in rules for file in rule.files}
