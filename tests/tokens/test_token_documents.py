"""Documents out of files: every compression, broken and truncated input."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
import zstandard

from yalm.errors import YalmError
from yalm.tokens.documents import find_files, read_raw, read_texts

TEXTS = ["первый\nдокумент", "second", "третий " * 1000]
LINES = b"".join(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n" for text in TEXTS)


def frames(name: str) -> bytes:
    """LINES in two frames or members, cut in the middle of a line."""
    compress = zstandard.compress if name.endswith(".zst") else gzip.compress
    return LINES if name.endswith(".jsonl") else compress(LINES[:50]) + compress(LINES[50:])


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(frames(name))
    assert list(read_texts([tmp_path / name])) == TEXTS
    sizes: list[int] = []
    digest = hashlib.sha256()
    assert [document.line for document in read_raw(tmp_path / name, sizes.append, digest)] == [1, 2, 3]
    assert sum(sizes) == len(frames(name))
    assert digest.digest() == hashlib.sha256(frames(name)).digest()


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz"])
@pytest.mark.parametrize("fault", ["cut", "broken"])
def test_damaged_compression(tmp_path: Path, name: str, fault: str) -> None:
    data = frames(name)
    (tmp_path / name).write_bytes(data[:-5] if fault == "cut" else b"junk" + data)
    with pytest.raises(YalmError, match=name):
        list(read_texts([tmp_path / name]))


def test_folders_text_files_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "one.txt").write_bytes("\ufeffцелый\n\nфайл\n".encode())
    (tmp_path / "a.jsonl").write_bytes(b'\n{"body": ["x", "y"]}\n\n{"body": "last line without end"}')
    (tmp_path / "ignored.bin").write_bytes(b"")
    assert [file.name for file in find_files([tmp_path])] == ["a.jsonl", "one.txt"]
    assert list(read_texts([tmp_path / "b"])) == ["целый\n\nфайл\n"]
    assert list(read_texts([tmp_path / "a.jsonl"], "body")) == ["x\n\ny", "last line without end"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": ', "a.jsonl:2: not valid JSON"),
        (b"\xff\xfe", "a.jsonl:2: not valid JSON"),
        (b"[" * 100_000, "a.jsonl:2: not valid JSON"),
        (b'{"body": "x"}', "a.jsonl:2: no text in field 'text' .there: body"),
        (b'{"text": 3}', "a.jsonl:2: no text"),
        (b"[1]", "a.jsonl:2: no text in field 'text' .there: no object but list"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(YalmError, match=message):
        list(read_texts([tmp_path / "a.jsonl"]))


def test_bad_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes(b"\xe9")
    (tmp_path / "empty").mkdir()
    for inputs, message in (
        ([], "no input"),
        ([tmp_path / "missing.txt"], "no such file"),
        ([tmp_path / "a.csv"], "not a kind"),
        ([tmp_path / "empty"], "no documents"),
        ([tmp_path / "latin.txt"], "not UTF-8 at byte 0"),
    ):
        with pytest.raises(YalmError, match=message):
            list(read_texts(inputs))
