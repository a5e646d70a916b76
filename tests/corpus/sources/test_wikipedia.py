"""Wikipedia: what a dump keeps of itself, damaged dumps, and wikitext of every kind as the text a reader sees."""

import bz2
import gzip
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.wikipedia import Wikipedia
from yalm.corpus.sources.wikitext import TangledMarkup, plain_text


def page(number: int, title: str, text: str, ns: int = 0, model: str = "wikitext", redirect: bool = False) -> str:
    return (
        f"<page><title>{escape(title)}</title><ns>{ns}</ns><id>{number}</id>"
        + ('<redirect title="Другая" />' if redirect else "")
        + f"<revision><id>{number + 1000}</id><parentid>1</parentid><timestamp>2019-07-14T12:00:00Z</timestamp>"
        f"<contributor><username>X</username><id>5</id></contributor><model>{model}</model><format>text/x-wiki</format>"
        f'<text xml:space="preserve" bytes="1">{escape(text)}</text><sha1>x</sha1></revision></page>\n'
    )


def dump(*pages: str, schema: str = "0.11", head: str = "", dbname: str = "ruwiki") -> str:
    host = dbname.removesuffix("wiki")
    return (
        f'{head}<mediawiki xmlns="http://www.mediawiki.org/xml/export-{schema}/" version="{schema}" xml:lang="ru">\n'
        f"<siteinfo><sitename>Википедия</sitename><dbname>{dbname}</dbname>"
        f"<base>https://{host}.wikipedia.org/wiki/%D0%97%D0%B0%D0%B3%D0%BB</base></siteinfo>\n"
        f"{''.join(pages)}</mediawiki>\n"
    )


def read(file: Path, data: bytes | str) -> list[Document | Reject]:
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    sizes: list[int] = []
    found = list(Wikipedia(paths=(str(file),)).read(file, sizes.append))
    assert sum(sizes) == file.stat().st_size
    return found


def test_articles_alone_are_taken(tmp_path: Path) -> None:
    pages = (
        page(7, "Кот & пёс", "'''Кот''' — [[Животные|животное]]."),
        page(8, "Обсуждение:Кот", "текст", ns=1),
        page(9, "Кошка", "#перенаправление [[Кот]]", redirect=True),
        page(10, "Модуль", "return 1", model="Scribunto"),
        page(11, "Кот (значения)", "'''Кот''': * [[Кот]]"),
        page(12, "Лев", "'''Лев''': * [[Кот]]\n{{Неоднозначность}}"),
        page(13, "Lion", "'''Lion''' may be\n{{disambiguation|geo}}"),
        page(14, "Тигр", "Тигр{{disambiguation needed}}."),
        page(15, "Пусто", "{{Карточка|имя=x}}"),
    )
    for schema in ("0.10", "0.11"):
        first, second, empty = read(tmp_path / "d.xml", dump(*pages, schema=schema))
        assert first == Document(
            "Кот & пёс\n\nКот — животное.",
            "7",
            "wikipedia",
            "ru",
            "https://ru.wikipedia.org/wiki/%D0%9A%D0%BE%D1%82_%26_%D0%BF%D1%91%D1%81",
            "2019-07-14T12:00:00Z",
            {"title": "Кот & пёс", "revision": "1007"},
        )
        assert isinstance(second, Document)
        assert second.text == "Тигр\n\nТигр."
        assert empty == Reject(f"{tmp_path / 'd.xml'}:15", "no text", "{{Карточка|имя=x}}")


