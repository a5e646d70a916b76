"""Files of prompts: every field kept, in order, whatever kills the run on its way."""

import json
from pathlib import Path
from typing import Any

import pytest

from processes import is_killed
from support import complete
from yalm.errors import YalmError
from yalm.inference import files
from yalm.inference.files import complete_file
from yalm.inference.language_model import LanguageModel

RECORDS: list[dict[str, Any]] = [
    {"prefix": f"Повар {number}", "id": number, "note": ["№", "\ud800", None]} for number in range(12)
]
OPTIONS: dict[str, Any] = {"max_tokens": 8, "seed": 4}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text("\n\n".join(map(json.dumps, RECORDS)) + "\r\n\n")
    return path


def run(lm: LanguageModel, source: Path, output: Path, batch_size: int = 3, **options: Any) -> list[files.Done]:
    return list(complete_file(lm, source, output, batch_size=batch_size, identity="tiny", **OPTIONS | options))


def read(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_bytes().splitlines()]


def test_fields_and_order_are_kept(lm: LanguageModel, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.jsonl"
    states = run(lm, source, output)
    expected = lm.generate([record["prefix"] for record in RECORDS], **OPTIONS)
    assert read(output) == [record | {"suffix": one.text} for record, one in zip(RECORDS, expected, strict=True)]
    assert (states[0].records, states[-1].records, states[-1].total) == (0, len(RECORDS), len(RECORDS))
    assert states[-1].tokens == sum(len(one.ids) for one in expected)
    assert [path.name for path in output.parent.iterdir()] == ["out.jsonl"]


@pytest.mark.parametrize("written", [0, 1, 5, len(RECORDS)])
def test_a_torn_run_is_continued(lm: LanguageModel, source: Path, tmp_path: Path, written: int) -> None:
    """Records that stand are not made again; a torn last line is."""
    whole = tmp_path / "whole.jsonl"
    run(lm, source, whole)
    output, partial = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.partial"
    first = complete_file(lm, source, output, batch_size=2, identity="tiny", **OPTIONS)
    next(first)
    first.close()
    header = partial.read_bytes()
    assert header.count(b"\n") == 1
    lines = [json.dumps(record | {"kept": True}).encode() + b"\n" for record in read(whole)]
    partial.write_bytes(header + b"".join(lines[:written]) + (lines[written][:9] if written < len(lines) else b""))
    states = run(lm, source, output)
    assert states[0].records == written
    got = read(output)
    assert [record.pop("kept", False) for record in got] == [place < written for place in range(len(RECORDS))]
    assert got == read(whole)
    assert not partial.exists()


def test_killed_at_any_moment(lm: LanguageModel, folder: Path, source: Path, tmp_path: Path) -> None:
    """`kill -9` between two appends, again and again, until it gets through."""
    output, partial = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.partial"
    kills = 0
    append = "yalm.inference.files:_Partial.append"
    while is_killed(append, 6, complete, folder, source, output, batch_size=2, identity="tiny", **OPTIONS):
        kills += 1
        assert not output.exists()
        assert partial.exists()
    assert kills == 2
    expected = lm.generate([record["prefix"] for record in RECORDS], **OPTIONS)
    assert [record["suffix"] for record in read(output)] == [one.text for one in expected]


def test_a_run_is_not_continued_with_other_options(lm: LanguageModel, source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = complete_file(lm, source, output, batch_size=2, identity="tiny", **OPTIONS)
    next(first)
    next(first)
    first.close()
    with pytest.raises(YalmError, match=r"\.out\.jsonl\.partial: .* other input, model or options"):
        run(lm, source, output, seed=5)
    source.write_text(json.dumps({"prefix": "other"}))
    with pytest.raises(YalmError, match="other input"):
        run(lm, source, output)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", '{"prefix": "text"}'),
        ('{"text": "a"}', '{"prefix": "text"}'),
        ('{"prefix": 3}', '{"prefix": "text"}'),
        ('{"prefix": "' + "%" * 300 + '"}', "shorten"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_made(
    lm: LanguageModel, tmp_path: Path, line: str, message: str
) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prefix": "good"}\n' + line + "\n")
    with pytest.raises(YalmError) as error:
        run(lm, source, output)
    assert str(error.value).startswith(f"{source}:2: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [source]


def test_a_missing_file_is_one_line(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="cannot read the input"):
        run(lm, tmp_path / "none.jsonl", tmp_path / "out.jsonl")
