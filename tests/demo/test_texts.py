import json
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.demo import texts
from yalm.demo.texts import Source, Text
from yalm.errors import YalmError


def entry(wikitext: str) -> str:
    return f"слово~ru~слово~ru~{wikitext}~123~456"


@pytest.mark.parametrize(
    ("wikitext", "plain"),
    [
        ("[[дом]] у [[река|реки]]", "дом у реки"),
        ("[[:s:Роман (Автор)/Часть 2|Роман]] в [[Москва|Москв]]е", "Роман в Москве"),
        ("[[Файл:а.png|мини|подпись]] дом", "подпись дом"),
        ("{{разг.|ru}} [[дом]] {{пример|}}", "разг. дом"),
        ("{{помета.|}} дом {{пример}}\n#", "дом"),
        ("{{п.}}, {{рег.|поморск.|lang=ru}}: [[прилив]]", "перен., рег. поморск.: прилив"),
        ("{{помета|иногда {{мн.|ru}}}} вода", "иногда мн. вода"),
        ("{{=|завивка|[[укладка]] волос}} на день", "то же, что завивка; укладка волос на день"),
        ("{{действие|[[ходить]]}}; ход", "действие по значению гл. ходить; ход"),
        ("{{женск.||учитель}}", "женск. к учитель"),
        ("{{семантика|синонимы=[[алый]]|антонимы=-}} красный", "красный"),
        ("{{неизвестный|1|2}}, вода {{итп}}", "вода и т. п."),
        ("''чего'', <!-- 1 -->вода<ref name=а>[[сноска]]</ref> H<sub>2</sub>O&nbsp;— да", "чего, вода H2O — да"),
        ('вода ({{lang|la|Aqua}}) и {{"|лёд}}', "вода (Aqua) и «лёд»"),
        ("жизнь <…> прошла 〈..〉 мимо", "жизнь… прошла… мимо"),
        ("вода {{пример|Пью {{выдел|во́ду}}{{-}}и всё.}}", "вода\nПью воду — и всё."),
        ("{{пример|Первый {{выдел|раз}}.}} {{пример|Второй раз.||}}", "\nПервый раз.\nВторой раз."),
        (
            "миг {{пример|Миг.|И.\xa0Автор|[[:s:Книга|Книга]]|1859|источник=НКРЯ}}",
            "миг\nМиг. (И. Автор, «Книга», 1859)",
        ),
        ("{{пример|Миг.|автор=И. Автор|титул=«Книга»|издание=Газета|дата=2008}}", "\nМиг. (И. Автор, «Книга», 2008)"),
        ("{{пример|текст=Миг.|автор=И. Автор}}", "\nМиг. (И. Автор)"),
    ],
)
def test_wikitext_of_a_dictionary_entry(wikitext: str, plain: str) -> None:
    assert texts.wikitext(entry(wikitext)) == plain


def test_entry_of_another_layout_has_no_text() -> None:
    assert texts.wikitext("слово без полей") == ""


def test_tidy_composes_and_drops_the_invisible() -> None:
    assert texts.tidy("и\u0306 \u200eе\u0308\u00ad \t во\u0301да\n , ( да ) « нет » !") == "й ё вода, (да) «нет»!"


def write_database(path: Path, rows: list[tuple[str, str]]) -> Path:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE synsets(synset_id INTEGER, lemma TEXT, definition TEXT)")
    connection.executemany(
        "INSERT INTO synsets VALUES (?, ?, ?)", [(i, lemma, entry(text)) for i, (lemma, text) in enumerate(rows)]
    )
    connection.commit()
    connection.close()
    return path


def test_dictionary_keeps_senses_in_alphabetical_order_and_each_example_once(tmp_path: Path) -> None:
    rivers = [(f"Река{i}", f"[[река]] {{{{пример|{{{{выдел|Река{i}}}}} течёт.}}}}") for i in range(11)]
    rows = [
        ("яма", "углубление {{пример|Яма у дома.}}"),
        ("дом", "здание {{пример|Яма у дома.}} {{пример|Дом.|И. Автор||1859}}"),
        ("Дом", "фамилия"),
        *rivers,
        ("бранное", "{{обсц.|ru}} плохое"),
        ("бранное", "невинное"),
        ("сломанное", "{{пример|нет конца"),
        ("пустое", "{{пример|}}"),
        ("ямка", "{{пример|Яма у дома.}}"),
        ("Шаблон:new", "служебное"),
    ]
    (document,) = texts.dictionary(write_database(tmp_path / "with space.db", rows))
    assert document == "дом — здание\nЯма у дома.\nДом. (И. Автор, 1859)\n\nДом — фамилия\n\nяма — углубление"


