"""Web pages: main texts out of WARC, WET and HTML files in any encoding; what others send wrong."""

import gzip
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.web import Html, Warc, Wet, main_text

STORY = "Группа учёных из университета обнаружила в горах неизвестный науке вид бабочек с синими крыльями."
NEXT = "По словам руководителя экспедиции, поиски продолжались несколько лет и ещё не закончены."
PAGE = f"""<!DOCTYPE html><html><head><title>Заголовок</title>%s
<link rel="canonical" href=" https://example.ru/story "><script>var code = "<p>скрипт</p>";</script></head><body>
<header><nav><ul><li><a href="/">Главная</a></li><li><a href="/news">Новости</a></li></ul></nav></header>
<div class="sidebar"><ul><li><a href="1">Купить слона недорого</a></li></ul></div>
<main><article><h1>Новый вид</h1><p>{STORY}</p><div class="advertisement">Реклама: скидки на всё!</div>
<p>{NEXT}</p></article></main><footer><p>© 2019 Все права защищены.</p></footer></body></html>"""
TEXT = f"Новый вид\n\n{STORY}\n\n{NEXT}"
ENCODINGS = ["utf-8", "cp1251", "koi8-r", "cp866", "mac-cyrillic", "iso8859-5"]
LABELS = {"cp1251": "windows-1251", "cp866": "ibm866", "mac-cyrillic": "x-mac-cyrillic", "iso8859-5": "iso-8859-5"}
page = (PAGE % "").encode


def record(kind: str, number: int, body: bytes, headers: str = "") -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: https://example.ru/{number}\r\n"
        f"WARC-Date: 2019-07-14T12:00:00Z\r\nWARC-Record-ID: <urn:uuid:{number}>\r\n{headers}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(number: int, body: bytes, headers: str = "Content-Type: text/html\r\n", status: str = "200 OK") -> bytes:
    http = f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + body
    return record("response", number, http, "Content-Type: application/http; msgtype=response\r\n")


def read(source: type[Warc | Wet | Html], file: Path) -> list[Document | Reject]:
    sizes: list[int] = []
    found = list(source(paths=(str(file),)).read(file, sizes.append))
    assert sum(sizes) <= file.stat().st_size
    return found


def reasons(found: list[Document | Reject]) -> dict[str, str]:
    return {item.where.rpartition(":")[2]: item.reason for item in found if isinstance(item, Reject)}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_the_main_text_of_pages_whoever_says_their_encoding(tmp_path: Path, encoding: str, ending: str) -> None:
    label = LABELS.get(encoding, encoding)
    records = [
        record("warcinfo", 0, b"software: test"),
        response(1, page(encoding, "replace"), f"Content-Type: text/html; charset={label}\r\n"),
        record("request", 2, b"GET / HTTP/1.1\r\n\r\n"),
        response(3, (PAGE % f'<meta charset="{label}">').encode(encoding, "replace")),
        response(4, page(encoding, "replace")),
        response(5, page(encoding, "replace"), "Content-Type: text/html; charset=iso-8859-1\r\n"),
    ]
    file = tmp_path / f"a.warc{ending}"
    file.write_bytes(b"".join(gzip.compress(part) if ending else part for part in records))
    assert read(Warc, file) == [
        Document(TEXT, f"urn:uuid:{number}", "", url=f"https://example.ru/{number}", time="2019-07-14T12:00:00Z")
        for number in (1, 3, 4, 5)
    ]


def test_encodings_of_the_transfer_are_undone_also_where_headers_lie(tmp_path: Path) -> None:
    data = page()
    chunked = b"%x\r\n" % len(data) + data + b"\r\n0\r\n\r\n"
    html = "Content-Type: text/html\r\n"
    parts = [
        response(1, gzip.compress(data), html + "Content-Encoding: gzip\r\n"),
        response(2, data, html + "Content-Encoding: gzip\r\n"),
        response(3, chunked, html + "Transfer-Encoding: chunked\r\n"),
        response(4, data, html + "Transfer-Encoding: chunked\r\nContent-Encoding: br\r\n"),
        response(5, b"\x1f\x8b" + b"\xff" * 50, html),
        response(6, gzip.compress(bytes(1 << 25)), html),
        response(7, data),
    ]
    (tmp_path / "a.warc").write_bytes(b"".join(parts))
    found = read(Warc, tmp_path / "a.warc")
    assert [item.id[-1] for item in found if isinstance(item, Document) and item.text == TEXT] == list("12347")
    assert reasons(found) == {"5": "broken content encoding", "6": "page too long"}


