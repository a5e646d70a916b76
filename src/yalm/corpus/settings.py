"""The settings of a corpus: its parts with their sources and weights, and the thresholds of all rules."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from yalm.config import Settings
from yalm.corpus.rules.chain import RulesSettings
from yalm.corpus.rules.domains import DomainsSettings
from yalm.corpus.rules.duplicates import DuplicatesSettings
from yalm.corpus.rules.quality import Quality
from yalm.corpus.sources.books import Books
from yalm.corpus.sources.dialogues import Dialogues
from yalm.corpus.sources.jsonl import JsonLines
from yalm.corpus.sources.news import News
from yalm.corpus.sources.parquet import HuggingFace, Parquet
from yalm.corpus.sources.pile import Pile
from yalm.corpus.sources.taiga import Taiga
from yalm.corpus.sources.text import PlainText
from yalm.corpus.sources.web import Html, Warc, Wet
from yalm.corpus.sources.wikipedia import Wikipedia

AnySource = Annotated[
    JsonLines
    | Pile
    | Parquet
    | HuggingFace
    | PlainText
    | Warc
    | Wet
    | Html
    | Wikipedia
    | News
    | Books
    | Taiga
    | Dialogues,
    Field(discriminator="kind"),
]


def parse_source(values: Mapping[str, Any]) -> AnySource:
    """The source that plain values describe."""
    return _Holder.parse({"source": values}, "source").source


class PartSettings(Settings):
    """One part of the corpus: where its texts are, its share of the tokens, how often they may be read at most."""

    name: str = Field(pattern=r"^[\w-]+$")
    source: AnySource
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    max_epochs: int = Field(default=3, ge=1)
    language: str | None = None
    skip: tuple[str, ...] = ()
    """Rules that this part is not judged by, by name; "duplicates", "domains" and "quality" are names too."""


class _Holder(Settings):
    """A source alone."""

    source: AnySource


class TokensSettings(Settings):
    """How documents become tokens: with the tokenizer of a file, or one trained on the corpus."""

    tokenizer: str | None = None
    vocab_size: int = Field(default=0, ge=0)
    model_type: Literal["bpe", "unigram"] = "bpe"
    sample_bytes: int = Field(default=200_000_000, gt=0)
    total: int | None = Field(default=None, gt=0)
    """Tokens of the run that is planned; without it, as many as the weights can be kept for."""

    @property
    def wanted(self) -> bool:
        """Whether tokens are to be made at all."""
        return self.tokenizer is not None or self.vocab_size > 0


class CorpusSettings(Settings):
    """All of `yalm corpus build`."""

    output: str
    parts: tuple[PartSettings, ...] = Field(min_length=1)
    rules: RulesSettings = RulesSettings()
    duplicates: DuplicatesSettings = DuplicatesSettings()
    domains: DomainsSettings = DomainsSettings()
    quality: Quality = Quality()
    tokens: TokensSettings = TokensSettings()
    shard_bytes: int = Field(default=64 << 20, gt=0)
    """Bytes of text in a shard: the unit of work, and of what is done again after a kill."""
    max_reject_share: float = Field(default=0.01, ge=0, le=1)
    """A part with a greater share of broken records ends the build."""
    validation_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of the documents of each part that is set aside for validation."""

    @field_validator("parts")
    @classmethod
    def _names_differ(cls, parts: tuple[PartSettings, ...]) -> tuple[PartSettings, ...]:
        names = [part.name for part in parts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two parts are named {name!r}; give each its own name")
        return parts
