"""News: each layout as its collectors write it; a round trip through CSV; injected damage."""

import bz2
import csv
import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources import news
from yalm.corpus.sources.news import News

Layout = Literal["lenta", "ria", "buriy", "ods"]
LENTA = ["url", "title", "text", "topic", "tags", "date"]
BURIY = ["timestamp", "url", "edition", "topics", "title", "text"]
# Lines end with a comma, quotes inside of fields have a backslash.
ODS = (
    "timestamp,url,edition,topics,authors,title,text,fb,vk\n"
    '2008-09-24 10:00:00,https://www.interfax.ru/russia/33995,-,В России,-,"Выплаты по \\"Законам\\"",'
    '"Москва, 24 сентября.\\nПравительство, как \\"сказано\\"",-,3,\n'
).encode()
COMPRESS = {".gz": gzip.compress, ".bz2": lambda data: bz2.compress(data, 1), ".csv": bytes}


def read(file: Path, layout: Layout) -> list[Document | Reject]:
    sizes: list[int] = []
    items = list(News(paths=(str(file),), layout=layout).read(file, sizes.append))
    assert sum(sizes) == file.stat().st_size
    return items


def table(*rows: list[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    return out.getvalue().encode()


def write(file: Path, data: bytes) -> Path:
    file.write_bytes(COMPRESS[file.suffix](data))
    return file


def archive(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.csv")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return out.getvalue()


@pytest.mark.parametrize("ending", [".csv.bz2", ".csv.gz", ".csv"])
def test_lenta(tmp_path: Path, ending: str) -> None:
    url = "https://lenta.ru/news/1914/09/16/hungarnn/"
    file = write(
        tmp_path / f"lenta-ru-news{ending}",
        table(LENTA, [url, "Бои", "Бои у\n\n«Сопоцкина»", "Россия", "Все", "1914/09/16"]),
    )
    meta = {"topics": "Россия", "tags": "Все"}
    assert read(file, "lenta") == [
        Document("Бои у\n\n«Сопоцкина»", "lenta-ru-news:2", "lenta.ru", "ru", url, "1914-09-16", meta)
    ]


def test_lenta_without_dates(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv.gz", table(LENTA[:-1], ["", "Заголовок", "Текст", "", ""]))
    assert read(file, "lenta") == [Document("Заголовок\nТекст", "a:2", "", "ru")]


def test_ria(tmp_path: Path) -> None:
    text = "<p><strong>&amp;ndash; РИА&amp;nbsp;Новости.</strong> a &amp;lt; &amp;quot;да&amp;quot;</p>\n<p>Два</p>"
    rows = [json.dumps({"title": "Один", "text": text}), "{", json.dumps({"title": "Пусто", "text": "<p> </p>"})]
    rows += [json.dumps({"title": "Много", "text": "<b>" * 9999}), "[1]"]
    file = write(tmp_path / "ria.json.gz", "\n".join(rows).encode())
    first, *rest = read(file, "ria")
    assert isinstance(first, Document)
    assert first.text.split("\n") == ["Один", '– РИА Новости. a < "да"', "", "Два"]
    assert first[1:5] == ("ria:1", "ria.ru", "ru", "")
    assert [item.reason for item in rest] == ["not JSON", "no text", "too many tags", "no JSON object"]  # type: ignore[union-attr]
    assert [item.broken for item in rest] == [True, False, True, True]  # type: ignore[union-attr]


def test_buriy(tmp_path: Path) -> None:
    rows = table(BURIY, ["2018-12-31 23:59:00", "https://www.vesti.ru/doc.html?id=3", "-", "Экономика", "З", "Т"])
    other = table(BURIY, ["2018-12-31", "", "Ведомости", "", "З", "Т"])
    members = ("news/a.csv", rows), ("news/readme.txt", b"title,text\n1,2\n"), ("news/b.csv", other)
    file = write(tmp_path / "news-articles-2018.tar.bz2", archive(*members))
    name = "news-articles-2018/news"
    url = "https://www.vesti.ru/doc.html?id=3"
    assert read(file, "buriy") == [
        Document("З\nТ", f"{name}/a.csv:2", "vesti.ru", "ru", url, "2018-12-31T23:59:00", {"topics": "Экономика"}),
        Document("З\nТ", f"{name}/b.csv:2", "Ведомости", "ru", "", "2018-12-31", {"edition": "Ведомости"}),
    ]


def test_ods(tmp_path: Path) -> None:
    assert read(write(tmp_path / "interfax.csv.gz", ODS), "ods") == [
        Document(
            'Выплаты по "Законам"\nМосква, 24 сентября.\nПравительство, как "сказано"',
            "interfax:2",
            "interfax.ru",
            "ru",
            "https://www.interfax.ru/russia/33995",
            "2008-09-24T10:00:00",
            {"topics": "В России"},
        )
    ]


_FIELD = st.text(st.sampled_from('а,"\n\r;\\x \x00'), max_size=12)


@given(st.lists(st.tuples(_FIELD, _FIELD), max_size=5), st.integers(2, 30))
def test_what_csv_wrote_is_read_also_line_piece_by_piece(
    tmp_path_factory: pytest.TempPathFactory, fields: list[tuple[str, str]], piece: int
) -> None:
    rows = [["б" + tags, "т" + text] for tags, text in fields]
    file = tmp_path_factory.mktemp("news") / "a.csv"
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL).writerows([["", tags, text] for tags, text in rows])
    file.write_bytes(b"title,tags,text\n" + out.getvalue().encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(news, "_LINE_LIMIT", 100)
        items = read(file, "lenta")
    assert [[item.meta["tags"], item.text] for item in items if isinstance(item, Document)] == rows


def test_broken_rows_are_rejected_and_reading_goes_on(tmp_path: Path) -> None:
    good = [["", f"З{number}", "Т", "", "", "2019/01/02"] for number in range(4)]
    rows = [table(row) for row in good]
    damage = [b'"","a"b,"c"\n', b"too,few\n", table(["", "", " ", "", "", ""]), b"\n\n"]
    file = write(tmp_path / "a.csv", table(LENTA) + b"".join(map(b"".join, zip(rows, damage, strict=True))))
    items = read(file, "lenta")
    assert [item.text for item in items if isinstance(item, Document)] == ["З0\nТ", "З1\nТ", "З2\nТ", "З3\nТ"]
    rejects = [item for item in items if isinstance(item, Reject)]
    assert [(item.where, item.reason, item.broken) for item in rejects] == [
        (f"{file}:3", "broken CSV", True),
        (f"{file}:5", "2 fields of 6", True),
        (f"{file}:7", "no text", False),
    ]


def test_a_quote_that_never_closes_costs_no_more_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "_ROW_LIMIT", 1000)
    tail = [table(["", f"З{number}", "Т", "", "", ""]) for number in range(500)]
    file = write(tmp_path / "a.csv", table(LENTA) + b'"open\n' + b"".join(tail))
    reject, *items = read(file, "lenta")
    assert isinstance(reject, Reject)
    assert (reject.where, reject.reason) == (f"{file}:2", "broken CSV")
    assert len(items) > 400
    assert all(isinstance(item, Document) for item in items)


def test_no_table_at_all(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", b"a,b\n1,2\n")
    (reject,) = News(paths=(str(file),), layout="lenta").read(file, lambda size: None)
    assert reject == Reject(str(file), "no columns title and text", "a,b")


@pytest.mark.parametrize("layout", ["lenta", "buriy"])
def test_a_cut_archive_keeps_what_stands_before_the_cut(tmp_path: Path, layout: Layout) -> None:
    rows = table(LENTA, *(["", f"З{number}", f"Т{number**5}", "", "", ""] for number in range(20_000)))
    file = tmp_path / ("a.csv.bz2" if layout == "lenta" else "a.tar.bz2")
    write(file, rows if layout == "lenta" else archive(("a.csv", rows), ("b.csv", rows)))
    data = file.read_bytes()
    whole = len(read(file, layout))
    file.write_bytes(data[: len(data) * 3 // 4])
    *documents, last = read(file, layout)
    assert whole // 2 < len(documents) < whole
    assert all(isinstance(item, Document) for item in documents)
    assert last == Reject(str(file) if layout == "lenta" else f"{file}:b.csv", "compressed data ends early")


def test_no_tar(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tar.gz", b"no tar" * 1000)
    (reject,) = News(paths=(str(file),), layout="buriy").read(file, lambda size: None)
    assert isinstance(reject, Reject)
    assert reject[:2] == (str(file), "broken tar")
