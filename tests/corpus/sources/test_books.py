"""Books: the parts of a book are the book; memory is one part; damage loses nothing before it."""

import gzip
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.books import Books

_TEXT = st.text(st.sampled_from("ав \n.1fb2"), max_size=120)


def read(file: Path, max_characters: int = 1_000_000) -> list[Document | Reject]:
    return list(Books(paths=(str(file),), max_characters=max_characters).read(file, lambda size: None))


def texts(items: list[Document | Reject]) -> list[str]:
    return [item.text for item in items if isinstance(item, Document)]


def write(file: Path, text: str) -> Path:
    file.write_bytes(gzip.compress(text.encode()) if file.name.endswith(".gz") else text.encode())
    return file


@given(st.lists(_TEXT, max_size=5), st.integers(1, 50))
def test_joined_parts_are_the_book(tmp_path_factory: pytest.TempPathFactory, books: list[str], limit: int) -> None:
    file = tmp_path_factory.mktemp("books") / "librusec_fb2.plain"
    books = ["б" + book for book in books]
    write(file, "".join(f"{number}.fb2 {book}\n" for number, book in enumerate(books)))
    parts: dict[str, list[str]] = {}
    for item in read(file, limit):
        assert isinstance(item, Document)
        assert len(item.text) <= limit
        assert item.meta["part"] == len(parts.setdefault(item.meta["book"], [])) + 1
        parts[item.meta["book"]].append(item.text)
    for number, book in enumerate(books):
        joined = "".join(parts[str(number)])
        blanks = str.maketrans("", "", " \n")  # parts of blanks alone are left out
        assert joined.translate(blanks) == book.translate(blanks)
        if limit >= len(book) + 1:
            assert parts[str(number)] == [f"{book}\n"]


def test_parts_end_with_paragraphs_words_or_where_they_must(tmp_path: Path) -> None:
    file = write(tmp_path / "a.plain", "7.fb2 раз два\nтри\nчетыре пять шесть\nсемьвосемьдевять")
    assert texts(read(file, 14)) == ["раз два\nтри\n", "четыре пять ", "шесть\n", "семьвосемьдевя", "ть"]


def test_books_are_found_at_the_start_of_lines_only(tmp_path: Path) -> None:
    file = write(tmp_path / "a.plain.gz", "\ufeffпролог\n12.fb2 Один\r\nсм. 13.fb2 там же\n14.fb2 Два\n15.fb2  \n")
    assert read(file) == [
        Reject(f"{file}:start", "text before the first book", "пролог"),
        Document("Один\nсм. 13.fb2 там же\n", "12:1", "librusec", meta={"book": "12", "part": 1}),
        Document("Два\n", "14:1", "librusec", meta={"book": "14", "part": 1}),
        Reject(f"{file}:15", "no text", broken=False),
    ]


def test_a_line_without_end_is_read_in_bounded_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.plain"
    with open(file, "wb") as out:
        out.write(b"1.fb2 ")
        for _ in range(200):
            out.write(b"ab cd\t" * 20_000)
    source = Books(paths=(str(file),), max_characters=100_000)
    tracemalloc.start()
    size = sum(len(item.text) for item in source.read(file, lambda size: None) if isinstance(item, Document))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size == 200 * 120_000
    assert peak < 4_000_000


def test_a_cut_file_keeps_the_books_before_the_cut(tmp_path: Path) -> None:
    numbers = "".join(f"{number} " for number in range(50_000))
    file = write(tmp_path / "a.plain.gz", f"1.fb2 Один\n2.fb2 Два\n3.fb2 {numbers}\n")
    file.write_bytes(file.read_bytes()[:-5000])
    items = read(file, 10_000)
    assert texts(items)[:2] == ["Один\n", "Два\n"]
    assert "".join(texts(items)[2:]) == numbers[: sum(map(len, texts(items)[2:]))] != ""
    assert items[-1] == Reject(f"{file}:3", "compressed data ends early")