def test_dictionary_keeps_a_template_of_few_words(tmp_path: Path) -> None:
    rows = [(f"Река{i}", f"[[река]] {{{{пример|{{{{выдел|Река{i}}}}} течёт.}}}}") for i in range(10)]
    (document,) = texts.dictionary(write_database(tmp_path / "words.db", rows))
    assert document.count("река") == 10


@pytest.mark.parametrize(
    ("context", "kept"),
    [
        (("обрывок. Он вошёл в", " дом", ". Сел у окна. Потом он"), "Он вошёл в дом. Сел у окна."),
        (("Он вошёл в", " дом", " , потом вышел."), "Он вошёл в дом, потом вышел."),
        (("начала нет. Он вошёл в", "дом", " и конца нет"), ""),
        (("Конец. «Чей это", "дом", "?» Никто не знает."), "Конец. «Чей это дом?» Никто не знает."),
        (("Сел у окна.", " домом", " зовут. Ещё одна."), ""),
        (("Сел у окна.", " Дом", " стоял. Ещё одна."), "Сел у окна. Дом стоял. Ещё одна."),
    ],
)
def test_whole_sentences(context: tuple[str, str, str], kept: str) -> None:
    assert texts.whole_sentences(*context) == kept


def test_sentences_from_both_layouts_without_the_national_corpus(tmp_path: Path) -> None:
    for folder in ("nouns/RuTenTen", "nouns/RNC"):
        (tmp_path / folder).mkdir(parents=True)
    long = "Это довольно длинное предложение про один старый"
    lines = [
        "\t\tзначение\t1",
        f"{long}\t дом\t.\t1",
        f"{long}\t дом\t.\t2",
        f"{long}\t сад\t. И\t1\t1",
        "Это\tдом\t.\t1",
    ]
    (tmp_path / "nouns/RuTenTen/дом.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "nouns/RNC/дом.txt").write_text(f"{long}\tзамок\t.\t1", encoding="utf-8")
    twin = [{"1": "значение"}, [[[long, " мост", "."], "1"], [[long, " мост {", "}."], "1"]]]
    (tmp_path / "nouns/RuTenTen/мост.json").write_text(json.dumps(twin), encoding="utf-8")
    assert list(texts.sentences(tmp_path)) == [f"{long} дом.\n{long} сад.\n{long} мост."]


PLAY = """# The Play

## ACT I

### SCENE I. A room.

_Enter ANN, with
a lantern_

**ANN**  
__\\[Aside]_  
Who's _within_ there?  
'Tis late,'\\--no, early, & c.

*Exit.*

### SCENE II. A hall.

**BOB**  
Nobody.

# EPILOGUE

**ANN**  
Farewell.
"""  # noqa: W291


def test_plays_are_cut_at_scenes_and_lose_their_markdown(tmp_path: Path) -> None:
    (tmp_path / "comedies").mkdir()
    (tmp_path / "comedies/play.md").write_text(PLAY, encoding="utf-8")
    assert list(texts.plays(tmp_path)) == [
        "The Play. ACT I. SCENE I. A room.\n\n[Enter ANN, with\na lantern]\n\n"
        "ANN\n[Aside]\nWho's [within] there?\n'Tis late,'--no, early, &c.\n\n[Exit.]",
        "The Play. ACT I. SCENE II. A hall.\n\nBOB\nNobody.",
        "The Play. ACT I. EPILOGUE.\n\nANN\nFarewell.",
    ]


def test_bible_by_chapter_without_running_its_module(tmp_path: Path) -> None:
    text = "\nIn the beginning [was] one.  And two.\nThree.\n Four of the second chapter. Another book."
    starts = {
        1001001: 1,
        1001002: text.index("And"),
        1002001: text.index(" Four"),
        2001001: text.index("Another"),
    }
    module = tmp_path / "bible.py"
    module.write_text(
        "import no_such_module\n"
        f'bible = Bible(Version.X, """{text}""", {starts}, {{1001001: 9}}, '
        "{Book.A: {1: 2, 2: 1}, Book.B: {1: 1}}, {Book.A: 'First', Book.B: 'Second'}, {Book.A: 'Long'}, False)\n",
        encoding="utf-8",
    )
    assert list(texts.bible(module)) == [
        "First 1\n\nIn the beginning was one. And two.\nThree.",
        "First 2\n\nFour of the second chapter.",
        "Second 1\n\nAnother book.",
    ]


@given(st.lists(st.text(alphabet="аб", min_size=1, max_size=30), max_size=60), st.integers(1, 200))
def test_join_loses_nothing_and_keeps_to_the_length(pieces: list[str], characters: int) -> None:
    documents = list(texts.join(pieces, characters, separator="|"))
    assert [piece for document in documents for piece in document.split("|")] == pieces
    for document in documents:  # a share is at most 2 / 1.5 of the wish (rounding) and a piece may stick out
        assert len(document.replace("|", "")) <= 1.5 * characters + 30


def test_join_leaves_no_short_rest() -> None:
    assert list(texts.join(list("abcdefghij"), 4, separator="")) == ["abcde", "fghij"]


word = st.text(alphabet="абвг", min_size=1, max_size=4)
collection = st.lists(
    st.builds(Text, st.lists(word, min_size=1, max_size=3).map(" ".join), st.sampled_from(["ru", "en"]), st.just("s"))
)


@given(collection, st.randoms(use_true_random=False))
def test_split_ignores_order_and_keeps_copies_together(some: list[Text], random: object) -> None:
    spaced = [replace(text, text=text.text.replace(" ", " \n ")) for text in some]
    parts: dict[str, set[str]] = {}
    kept = list(texts.split([*some, *spaced], validation_share=0.5))
    for part, text in kept:
        parts.setdefault(" ".join(text.text.split()), set()).add(part)
    assert all(len(found) == 1 for found in parts.values())
    assert len(kept) == len(parts) == len({text.text for text in some})
    shuffled = list(some)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert {(part, text.text) for part, text in texts.split(shuffled, 0.5)} == {(p, t.text) for p, t in kept}


def test_split_is_the_same_on_every_machine_and_keeps_to_the_share() -> None:
    many = [Text(f"документ {i}", "ru", "s") for i in range(5_000)]
    validation = [text.text for part, text in texts.split(many, 0.1) if part == "validation"]
    assert validation[:3] == ["документ 0", "документ 9", "документ 17"]
    assert 400 < len(validation) < 600
    assert all(part == "train" for part, _ in texts.split(many, 0.0))


def test_write_jsonl(tmp_path: Path) -> None:
    some = [Text(f"«текст»\n{i}", "ru" if i % 2 else "en", "plays") for i in range(40)]
    written = texts.write_jsonl(some, tmp_path / "new" / "data", validation_share=0.3)
    found = []
    for name, file in written.items():
        part, language, _ = name.split(".")
        content = (tmp_path / "new" / "data" / name).read_bytes()
        records = [json.loads(line) for line in content.decode().splitlines()]
        assert (file.documents, file.bytes) == (len(records), len(content))
        assert all(record["language"] == language and record["source"] == "plays" for record in records)
        found += [(part, record["text"]) for record in records]
    assert sorted(found) == sorted((part, text.text) for part, text in texts.split(some, 0.3))
    assert sorted(path.name for path in (tmp_path / "new" / "data").iterdir()) == sorted(written)
    assert set(written) == {"train.ru.jsonl", "train.en.jsonl", "validation.ru.jsonl", "validation.en.jsonl"}


def test_write_jsonl_keeps_the_old_files_when_a_reader_fails(tmp_path: Path) -> None:
    texts.write_jsonl([Text("старый", "ru", "s")], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def failing() -> Iterator[Text]:
        yield Text("новый", "ru", "s")
        raise RuntimeError("reader failed")

    with pytest.raises(RuntimeError, match="reader failed"):
        texts.write_jsonl(failing(), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_write_jsonl_into_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(YalmError, match=r"file: cannot write the texts \(.+\); choose another folder"):
        texts.write_jsonl([], tmp_path / "file")


def install(folder: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = folder / module
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(folder))
    return package


def test_read_texts_finds_packages_without_importing_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = install(tmp_path, "fabricated_plays", monkeypatch)
    (package / "plays").mkdir()
    (package / "plays/a.md").write_text(f"# A\n\n**ANN**  \n{'word ' * 60}\n\n# EPILOGUE\n\nShort.", encoding="utf-8")
    source = Source("plays", "fabricated_plays", "plays", "en", "MIT", texts.plays)
    (text,) = texts.read_texts([source])
    assert (text.language, text.source) == ("en", "plays")
    assert text.text.startswith("A.\n\nANN\nword word")
    assert "fabricated_plays" not in sys.modules


def test_a_missing_package_ends_before_the_first_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "fabricated_empty", monkeypatch)
    for package in ("fabricated_empty", "no_such_package"):
        source = Source("plays", package, "plays", "en", "MIT", texts.plays)
        with pytest.raises(YalmError, match=rf"{package}.+pip install 'openyalm\[demo\]'") as caught:
            next(texts.read_texts([source]))
        assert "\n" not in str(caught.value)


def test_the_table_of_sources() -> None:
    assert {source.language for source in texts.SOURCES} == {"ru", "en"}
    assert len({source.name for source in texts.SOURCES}) == len(texts.SOURCES)
    assert all(source.licence for source in texts.SOURCES)