@pytest.mark.parametrize(
    ("dbname", "language"), [("enwiki", "en"), ("simplewiki", "en"), ("ruwikisource", "ru"), ("cebwiki", "")]
)
def test_languages(tmp_path: Path, dbname: str, language: str) -> None:
    (document,) = read(tmp_path / "d.xml", dump(page(1, "A", "text"), dbname=dbname))
    assert isinstance(document, Document)
    assert document.language == language


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=40), max_size=12), st.data())
def test_any_compression_and_members_cut_anywhere(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], data: st.DataObject
) -> None:
    content = dump(*(page(number, f"T{number}", text) for number, text in enumerate(texts))).encode()
    ends = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    members = [content[a:b] for a, b in zip([0, *ends], [*ends, len(content)], strict=True)]
    folder = tmp_path_factory.mktemp("wiki")
    for ending, compress in (("", bytes), (".bz2", bz2.compress), (".gz", gzip.compress), (".zst", zstandard.compress)):
        found = read(folder / f"d.xml{ending}", b"".join(map(compress, members)))
        assert [item.text for item in found if isinstance(item, Document)] == [
            f"T{number}\n\n{text}" for number, text in enumerate(texts)
        ]


def test_what_stands_before_the_damage_is_kept(tmp_path: Path) -> None:
    whole = dump(page(1, "А", "раз"), page(2, "Б", "два"), page(3, "В", "три"))
    file = tmp_path / "d.xml"
    broken = whole.replace("<ns>0</ns><id>3", "<ns>0</na><id>3")
    assert [item if isinstance(item, Reject) else item.id for item in read(file, broken)] == [
        "1",
        "2",
        Reject(f"{file}:after 2", "broken XML"),
    ]
    assert read(file, whole[: whole.index("три")])[-1] == Reject(f"{file}:after 2", "broken XML")
    assert read(file, "no XML at all") == [Reject(f"{file}:after start", "broken XML")]
    file = tmp_path / "d.xml.bz2"
    members = bz2.compress(whole[: whole.index("<page><title>В")].encode()), bz2.compress(b"<page>" * 99)
    *documents, last = read(file, members[0] + members[1][:-9])
    assert [item.id for item in documents if isinstance(item, Document)] == ["1", "2"]
    assert last == Reject(f"{file}:after 2", "compressed data ends early")
    assert read(file, members[0][:20]) == [Reject(f"{file}:after start", "compressed data ends early")]
    assert read(file, "no bz2 at all") == [Reject(f"{file}:after start", "broken compressed data")]


def test_entities_of_the_dump_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    bomb = "".join(f'<!ENTITY b{n} "{f"&b{n - 1};" * 10}">' for n in range(1, 9))
    head = f'<!DOCTYPE mediawiki [<!ENTITY x SYSTEM "{secret.as_uri()}"><!ENTITY b0 "lol">{bomb}]>'
    pages = page(1, "А", "раз") + page(2, "Б", "два").replace("два", "два &x; &b8;") + page(3, "В", "три")
    found = read(tmp_path / "d.xml", dump(pages, head=head))
    assert isinstance(found[0], Document)
    assert "SECRET" not in str(found)
    assert "lol" not in str(found)


