"""The Pile's layout: sets as sources, selection, damage."""

import json
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.pile import SETS, Pile
from yalm.errors import YalmError

texts = st.text(min_size=1, max_size=30).filter(lambda text: not text.isspace())


def write(file: Path, *records: object) -> Path:
    """As lm_dataformat flushes it: each record a frame of its own."""
    file.write_bytes(b"".join(zstandard.compress(json.dumps(record).encode() + b"\n") for record in records))
    return file


def read(file: Path, *sets: str) -> list[Document | Reject]:
    return list(Pile(paths=(str(file),), sets=sets).read(file, lambda size: None))


@given(st.lists(st.tuples(texts, st.sampled_from(SETS)), max_size=8), st.sets(st.sampled_from(SETS)))
def test_what_was_written_is_read_and_sets_select(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[str, str]], sets: set[str]
) -> None:
    records = [{"text": text, "meta": {"pile_set_name": name}} for text, name in documents]
    file = write(tmp_path_factory.mktemp("pile") / "00.jsonl.zst", *records)
    assert read(file, *sets) == [
        Document(text, f"00:{line}", name)
        for line, (text, name) in enumerate(documents, start=1)
        if not sets or name in sets
    ]


def test_lines_without_a_known_set_are_documents_too(tmp_path: Path) -> None:
    records = [
        {"text": "a"},
        {"text": ["b", "c"], "meta": {"pile_set_name": "New"}},
        {"text": "d", "meta": "x"},
        {"text": "e", "meta": {"pile_set_name": 5}},
        {"meta": {}},
        "x",
    ]
    file = write(tmp_path / "val.jsonl.zst", *records)
    found = read(file)
    assert found[:4] == [
        Document("a", "val:1", ""),
        Document("b\n\nc", "val:2", "New"),
        Document("d", "val:3", ""),
        Document("e", "val:4", ""),
    ]
    assert [(item.where, item.reason) for item in found[4:] if isinstance(item, Reject)] == [
        (f"{file}:5", "no text"),
        (f"{file}:6", "no JSON object"),
    ]
    assert [item for item in read(file, "ArXiv") if isinstance(item, Document)] == []


def test_a_set_of_another_name_is_a_persons_error() -> None:
    assert len(SETS) == 22
    with pytest.raises(YalmError, match="did you mean 'Pile-CC'"):
        Pile.parse({"paths": ("a",), "sets": ("Pile CC",)}, "test")


def test_a_cut_file_loses_nothing_before_the_cut(tmp_path: Path) -> None:
    file = write(tmp_path / "00.jsonl.zst", *({"text": f"t{number}"} for number in range(50)))
    file.write_bytes(file.read_bytes()[:-5])
    *documents, last = read(file)
    assert [item.text for item in documents if isinstance(item, Document)][:49] == [f"t{n}" for n in range(49)]
    assert isinstance(last, Reject)
    assert last.reason == "compressed data ends early"
