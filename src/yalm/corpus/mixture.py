"""The mixture: how many tokens each part has, needs and repeats; and the token folders to train on.

YaLM's corpus is given in percent of its tokens, some parts seen up to three times. Before a token is written the
table says, from a sample of each part, what the weights ask of it; afterwards it says so exactly.
`yalm.tokens.mixture` is what training samples by, and it is asked here too: a part that its cap retires early leaves
its weight to the others.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tomli_w

from yalm.atomic import write_text
from yalm.corpus.engine import Task
from yalm.corpus.settings import PartSettings, TokensSettings
from yalm.corpus.stages.select import SPLITS
from yalm.errors import YalmError
from yalm.tokens import mixture as samples
from yalm.tokens.build import build_shards
from yalm.tokens.documents import find_files, read_raw, read_texts
from yalm.tokens.folder import file_sha256
from yalm.tokens.tokenizer import Tokenizer, train_tokenizer

SNIPPET, MIXTURE, TOKENIZER = "data.toml", "mixture.json", "tokenizer.model"
_SAMPLE_BYTES = 4 << 20  # of each part, to estimate its tokens from


@dataclass(frozen=True)
class PartShare:
    """What the mixture asks of one part, in tokens: it `needs` its weight, `takes` what its cap allows, in `epochs`."""

    name: str
    weight_percent: float
    has: int
    needs: int
    takes: int
    share_percent: float
    epochs: float
    max_epochs: int


@dataclass(frozen=True)
class MixtureTable:
    """All parts for a run of `tokens`; `estimated` says that they were counted on samples only."""

    tokens: int
    estimated: bool
    parts: tuple[PartShare, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The table in words."""
        yield f"mixture of {self.tokens:,} tokens{', estimated' * self.estimated}:"
        for part in self.parts:
            yield (
                f"  {part.name}: {part.weight_percent:.3g} %, has {part.has:,}, needs {part.needs:,}, takes "
                f"{part.takes:,} ({part.share_percent:.3g} %): read {part.epochs:.2f} times, at most {part.max_epochs}"
            )


def mixture_table(
    parts: Sequence[PartSettings], has: Mapping[str, int], tokens: int | None, estimated: bool
) -> MixtureTable:
    """What a run of `tokens` takes of each part; without a number, of the longest that keeps the weights exactly.

    Parts without tokens are left out, as training would leave them out. YalmError if the caps do not allow so many.
    """
    parts = [part for part in parts if has.get(part.name, 0) > 0]
    if not parts:
        raise YalmError("no part of the corpus has a document left; look at the report, and loosen the rules")
    weights = sum(part.weight for part in parts)
    if tokens is None:
        tokens = math.floor(min(has[part.name] * part.max_epochs * weights / part.weight for part in parts))
    mixture = samples.Mixture(
        [samples.PartSettings(name=p.name, path=p.name, weight=p.weight, max_epochs=p.max_epochs) for p in parts],
        [has[part.name] for part in parts],
        sequence_length=1,
    )
    return MixtureTable(
        tokens,
        estimated,
        tuple(
            PartShare(
                name=part.name,
                weight_percent=100 * part.weight / weights,
                has=has[part.name],
                needs=round(tokens * part.weight / weights),
                takes=report.tokens,
                share_percent=100 * report.share,
                epochs=report.epochs,
                max_epochs=part.max_epochs,
            )
            for part, report in zip(parts, mixture.report(tokens), strict=True)
        ),
    )


def estimated_tokens(
    documents: Path, parts: Iterable[PartSettings], size: Mapping[str, int], tokenizer: Tokenizer
) -> dict[str, int]:
    """Tokens of each part, from its bytes of text `size` and the bytes a token has in its first documents."""
    counts = {}
    for part in parts:
        folder = documents / part.name / SPLITS[0]
        if not folder.is_dir():
            continue
        texts: list[str] = []
        sampled = 0
        for raw in (raw for file in find_files([folder]) for raw in read_raw(file)):
            texts.append(raw.text())
            sampled += len(texts[-1].encode())
            if sampled >= _SAMPLE_BYTES:
                break
        tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(texts))
        counts[part.name] = round(size[part.name] * tokens / sampled)
    return counts


def train_on_corpus(task: Task) -> dict[str, Any]:
    """Task: a tokenizer trained on the documents of all parts, each by its weight."""
    settings = TokensSettings.parse(task["settings"], "tokens")
    documents, total = Path(task["documents"]), sum(task["weights"].values())
    texts = (
        text
        for part, weight in task["weights"].items()
        if (folder := documents / part / SPLITS[0]).is_dir()
        for text in _first_bytes(folder, int(settings.sample_bytes * weight / total))
    )
    train_tokenizer(
        texts,
        Path(task["folder"], TOKENIZER),
        vocab_size=settings.vocab_size,
        model_type=settings.model_type,
        sample_bytes=settings.sample_bytes,
    )
    return {"files": [TOKENIZER], "counts": {}}


def _first_bytes(folder: Path, size: int) -> Iterable[str]:
    """Texts of a folder until they have `size` bytes."""
    for text in read_texts([folder]):
        yield text
        size -= len(text.encode())
        if size <= 0:
            return


def build_tokens(
    documents: Path, output: Path, parts: Sequence[PartSettings], tokenizer: Tokenizer, workers: int
) -> dict[str, int]:
    """Token folders `output/PART/SPLIT` of all parts, and `output/data.toml`, what a training run says to use them.

    Returns the tokens of each part to train on. A folder that is built already is read through, not built again.
    """
    has: dict[str, int] = {}
    data: dict[str, list[dict[str, Any]]] = {"parts": [], "validation": []}
    for part in parts:
        for split, key in zip(SPLITS, data, strict=True):
            source, target = documents / part.name / split, output / part.name / split
            if not source.is_dir():
                continue
            if (target / TOKENIZER).exists() and file_sha256(target / TOKENIZER) != tokenizer.sha256:
                shutil.rmtree(target)  # of other settings
            folder = build_shards([source], tokenizer, target, workers=workers, language=part.language)
            entry = {"name": part.name, "path": str(target), "weight": part.weight, "max_epochs": part.max_epochs}
            data[key].append(entry | ({"language": part.language} if part.language else {}))
            if split == SPLITS[0]:
                has[part.name] = folder.manifest.tokens
    write_text(output / SNIPPET, tomli_w.dumps({"data": data}))
    return has