TEXTS = {
    "[[Файл:x.jpg|thumb|подпись с [[ссылкой]]]]Текст [[Категория:А]][[en:Foo]]": "Текст",
    "[[Кот]], [[Кот]]ы, [[Кот|коты]], [[:Категория:А]], [[Re:Zero]]": "Кот, Коты, коты, Категория:А, Re:Zero",
    "См. [http://x.ru сайт] и [http://y.ru] тут": "См. сайт и тут",
    "а<ref>раз</ref>б<ref name=x />в<ref name='x>y'>{{cite|</ref>г<!-- нет -->д": "абвгд",
    "до\n{| class=x\n! a\n|-\n| b {{c}}\n{|\n| d\n|}\n|}\nпосле": "до\n\nпосле",
    "{{Карточка\n|имя = {{nobr|А}}\n}}\n'''А''' ({{lang-en|Ae}}, {{lang|fr|Af}}) {{s|XX век}}": "А (Ae, Af) XX век",
    "{{unknown|Х}} ({{unknown}}; {{unknown}}) слово , да": "слово, да",
    "{{formatnum:1000}} {{#if:x|y}} {{нп5|А|Б|en|A}} а{{—}}б": "1000 Б а — б",
    "== Раздел ==\nтекст\n=== Пусто ===\n{{x}}\n== Ещё ==\n==== Глубже ====\nда\n== Пусто ==": (
        "Раздел\n\nтекст\n\nЕщё\n\nГлубже\n\nда"
    ),
    "раз\n== Примечания ==\n{{reflist}}\n=== Под ===\nY\n== См. также ==\n* Z\n== Итог ==\nдва": "раз\n\nИтог\n\nдва",
    "one\n==  References ==\nX\n==External links==\n* [http://x y]": "one",
    "* а\n** б\n# в\n: г\n; д": "- а\n- б\n- в\nг\nд",
    "Формула <math>a  = b</math>, H<sub>2</sub>O&nbsp;и&#33;&#xD800;": "Формула a = b, H2O\xa0и!",
    "<nowiki>[[не ссылка]]</nowiki> <b>жирно</b> ''курсив''<br>строка": "не ссылка жирно курсив\nстрока",
    "__TOC____БЕЗ_ОГЛ__а\n\n\n\n\nб": "а\n\nб",
    "{{незакрытый [[тоже {| текст": "незакрытый тоже текст",
    "<gallery>\nФайл:a.jpg|a\n</gallery>\nтекст <references>\n<ref>x</ref></references>": "текст",
    "a < b и c > d, 2 <3": "a < b и c > d, 2 <3",
    "": "",
}


@pytest.mark.parametrize("source", TEXTS)
def test_wikitext(source: str) -> None:
    assert plain_text(source) == TEXTS[source]


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """An alarm in the middle of whatever takes longer."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


NESTED = 10_000
PATHOLOGICAL = {
    "braces": "{{" * NESTED + "}}" * NESTED,
    "braces left open": "{{а|" * NESTED,
    "arguments": "{{{" * NESTED + "}}}" * NESTED,
    "links": "[[а|" * NESTED,
    "tables": "{|\n|\n" * NESTED + "\n|}" * NESTED,
    "tags left open": "<b>" * NESTED,
    "attributes left open": "<i a='" * NESTED,
    "addresses": "[http://a " * NESTED,
    "mixture": "{{a|[[b|<i>{|\n" * NESTED,
    "notes left open": "<ref>а" * NESTED,
    "comments left open": "<!--" * NESTED,
    "blanks": " " * 20 * NESTED + "x",
    "round brackets": "( " * 5 * NESTED,
    "equals": "\n=" * NESTED + " =" * NESTED,
}


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_pathological_pages_do_not_stall(name: str) -> None:
    with at_most(seconds=10):
        try:
            plain_text(PATHOLOGICAL[name])
        except TangledMarkup:
            assert name not in ("notes left open", "comments left open", "blanks", "round brackets", "equals")


def test_a_tangled_page_is_a_reject_and_the_next_is_read(tmp_path: Path) -> None:
    first, second = read(tmp_path / "d.xml", dump(page(1, "А", "{{" * NESTED + "}}" * NESTED), page(2, "Б", "два")))
    assert isinstance(first, Reject)
    assert (first.where, first.reason) == (f"{tmp_path / 'd.xml'}:1", "tangled markup")
    assert isinstance(second, Document)


MARKUP = [
    "{{",
    "}}",
    "{{{",
    "[[",
    "]]",
    "{|",
    "|}",
    "|-",
    "|",
    "'''",
    "<ref>",
    "</ref>",
    "<b>",
    "</b>",
    "=",
    "==",
    "а",
    "*",
    ":",
    "http://x",
    "[",
    "]",
    "<!--",
    "-->",
    "&lt;",
    "&#9;",
    "{{lang|en|",
]


@given(st.lists(st.sampled_from([*MARKUP, "\n", "\n== ", " "]), max_size=40))
def test_any_mess_of_markup_becomes_a_tidy_text(tokens: list[str]) -> None:
    text = plain_text("".join(tokens))
    assert not any(mark in text for mark in ("\x00", "\n\n\n", "  ", " \n", "''"))
    assert text == text.strip()
