"""Wrong encodings, odd characters and HTML are planted; clean texts must come back as they were."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_up import ENGLISH, RUSSIAN, batch_of
from yalm.corpus.rules import mojibake
from yalm.corpus.rules.text import Unicode, strip_html

SENTENCES = [part.strip() for part in RUSSIAN.replace("\n", " ").split(".") if part.strip()]
russian = st.lists(st.sampled_from(SENTENCES), min_size=2, max_size=6).map(". ".join)
PAIRS = [
    ("cp1251", "latin-1"),
    ("cp1251", "cp1252"),
    ("koi8_r", "latin-1"),
    ("koi8_r", "cp1251"),
    ("cp1251", "koi8_r"),
    ("cp866", "cp1251"),
    ("cp1251", "cp866"),
]


def mended(*texts: str, language: str = "ru", **settings: object) -> list[str]:
    rule = Unicode.model_validate(settings)
    return rule.judge(batch_of(list(texts), language)).columns["text"].to_pylist()


def misread(text: str, encoding: str) -> str:
    """UTF-8 read as another encoding, bytes that it leaves open as control characters."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1251", "koi8_r", "cp866"])
@given(russian)
def test_misread_utf8_is_read_back(encoding: str, text: str) -> None:
    assert mended(misread(text, encoding)) == [text]


@given(russian)
def test_utf8_misread_twice_is_read_back(text: str) -> None:
    assert mended(misread(misread(text, "cp1252"), "cp1252")) == [text]


def test_utf8_is_read_back_three_times_at_most() -> None:
    versions = ["Слово"]
    for _ in range(4):
        versions.append(misread(versions[-1], "cp1252"))
    assert [mojibake.repair_utf8(version) for version in versions] == [versions[0]] * 4 + [versions[1]]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize("character", ["é", "я", "ạ", "語", "ﬁ", "😀"])
def test_a_single_misread_character_of_any_width_is_read_back(encoding: str, character: str) -> None:
    assert mended(f"One {misread(character, encoding)} word") == [f"One {character} word"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "cp1251", "koi8_r"])
@pytest.mark.parametrize("mark", "‐‑‒–—―‘’‚‛“”„‟•…")
def test_one_misread_quote_or_dash_among_honest_text_is_read_back(encoding: str, mark: str) -> None:
    assert mended(f"Слово {misread(mark, encoding)} word") == [f"Слово {mark} word"]


def test_mixed_up_text_is_read_back_from_sixteen_letters() -> None:
    garbled = [text.encode("cp1251").decode("latin-1") for text in ("Мама мыла раму тут", "Мама мыла раму тут и")]
    assert mended(*garbled) == [garbled[0], "Мама мыла раму тут и"]


@pytest.mark.parametrize(("right", "wrong"), PAIRS)
@given(russian)
def test_mixed_up_russian_encodings_are_told_apart(right: str, wrong: str, text: str) -> None:
    held = " ".join(text.encode(right, "ignore").decode(right).split())
    garbled = held.encode(right).decode(wrong, "ignore")
    if garbled.encode(wrong, "ignore") == held.encode(right):  # nothing lost on the way
        assert [" ".join(found.split()) for found in mended(garbled)] == [held]


def test_one_garbled_line_among_clean_ones() -> None:
    garbled = SENTENCES[0].encode("cp1251").decode("latin-1")
    assert mended(f"{RUSSIAN}\n{garbled}\n{ENGLISH}") == [f"{RUSSIAN}\n{SENTENCES[0]}\n{ENGLISH}"]


@pytest.mark.parametrize(
    "text",
    [
        RUSSIAN,
        ENGLISH,
        "СОДЕРЖАНИЕ ПЕРВОГО ТОМА ПОЛНОГО СОБРАНИЯ СОЧИНЕНИЙ В ДЕСЯТИ ТОМАХ",
        "Группы «А», «Б» и «В», а также…",
        "Поле окна АвтоформатАвтоматический выбор",
        "АвтоВАЗ и мРНК, ГлавАПУ, iPhone",
        "À l’été, la forêt est déjà là; über Größe, naïveté, ÄÖÜ",
        "ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõöøùúûüýþÿ",
        "def f(x):\n    return {x: [x]}  # <localtiles> a < b > c",
        "👩\u200d🚀 emoji with a joiner",
    ],
)
def test_clean_text_stays_as_it_is(text: str) -> None:
    assert mended(text) == [text.replace("}  #", "} #")]


@given(st.text(max_size=60))
def test_what_comes_out_is_clean_and_stays(text: str) -> None:
    once = mended(text, repair=False, strip_markup=1)[0]
    assert unicodedata.is_normalized("NFC", once)
    assert mended(once, repair=False, strip_markup=1) == [once]
    assert not set(once) & set("\r\x00\x0b\x0c\x85\ufeff\u200b\u00a0\u2028\ue000")
    assert "\n\n\n" not in once
    assert not any(line.endswith((" ", "\t")) for line in once.split("\n"))


def test_spaces_characters_and_lines() -> None:
    dirty = "\ufeff\r\nOne\u00a0 two\u200b three \t\r\n\r\n\n\n  in\u00addented e\u0301\x07\n"
    assert mended(dirty) == ["One two three\n\n  indented é"]
    assert mended("«a» — b…", fold=True) == ['"a" - b...']


def test_html_is_removed_or_drops() -> None:
    page = "<html><head><script>var a = 1 < 2;</script></head><body><p>Tom &amp; Jerry</p><br/>end</body></html>"
    assert [line for line in strip_html(page).split("\n") if line] == ["Tom & Jerry", "end"]
    remnant = f"{ENGLISH}<br/><b>More&nbsp;text</b>"
    verdict = Unicode().judge(batch_of([page, remnant, ENGLISH]))
    assert verdict.drop.tolist() == [True, False, False]
    assert verdict.cause.tolist() == ["unicode.markup", "", ""]
    assert verdict.columns["text"].to_pylist()[1:] == [f"{ENGLISH}\nMore text", ENGLISH]


@pytest.mark.parametrize(
    ("trouble", "measure", "value", "most"),
    [
        ("\ufffd", "replacement", 0.001, 1000),
        ("Ð¶Ñ\x84", "mojibake", 0.02, 200),
        ("<b>&amp;</b>", "markup", 0.3, 40),
    ],
)
def test_trouble_up_to_the_threshold(trouble: str, measure: str, value: float, most: int) -> None:
    texts = [trouble + "ы" * (size - len(trouble)) for size in (most, most - 1)]
    verdict = Unicode(repair=False).judge(batch_of(texts))
    assert verdict.measures[f"unicode.{measure}"][0] == pytest.approx(value)
    assert verdict.cause.tolist() == ["", f"unicode.{measure}"]


def test_half_a_percent_of_markup_is_left_and_more_is_removed() -> None:
    letters = "ы" * 597
    assert mended(f"<b>{letters}", f"<b>{letters[1:]}") == [f"<b>{letters}", letters[1:]]


def test_mojibake_that_is_not_mended_drops() -> None:
    broken = misread(RUSSIAN, "cp1252")
    verdict = Unicode(repair=False).judge(batch_of([broken, RUSSIAN]))
    assert verdict.drop.tolist() == [True, False]


@given(st.text(st.sampled_from("абвгАБВГ abcÀé»—Ð°Ñ\x80РС°ў"), max_size=40))
def test_repair_of_anything_adds_no_characters(text: str) -> None:
    repaired = mojibake.repair_utf8(text)
    assert len(repaired) <= len(text)
    assert len(mojibake.repair_russian(repaired)) == len(repaired)