def test_what_is_no_page_is_rejected_with_its_reason(tmp_path: Path) -> None:
    parts = [
        response(1, page(), status="404 Not Found"),
        response(2, b"%PDF-1.4", "Content-Type: application/pdf\r\n"),
        response(3, b"<html><body><script>x()</script></body></html>"),
        record("response", 4, b"", "Content-Type: application/http\r\n"),
        response(5, b"<div>" * 100_000),
        response(6, bytes((1 << 24) + 1)),
        response(7, page(), "Content-Type: TEXT/HTML; charset=utf-8\r\n"),
        response(8, page())[:-600],
    ]
    file = tmp_path / "a.warc"
    file.write_bytes(b"".join(parts))
    found = read(Warc, file)
    assert [item.id for item in found if isinstance(item, Document)] == ["urn:uuid:7"]
    assert reasons(found) == {
        "1": "HTTP status not 200",
        "2": "not HTML",
        "3": "no main text",
        "4": "no HTTP response",
        "5": "page nested too deep",
        "6": "page too long",
        "8": "record ends early",
    }
    assert found[0].where == f"{file}:urn:uuid:1"  # type: ignore[union-attr]


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_archive_keeps_what_stands_before(tmp_path: Path, damage: str) -> None:
    members = [gzip.compress(response(number, page())) for number in range(1, 5)]
    data = bytearray(b"".join(members))
    last = len(data) - len(members[-1])
    if damage == "cut":
        del data[last + 100 :]
    else:
        data[last + 40 : last + 60] = b"\xff" * 20
    (tmp_path / "a.warc.gz").write_bytes(data)
    *documents, reject = read(Warc, tmp_path / "a.warc.gz")
    assert [item.text for item in documents if isinstance(item, Document)] == [TEXT] * 3
    assert isinstance(reject, Reject)
    assert reject.reason == {"cut": "compressed data ends early", "flipped": "broken compressed data"}[damage]


def test_a_record_that_is_none_ends_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.warc").write_bytes(response(1, page()) + b"XXXX" + response(2, page()))
    found = read(Warc, tmp_path / "a.warc")
    assert [getattr(item, "reason", "document") for item in found] == ["document", "broken WARC record"]


def test_random_damage_ends_in_rejects(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = b"".join(response(number, page()) for number in range(3))
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "a.warc").write_bytes(data)
        assert read(Warc, tmp_path / "a.warc")


def test_the_first_page_comes_before_the_archive_was_read(tmp_path: Path) -> None:
    file = tmp_path / "a.warc"
    file.write_bytes(response(1, page()) * 2000)
    sizes: list[int] = []
    assert isinstance(next(Warc(paths=(str(file),)).read(file, sizes.append)), Document)
    assert sum(sizes) < file.stat().st_size / 2


@given(st.lists(st.tuples(st.text(min_size=1).filter(str.strip), st.sampled_from(["rus", "eng,rus", "deu", ""]))))
def test_texts_of_wet_archives(tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str]]) -> None:
    file = tmp_path_factory.mktemp("wet") / "a.warc.wet.gz"
    parts = [record("warcinfo", 0, b"x")]
    for number, (text, languages) in enumerate(texts):
        header = f"WARC-Identified-Content-Language: {languages}\r\n" if languages else ""
        parts.append(record("conversion", number, text.encode(), f"Content-Type: text/plain\r\n{header}"))
    file.write_bytes(b"".join(map(gzip.compress, parts)))
    codes: dict[str, Any] = {"rus": "ru", "eng,rus": "en", "deu": "", "": ""}
    found = [item for item in read(Wet, file) if isinstance(item, Document)]
    assert [item.language for item in found] == [codes[languages] for _, languages in texts]
    assert [item.url for item in found] == [f"https://example.ru/{number}" for number in range(len(texts))]


def test_wet_texts_are_whole_and_empty_ones_rejected(tmp_path: Path) -> None:
    parts = [record("conversion", 1, (TEXT + "\n").encode()), record("conversion", 2, b" \n")]
    (tmp_path / "a.wet").write_bytes(b"".join(parts))
    found = read(Wet, tmp_path / "a.wet")
    assert found[0] == Document(TEXT + "\n", "urn:uuid:1", "", url="https://example.ru/1", time="2019-07-14T12:00:00Z")
    assert reasons(found) == {"2": "no text"}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_folders_of_pages(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "one.html").write_bytes(page(encoding, "replace"))
    (tmp_path / "two.htm.gz").write_bytes(gzip.compress(f"<p>{STORY}".encode(encoding))[:-1])
    (tmp_path / "void.htm").write_bytes(b"")
    found = [item for file in Html(paths=(str(tmp_path),)).files() for item in read(Html, file)]
    assert found == [
        Document(TEXT, "one", "", url="https://example.ru/story"),
        Reject(str(tmp_path / "two.htm.gz"), "compressed data ends early"),
        Reject(str(tmp_path / "void.htm"), "no main text", broken=False),
    ]


def test_nesting_counts_only_what_is_open() -> None:
    wide = "".join(f"<div><p>Слово {number}<br><ul><li>пункт<li>пункт</ul></div>" for number in range(3000))
    assert isinstance(main_text(wide.encode(), None), tuple)
    assert main_text(b"<div>" * 1500 + b"x" + b"</div>" * 1500, None) == "page nested too deep"
    assert main_text(b"<p><div></b></span>" * 1500, None) == "page nested too deep"
