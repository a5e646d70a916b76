"""JSON lines: what is written in a layout is read back; damage costs its own record and no other."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject, to_table
from yalm.corpus.sources.jsonl import JsonLines
from yalm.corpus.sources.records import iso_time, language_code
from yalm.errors import YalmError

texts = st.text(min_size=1, max_size=30).filter(lambda text: not text.isspace())
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def read(file: Path, **settings: Any) -> list[Document | Reject]:
    source = JsonLines.parse({"paths": (str(file),), **settings}, "test")
    sizes: list[int] = []
    found = [item for path in source.files() for item in source.read(path, sizes.append)]
    assert sum(sizes) == file.stat().st_size
    return found


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


@given(st.lists(st.fixed_dictionaries({"text": texts, "id": texts, "url": texts, "source": texts, "more": texts})))
@pytest.mark.parametrize("ending", COMPRESS)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, ending: str, records: list[dict[str, str]]
) -> None:
    file = tmp_path_factory.mktemp("round") / f"a.jsonl{ending}"
    file.write_bytes(COMPRESS[ending](lines(*records[:2])) + COMPRESS[ending](lines(*records[2:])))
    assert read(file, keep_meta=True) == [
        Document(row["text"], row["id"], row["source"], url=row["url"], meta={"more": row["more"]}) for row in records
    ]


def test_what_a_record_lacks_is_empty_and_its_id_is_its_line(tmp_path: Path) -> None:
    file = tmp_path / "part.01.jsonl"
    file.write_bytes(b"\n" + lines({"text": ["раз", "два"], "id": None, "date": 0, "language": True, "x": 1}))
    assert read(file) == [Document("раз\n\nдва", "part.01:2", "", time="1970-01-01T00:00:00Z")]


LAYOUTS = {
    "ccnet": {"raw_content": "т", "digest": "i", "url": "u", "date_download": "2019-07-14T00:00:00Z", "language": "ru"},
    "fineweb": {"text": "т", "id": "i", "url": "u", "date": "2019-07-14T00:00:00Z", "language": "rus", "dump": "CC"},
    "dolma": {"id": "i", "text": "т", "source": "s", "created": "2019-07-14T00:00:00.000Z", "metadata": {"url": "u"}},
    "c4": {"text": "т", "timestamp": "2019-07-14T00:00:00Z", "url": "u"},
    "oscar": {
        "content": "т",
        "warc_headers": {
            "warc-record-id": "i",
            "warc-target-uri": "u",
            "warc-date": "2019-07-14T00:00:00Z",
        },
        "metadata": {"identification": {"label": "ru", "prob": 0.9}},
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_known_collections(tmp_path: Path, layout: str) -> None:
    file = tmp_path / "a.json.gz"
    file.write_bytes(gzip.compress(lines(LAYOUTS[layout])))
    assert read(file, layout=layout) == [
        Document(
            "т",
            "a:1" if layout == "c4" else "i",
            "s" if layout == "dolma" else "",
            "" if layout in ("dolma", "c4") else "ru",
            "u",
            "2019-07-14T00:00:00Z",
        )
    ]


def test_a_name_changes_one_field_of_a_layout_and_an_empty_name_none(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines({"body": {"t": "текст"}, "id": "7", "url": "u"}))
    assert read(file, text_field="body.t", url_field="") == [Document("текст", "7", "")]


def test_broken_records_are_rejected_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    good = lines({"text": "да"})
    bad = [b'{"text": "cut', b"[1]\n", b'{"text": 5}\n', b'{"text": " \\n"}\n', b'{"text": "\xff"}\n', b"[" * 100_000]
    file.write_bytes(b"".join(good + line.removesuffix(b"\n") + b"\n" for line in bad) + good)
    found = read(file)
    rejects = [item for item in found if isinstance(item, Reject)]
    assert [item.text for item in found if isinstance(item, Document)] == ["да"] * 7
    assert [(item.where, item.reason) for item in rejects] == [
        (f"{file}:{2 * number}", reason)
        for number, reason in enumerate(
            ["not JSON", "no JSON object", "no text", "no text", "not JSON", "not JSON"], start=1
        )
    ]
    assert rejects[0].sample == '{"text": "cut'


def test_halves_of_surrogate_pairs_nul_and_nan_come_through(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "a\\ud83d", "n": "\\udc00", "x": NaN}\n{"text": "b\\u0000", "n": [1e999, {"k": 1.5}]}\n'
    )
    found = read(file, keep_meta=True)
    assert found == [
        Document("a\ud83d", "a:1", "", meta={"n": "\ufffd\ufffd\ufffd", "x": None}),
        Document("b\0", "a:2", "", meta={"n": [None, {"k": 1.5}]}),
    ]
    table = to_table([item for item in found if isinstance(item, Document)], "web", 0)
    assert table["text"].to_pylist() == ["a\ufffd\ufffd\ufffd", "b\0"]


def test_a_cut_file_ends_in_a_reject(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.zst"
    whole = zstandard.compress(lines({"text": "первый"}))
    file.write_bytes(whole + whole[:-3])
    *documents, last = read(file)
    assert [document.text for document in documents if isinstance(document, Document)][:1] == ["первый"]
    assert isinstance(last, Reject)
    assert last.reason == "compressed data ends early"


def test_the_first_document_comes_before_the_file_was_read(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(lines(*({"text": "x" * 1000} for _ in range(2000))))
    sizes: list[int] = []
    assert isinstance(next(JsonLines(paths=(str(file),)).read(file, sizes.append)), Document)
    assert sum(sizes) < file.stat().st_size / 2


def test_a_wrong_layout_is_a_persons_error() -> None:
    with pytest.raises(YalmError, match="layout"):
        JsonLines.parse({"paths": ("a",), "layout": "ccnett"}, "test")


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("2019", "2019"),
        ("2019-07", "2019-07"),
        (" 2019-07-14 ", "2019-07-14"),
        ("2019-07-14 12:00:00", "2019-07-14T12:00:00"),
        ("2019-07-14T15:00:00+03:00", "2019-07-14T12:00:00Z"),
        (1563105600, "2019-07-14T12:00:00Z"),
        (1563105600000, "2019-07-14T12:00:00Z"),
        ("yesterday", ""),
        (float("nan"), ""),
        (10**30, ""),
        (True, ""),
        (None, ""),
        ("0001-01-01T00:00:00+14:00", ""),
    ],
)
def test_times(value: Any, time: str) -> None:
    assert iso_time(value) == time


def test_names_of_languages() -> None:
    names = ["ru", "RU-ru", "rus", "rus_Cyrl", "Russian", "eng", "en_US", "uk", "zho", "", "1a", "русский"]
    assert [language_code(name) for name in names] == ["ru"] * 5 + ["en"] * 2 + ["uk"] + [""] * 4
