"""Tables (Parquet, Arrow, CSV) as they lie in dataset folders; damage never ends in anything but rejects."""

import csv
import gzip
import random
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.parquet import HuggingFace, Parquet, csv_rows
from yalm.errors import YalmError

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1, max_size=20).filter(
    lambda text: not text.isspace()
)
rows = st.lists(st.fixed_dictionaries({"text": texts, "id": texts, "url": texts, "more": texts}), min_size=1)


def write(file: Path, records: list[dict[str, Any]]) -> Path:
    """A file of the format its name says; `.stream.arrow` is the stream format of Arrow, `.arrow` its file format."""
    if ".csv" in file.name:
        with (gzip.open if file.name.endswith(".gz") else open)(file, "wt", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
        return file
    table = pa.Table.from_pylist(records)
    if file.suffix == ".parquet":
        pq.write_table(table, file, row_group_size=3)
    else:
        make = ipc.new_stream if ".stream" in file.name else ipc.new_file
        with make(file, table.schema) as sink:
            sink.write_table(table, max_chunksize=3)
    return file


def read(file: Path, **settings: Any) -> list[Document | Reject]:
    source = HuggingFace(paths=(str(file),), **settings)
    sizes: list[int] = []
    found = [item for path in source.files() for item in source.read(path, sizes.append)]
    if file.is_file():
        assert sum(sizes) <= file.stat().st_size
    return found


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow", "a.csv", "a.csv.gz"])
@given(rows)
def test_what_was_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, name: str, records: list[dict[str, str]]
) -> None:
    file = write(tmp_path_factory.mktemp("tables") / name, records)
    assert read(file, keep_meta=True) == [
        Document(row["text"], row["id"], "", url=row["url"], meta={"more": row["more"]}) for row in records
    ]
    assert read(file) == [Document(row["text"], row["id"], "", url=row["url"]) for row in records]


def test_values_of_many_types(tmp_path: Path) -> None:
    table = pa.table(
        {
            "text": [["раз", "два"], None, ["три"]],
            "id": [1, 2, 3],
            "date": pa.array([1563105600_000000001, 0, None], pa.timestamp("ns")),
            "day": [date(2019, 7, 14)] * 3,
            "when": [datetime(2019, 7, 14, 12)] * 3,
            "raw": [b"\xff"] * 3,
            "nested": [{"url": "u"}] * 3,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    meta = {"day": "2019-07-14", "when": "2019-07-14T12:00:00", "raw": "\ufffd", "nested": {"url": "u"}}
    source = Parquet(paths=(str(tmp_path),), url_field="nested.url", keep_meta=True)
    assert list(source.read(tmp_path / "a.parquet", lambda size: None)) == [
        Document("раз\n\nдва", "1", "", url="u", time="2019-07-14T12:00:00", meta=meta),
        Reject(f"{tmp_path / 'a.parquet'}:2", "no text", "text, id, date, day, when, raw, nested"),
        Document("три", "3", "", url="u", meta=meta),
    ]


def test_a_row_that_is_no_utf_8_is_rejected_alone(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"\xff", b"three"], pa.binary())
    pq.write_table(pa.table({"text": raw.view(pa.string())}), tmp_path / "a.parquet")
    found = read(tmp_path / "a.parquet")
    assert [getattr(item, "text", None) or getattr(item, "reason", None) for item in found] == [
        "one",
        "unreadable value",
        "three",
    ]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow", "a.csv", "a.csv.gz"])
def test_a_file_without_the_column_of_texts_says_so(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [{"body": "x"}])
    assert {item.reason for item in read(file) if isinstance(item, Reject)} <= {"no text column", "no text"}
    assert read(file, text_field="body") == [Document("x", read(file, text_field="body")[0].id, "")]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.stream.arrow", "a.csv.gz"])
def test_damage_ends_in_rejects(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    data = write(tmp_path / name, [{"text": f"text {n}", "id": str(n)} for n in range(20)]).read_bytes()
    reasons = set()
    for trial in range(150):
        damaged = bytearray(data[: rng.randrange(len(data))] if trial % 2 else data)
        for _ in range(3):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        reasons |= {item.reason for item in read(tmp_path / name) if isinstance(item, Reject)}
    assert reasons & {"broken Parquet", "broken Arrow data", "broken compressed data"}


@pytest.mark.parametrize("name", ["a.arrow", "a.stream.arrow"])
def test_batches_before_a_cut_are_kept(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [{"text": str(n) * 1000} for n in range(9)])
    file.write_bytes(file.read_bytes()[:-4000])
    found = read(file)
    assert [item.text[0] for item in found if isinstance(item, Document)][:3] == ["0", "1", "2"]
    assert isinstance(found[-1], Reject)
    assert found[-1].reason == "broken Arrow data"


@pytest.mark.parametrize("name", ["a.parquet", "a.stream.arrow", "a.csv"])
def test_the_first_document_comes_before_the_file_was_read(tmp_path: Path, name: str) -> None:
    rng = random.Random(0)
    file = write(tmp_path / name, [{"text": rng.randbytes(1000).hex()} for _ in range(1000)])
    sizes: list[int] = []
    source = HuggingFace(paths=(str(file),))
    assert isinstance(next(source.read(file, sizes.append)), Document)
    assert sum(sizes) < file.stat().st_size / 2


def test_csv_rows_that_are_too_long_too_short_and_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('\ufefftext,id\n"раз, два",1,more\nодин\n'.encode() + b'"\xff",3\n')
    assert [row for _, row in csv_rows(file, lambda size: None)] == [
        {"text": "раз, два", "id": "1"},
        {"text": "один", "id": None},
        {"text": "\ufffd", "id": "3"},
    ]


def test_dataset_folders_and_their_splits(tmp_path: Path) -> None:
    for name in (
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
        "ru/train/data-00000-of-00001.arrow",
        "ru/train/cache-1.arrow",
        ".cache/train.parquet",
        "trainer.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [{"text": name}])
    for name in ("dataset_info.json", "ru/train/state.json", "loader.py", "README.md"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "train.jsonl").write_text('{"text": "lines"}\n')
    train = {"data/train-00000-of-00001.parquet", "ru/train/data-00000-of-00001.arrow", "lines"}
    assert {item.text for item in read(tmp_path, split="train") if isinstance(item, Document)} == train
    everything = {item.text for item in read(tmp_path) if isinstance(item, Document)}
    assert everything == train | {"data/test-00000-of-00001.parquet", "trainer.csv"}
    with pytest.raises(YalmError, match="no file of the split 'dev'"):
        read(tmp_path, split="dev")
    with pytest.raises(YalmError, match="cannot read"):
        list(Parquet(paths=("none.parquet",)).read(tmp_path / "none.parquet", lambda size: None))
