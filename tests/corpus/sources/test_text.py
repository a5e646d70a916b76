"""Plain text and its encodings: Russian in all six, at random; evidence against declarations; other languages."""

import gzip
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, Reject
from yalm.corpus.sources.encodings import decode
from yalm.corpus.sources.text import PlainText

# Common words, with all letters of the alphabet among them.
COMMON = """
и в не на что он как это по но из у за от так же для ты вот быть бы мы было который сказать этот мочь время
человек год рука дело жизнь день раз работа слово место лицо друг глаз вопрос дом сторона страна мир случай
голова ребёнок сила конец вид система часть город отношение женщина деньги земля машина вода отец проблема час
право нога решение дверь образ история власть закон война бог голос тысяча книга возможность результат ночь
стол имя область статья число компания народ жена группа развитие процесс суд условие средство начало свет пора
путь душа уровень форма связь минута улица вечер качество мысль дорога мать действие месяц государство язык
любовь взгляд школа век цель общество объект эффект щека цифра хлеб шаг ещё её юг экран фильм чай жёлтый явление
"""
WORDS = COMMON.split()
BYTEWISE = ["cp1251", "koi8-r", "cp866", "iso8859-5"]
# From windows-1251 it differs in capitals, one letter and signs only: more text is needed to know it.
MAC = "mac-cyrillic"


@st.composite
def russian(draw: st.DrawFn) -> str:
    """A sentence of random words with at least 60 letters."""
    shuffled = draw(st.permutations(WORDS))
    words = next(shuffled[:size] for size in range(len(WORDS)) if sum(map(len, shuffled[:size])) >= 60)
    return " ".join(words).capitalize() + draw(st.sampled_from([".", "!", "?", ", 1999.", " (RFC 822)."]))


@pytest.mark.parametrize("encoding", BYTEWISE)
@given(russian())
def test_a_russian_sentence_is_read_in_any_encoding(encoding: str, text: str) -> None:
    for version in (text, text.upper().replace("Ё", "Е"), text.lower()):
        assert decode(version.encode(encoding)) == (version, encoding)
        assert decode(version.encode(encoding), "utf-8") == (version, encoding)


def test_a_paragraph_is_read_in_mac_cyrillic() -> None:
    rng = random.Random(0)
    for _ in range(200):
        text = " ".join(" ".join(rng.sample(WORDS, 10)).capitalize() + "." for _ in range(3))
        assert decode(text.encode(MAC)) == (text, MAC)


@pytest.mark.parametrize("encoding", ["cp866", "koi8-r"])
def test_frames_of_tables_do_not_hide_a_text(encoding: str) -> None:
    text = f"┌{'─' * 40}┐\n│ Хлеб   │ 12 руб. │\n│ Молоко │ 30 руб. │\n└{'─' * 40}┘\n{'═' * 70}\nПрайс-лист\n"
    assert decode(text.encode(encoding)) == (text, encoding)


@given(russian(), st.sampled_from(BYTEWISE), st.sampled_from(["windows-1251", "KOI8-R", "ibm866", "latin1", "bogus"]))
def test_what_is_declared_wrong_is_not_believed(text: str, encoding: str, declared: str) -> None:
    assert decode(text.encode(encoding), declared)[0] == text


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("Windows-1251", "cp1251"),
        ("win-1251", "cp1251"),
        ("'koi8-r'", "koi8-r"),
        ("IBM866", "cp866"),
        ("x-mac-cyrillic", MAC),
        ("iso-8859-5", "iso8859-5"),
    ],
)
def test_what_is_declared_right_decides_a_single_word(declared: str, encoding: str) -> None:
    for word in ("Он", "ЯЩИК", "ёж"):
        assert decode(word.encode(encoding), declared) == (word, encoding)


@given(russian(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]))
def test_unicode_shows_itself(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding))[0] == text
    assert decode(text.encode(encoding), "windows-1251")[0] == text


@given(russian(), st.integers(1, 60))
def test_damaged_utf_8_stays_utf_8(text: str, place: int) -> None:
    data = bytearray(text.encode())
    data[place] = 0xFF
    found, encoding = decode(bytes(data[:-1]))
    assert encoding == "utf-8"
    assert found.count("\ufffd") <= 2


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Größe über Straße müssen wir schön prüfen, für Mädchen und Jäger", "cp1252"),
        ("“Smart quotes” in an English text — with dashes", "cp1252"),
        ("Zażółć gęślą jaźń, proszę państwa, świętość", "cp1250"),
        ("Αυτό είναι ένα ελληνικό κείμενο για δοκιμή", "iso8859-7"),
        ("这是一个中文句子，用来测试编码检测的准确性。", "gb18030"),
        ("Це українська мова, їжак їсть, ґанок і є ще один рядок", "cp1251"),
        ("Това е български текст, който трябва да бъде разпознат", "koi8-r"),
    ],
)
def test_other_languages(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding))[0] == text


@given(st.binary(max_size=200), st.one_of(st.none(), st.text(max_size=12), st.sampled_from(["zlib_codec", "rot13"])))
def test_any_bytes_become_a_text_that_can_be_written(data: bytes, declared: str | None) -> None:
    text, _ = decode(data, declared)
    text.encode()


def read(file: Path, **settings: Any) -> list[Document | Reject]:
    sizes: list[int] = []
    found = list(PlainText(paths=(str(file),), **settings).read(file, sizes.append))
    assert sum(sizes) == file.stat().st_size
    return found


def test_each_file_is_a_document(tmp_path: Path) -> None:
    text = "Первая строка этого рассказа о жизни.\nВторая строка, ещё длиннее первой.\n"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_bytes(text.encode("koi8-r"))
    (tmp_path / "two.txt.gz").write_bytes(gzip.compress(text.encode("utf-16")))
    (tmp_path / "empty.txt").write_bytes(b" \n")
    (tmp_path / "no.dat").write_bytes(b"x")
    source = PlainText(paths=(str(tmp_path),))
    found = [item for file in source.files() for item in read(file)]
    assert found == [
        Document(text, "one", ""),
        Reject(str(tmp_path / "empty.txt"), "no text"),
        Document(text, "two", ""),
    ]


def test_the_encoding_that_is_set_decides_where_letters_do_not(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("ёж".encode("cp866"))
    assert read(file, encoding="cp866") == [Document("ёж", "a", "")]


def test_broken_compressed_data(tmp_path: Path) -> None:
    file = tmp_path / "a.txt.gz"
    data = bytearray(gzip.compress(random.Random(0).randbytes(500).hex().encode()))
    file.write_bytes(data[:-1])
    assert read(file) == [Reject(str(file), "compressed data ends early")]
    data[-6] ^= 1  # in the checksum, so that only the end tells
    file.write_bytes(data)
    assert read(file) == [Reject(str(file), "broken compressed data")]
