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
        ("", 0),
    ],
)
def test_natural_sentences(text: str, count: int) -> None:
    batch = batch_of([text])
    assert Length().sentences(batch.texts, batch.languages).tolist() == [count]


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


def test_long_texts_need_sentences() -> None:
    menu = "\n".join(["Главная страница", "Каталог", "Контакты"] * 60)
    verdict = Length().judge(batch_of([menu, RUSSIAN * 3]))
    assert verdict.cause.tolist() == ["length.sentences", ""]
