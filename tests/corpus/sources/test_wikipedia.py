"""Wikipedia: what of a page is text, which pages are articles, damage, markup made to stall its reader."""

import bz2
import gzip
import resource
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources import wikitext
from yalm.corpus.sources.wikipedia import Wikipedia
from yalm.corpus.sources.wikitext import plain_text

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="ru">
<siteinfo><sitename>Википедия</sitename><dbname>ruwiki</dbname>
<base>https://ru.wikipedia.org/wiki/%D0%97%D0%B0%D0%B3</base></siteinfo>
"""
TAIL = "</mediawiki>\n"
COMPRESS = {".bz2": bz2.compress, ".gz": gzip.compress, ".xml": bytes}


def page(number: int, text: str, title: str = "", ns: int = 0, extra: str = "", model: str = "wikitext") -> str:
    return (
        f"<page><title>{escape(title or f'Статья {number}')}</title><ns>{ns}</ns><id>{number}</id>{extra}<revision>"
        f"<id>9{number}</id><timestamp>2024-05-01T10:20:30Z</timestamp><model>{model}</model>"
        f'<text xml:space="preserve">{escape(text)}</text></revision></page>\n'
    )


def read(file: Path) -> list[Document | Reject]:
    sizes: list[int] = []
    items = list(Wikipedia(paths=(str(file),)).read(file, sizes.append))
    assert sum(sizes) == file.stat().st_size
    return items


def identities(items: list[Document | Reject]) -> list[str]:
    return [item.id for item in items if isinstance(item, Document)]


@pytest.mark.parametrize("ending", [".xml.bz2", ".xml.gz", ".xml"])
def test_articles_of_a_dump_of_many_members(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"ruwiki{ending}"
    members = (
        HEAD,
        page(7, "'''Кот''' & [[кошка|кошки]].", "Кот (зверь)"),
        page(8, "#REDIRECT [[Кот]]", extra='<redirect title="Кот" />') + page(9, "#перенаправление [[Кот]]"),
        page(10, "Обсуждение", ns=1) + page(11, "* [[а]]\n{{Неоднозначность}}") + page(12, "{}", model="json"),
        page(13, "{{Карточка}}") + "<page><title>Без номера</title><ns>0</ns></page>",
        TAIL,
    )
    file.write_bytes(b"".join(COMPRESS[file.suffix](member.encode()) for member in members))
    url = "https://ru.wikipedia.org/wiki/%D0%9A%D0%BE%D1%82_(%D0%B7%D0%B2%D0%B5%D1%80%D1%8C)"
    assert read(file) == [
        Document("Кот (зверь)\nКот & кошки.", "7", "ruwiki", "ru", url, "2024-05-01T10:20:30Z"),
        Reject(f"{file}:page 11", "disambiguation", "Статья 11", broken=False),
        Reject(f"{file}:page 12", "no wikitext", "Статья 12", broken=False),
        Reject(f"{file}:page 13", "no text", "Статья 13", broken=False),
        Reject(f"{file}:page None", "page without id, title or text", "Без номера"),
    ]


def test_a_dump_without_namespace_and_site(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_text(f"<mediawiki>{page(1, 'Текст')}</mediawiki>")
    assert read(file) == [Document("Статья 1\nТекст", "1", "", "", "", "2024-05-01T10:20:30Z")]


def test_a_cut_dump_keeps_the_pages_before_the_cut(tmp_path: Path) -> None:
    file = tmp_path / "a.xml.bz2"
    parts = [bz2.compress(text.encode()) for text in (HEAD, page(1, "Один"), page(2, "Два"), page(3, "Три"))]
    file.write_bytes(b"".join(parts)[:-60])
    items = read(file)
    assert identities(items) == ["1", "2"]
    assert items[-1] == Reject(f"{file}:after page 2", "compressed data ends early")


def test_broken_xml_keeps_the_pages_before_it(tmp_path: Path) -> None:
    file = tmp_path / "a.xml"
    file.write_text(
        HEAD + page(1, "Один") + page(2, "Два" * 50_000) + "<page><title></ns></page>" + page(4, "Т") + TAIL
    )
    items = read(file)
    assert identities(items) == ["1", "2"]
    assert isinstance(items[-1], Reject)
    assert items[-1][:2] == (f"{file}:after page 2", "broken XML")


def test_entities_of_a_dump_open_no_files_and_do_not_unfold(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    file = tmp_path / "a.xml"
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    head = f'<!DOCTYPE mediawiki [<!ENTITY x SYSTEM "{tmp_path}/secret"><!ENTITY a0 "ha">{laughs}]>'
    file.write_text(head + HEAD + page(1, "Один @x @a11").replace("@x @a11", "&x; &a11;") + TAIL)
    text = "".join(item.text for item in read(file) if isinstance(item, Document))
    assert "secret" not in text
    assert len(text) < 100


def test_wikitext() -> None:
    source = """{{Карточка|имя={{lang-en|x}}|фото=[[Файл:a.jpg]]}}
