"""Lengths at their thresholds, and what is a natural sentence."""

import pytest

from made_up import RUSSIAN, batch_of
from yalm.corpus.rules.length import Length
from yalm.corpus.rules.rule import ByLanguage


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (RUSSIAN, 9),
        ("Первое предложение из пяти слов. второе без большой буквы в начале. Третье не кончается", 1),
        ("«Сегодня никого не будет!» — Он ушёл далеко в лес…", 2),
        ("Меню\nГлавная\nКонтакты\nО компании", 0),
        ("Да. Нет. Не знаю.", 0),
        ("А. С. Пушкин родился в 1799 г. в Москве.", 1),
        ("Он живёт на ул. Ленина в доме три.", 1),
        ("It’s Ann’s, they’re sure.", 1),
        ("It's Ann's one.", 0),
        ("За́мок и замо́к.", 0),
        ("Кое-кто из-за угла.", 0),
        ("Да и не но.", 1),
        ("Абвг деёж зикл мн 12345.", 1),  # 14 letters of 20 characters
        ("Abcd efgh ijkl mn 12345.", 1),
        ("Абвг деёж зикл мн 123456.", 0),
        ("Abcd efgh ijkl mn 123456.", 0),
        ("", 0),
    ],
)
def test_natural_sentences(text: str, count: int) -> None:
    batch = batch_of([text])
    assert Length().sentences(batch.texts, batch.languages).tolist() == [count]


def made_of(words: int, characters: int, letter: str) -> str:
    """So many one-letter words, the last as long as it takes for so many characters."""
    return f"{letter} " * (words - 1) + letter * (characters - 2 * (words - 1))


@pytest.mark.parametrize(
    ("language", "words", "characters", "cause"),
    [
        ("ru", 5, 30, ""),
        ("ru", 5, 29, "length.characters"),
        ("ru", 4, 30, "length.words"),
        ("ru", 800_000, 5_000_000, ""),
        ("ru", 800_001, 5_000_000, "length.words"),
        ("ru", 9, 5_000_001, "length.characters"),
        ("en", 6, 30, ""),
        ("en", 6, 29, "length.characters"),
        ("en", 5, 30, "length.words"),
        ("en", 1_000_000, 5_000_000, ""),
        ("en", 1_000_001, 5_000_000, "length.words"),
        ("en", 9, 5_000_001, "length.characters"),
        ("de", 1, 1, ""),
        ("de", 1_000_001, 5_000_001, ""),
    ],
)
def test_the_lengths_that_the_settings_name(language: str, words: int, characters: int, cause: str) -> None:
    text = made_of(words, characters, "я" if language == "ru" else "i")
    assert Length(sentences_from=2_000_000).judge(batch_of([text], language)).cause.tolist() == [cause]


def test_lengths_at_their_thresholds() -> None:
    rule = Length(min_characters=ByLanguage(ru=10, en=12), min_words=ByLanguage(ru=2, en=2))
    assert rule.judge(batch_of(["слово сло", "слово слов", "слововслов", ""])).cause.tolist() == [
        "length.characters",
        "",
        "length.words",
        "length.characters",
    ]
    assert rule.judge(batch_of(["one two thr", "one two thre"], "en")).drop.tolist() == [True, False]
    assert rule.judge(batch_of(["x", ""], "de")).drop.tolist() == [False, True]


@pytest.mark.parametrize("language", ["ru", "en"])
def test_texts_of_two_hundred_words_need_a_sentence(language: str) -> None:
    menu = "\n".join(["Главная", "Catalogue", "Контакты"] * 70)
    sentence = "Это одно предложение здесь." if language == "ru" else "This is one sentence."
    texts = [" ".join(menu.split()[:199]), " ".join(menu.split()[:200]), f"{menu}\n\n{sentence}", RUSSIAN * 3]
    assert Length().judge(batch_of(texts, language)).cause.tolist() == ["", "length.sentences", "", ""]
    two = Length(min_sentences=ByLanguage(ru=2, en=2)).judge(batch_of(texts[2:], language))
    assert two.cause.tolist() == ["length.sentences", ""]
