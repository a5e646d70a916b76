"""The Pile: `train/00.jsonl.zst` to `29.jsonl.zst`, `val.jsonl.zst`, `test.jsonl.zst`, or shards of lm_dataformat.

A line is `{"text": …, "meta": {"pile_set_name": …}}`; the name of the set becomes the document's source. Its language
is left open: most sets are English, but not all of their documents are (EuroParl, Github, OpenSubtitles).
Layout: Gao et al. 2020, https://arxiv.org/abs/2101.00027; names of the sets as they stand in its files.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import field_validator

from yalm.config import nearest
from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.records import json_rows, text_of
from yalm.corpus.sources.source import Source
from yalm.streams import sample, stem

SETS = (
    "ArXiv",
    "BookCorpus2",
    "Books3",
    "DM Mathematics",
    "Enron Emails",
    "EuroParl",
    "FreeLaw",
    "Github",
    "Gutenberg (PG-19)",
    "HackerNews",
    "NIH ExPorter",
    "OpenSubtitles",
    "OpenWebText2",
    "PhilPapers",
    "Pile-CC",
    "PubMed Abstracts",
    "PubMed Central",
    "StackExchange",
    "USPTO Backgrounds",
    "Ubuntu IRC",
    "Wikipedia (en)",
    "YoutubeSubtitles",
)


class Pile(Source):
    """Files of the Pile. `sets` names those to read, none of them meaning all, also lines that name no set."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl.zst", ".jsonl.gz", ".jsonl")

    kind: Literal["pile"] = "pile"
    sets: tuple[str, ...] = ()

    @field_validator("sets")
    @classmethod
    def _known(cls, sets: tuple[str, ...]) -> tuple[str, ...]:
        for name in sets:
            if name not in SETS:
                raise ValueError(f"the Pile has no set {name!r}{nearest(name, SETS)}")
        return sets

    def read(self, file: Path, advance: Callable[[int], None]) -> Iterator[Document | Reject]:
        for number, row in json_rows(file, advance):
            if isinstance(row, Reject):
                yield row
                continue
            meta = row.get("meta")
            name = meta.get("pile_set_name") if isinstance(meta, dict) else None
            source = name if isinstance(name, str) else ""
            if self.sets and source not in self.sets:
                continue
            text = text_of(row.get("text"))
            if text is None:
                yield Reject(f"{file}:{number}", "no text", sample(", ".join(row)))
            else:
                yield Document(text, f"{stem(file)}:{number}", source)