[[Файл:Кот.jpg|мини|Подпись с [[ссылка|ссылкой]]]]
'''Кот''' ({{lang-la|Felis}}; {{IPA|x}}) — ''домашнее'' [[животное]]<ref name="a">Книга</ref>, {{nobr|9 кг}}.<!-- -->
См.<ref name="a"/> [https://example.org сайт] [https://example.org] и&nbsp;{{lang|la|felis}}.<br>Строка


{| class="wikitable"
| ячейка || {{шаблон}}
|}
== Породы ==
* [[Сиамская кошка|Сиамская]]
*# персидская ({{s|до 7}})
__NOTOC__
=== Примечания ===
{{примечания}}
== Ссылки ==
* [https://example.org ссылка]
=== Прочие ===
* ещё
== Разное ==
<div>Конец</div> <math>x^2</math>
[[Категория:Коты]][[en:Cat]]
"""
    assert plain_text(source).split("\n") == [
        "Кот (Felis) — домашнее животное, 9 кг.",
        "См. сайт и felis.",
        "Строка",
        "",
        "Породы",
        "",
        "Сиамская",
        "персидская (до 7)",
        "",
        "Разное",
        "",
        "Конец",
    ]


def test_long_and_deep_pages_are_stripped_to_about_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "{{Карточка|a={{b}}}}\n'''Кот''' — [[животное|зверь]]<ref>Книга</ref>[[Файл:a.jpg|мини|[[б]]]]<br/>да.\n"
        "{|\n| ячейка\n|}\n== Породы ==\n* [[сиамская]] [https://example.org сайт]\n== Ссылки ==\n* нет\n"
    )
    parsed = plain_text(source)
    monkeypatch.setattr(wikitext, "PARSED_LIMIT", 0)
    assert [line.strip() for line in plain_text(source).split("\n") if line] == [
        line.strip() for line in parsed.split("\n") if line
    ]


@pytest.mark.parametrize("mark", ["{{", "{{a|", "[[a|", "<b>", "<div x=", "{|\n|", "[//a ", "<!--", "<p>", "]]{{a|"])
def test_markup_that_never_closes_is_kept_from_the_parser(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mark != "<!--":  # hides the rest of a page
        monkeypatch.setattr("mwparserfromhell.parse", None)
    assert plain_text("Текст\n" + mark * 10_000).startswith("Текст")


@given(
    st.lists(st.sampled_from(["{{", "}}", "[[", "]]", "|", "<ref>", "</ref>", "\n", "= ", "==", "слово ", "{|", "|}"]))
)
def test_any_markup_becomes_text_without_blank_lines_in_a_row(tokens: list[str]) -> None:
    text = plain_text("".join(tokens))
    assert "\n\n\n" not in text
    assert text == text.strip()
    assert set(text) <= {"\n", *"".join(tokens)}


def test_memory_is_flat(tmp_path: Path) -> None:
    file = tmp_path / "a.xml.gz"
    discussion = page(1, "Текст " * 100_000, ns=1)
    with gzip.open(file, "wt", compresslevel=1) as out:
        out.write(HEAD + page(1, "Один"))
        for _ in range(80):
            out.write(discussion)
        out.write(page(2, "Два") + TAIL)
    pages = Wikipedia(paths=(str(file),)).read(file, lambda size: None)
    assert isinstance(next(pages), Document)
    before = resident()
    assert identities(list(pages)) == ["2"]
    assert resident() - before < 30_000_000  # of 88 MB


def resident() -> int:
    """Bytes of memory the process holds, also those of libxml2."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
