"""The repetition rule: its counts against plain Python, planted repetition, clean texts in both languages."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.corpus.document import Document, to_table
from yalm.corpus.rules.repetition import Repetition
from yalm.corpus.rules.rule import Batch

CLEAN = {
    "en": (
        "The ferry left at six, while the fog still hid the far bank of the river. My aunt had packed bread, two apples"
        " and a letter that she would not let me read. We sat on the upper deck, counted the buoys and argued about the"
        " name of every bird that we met. By noon the wind had turned, and with it our mood:"
        " people who had kept to themselves began to talk, somebody found a guitar, and I slept on a coil of rope."
    ),
    "ru": (
        "Паром отошёл в шесть, когда туман ещё скрывал дальний берег реки. Тётя собрала в дорогу хлеб, два яблока и "
        "письмо, которое не давала мне прочесть. Мы сидели на верхней палубе, считали бакены и спорили о названии "
        "каждой птицы, что пролетала за кормой. К полудню ветер переменился, а с ним и настроение всего парохода: "
        "люди, державшиеся поодиночке, разговорились, у кого-то нашлась гитара, и я заснул на бухте каната."
    ),
}
WORDS = {
    "en": "cheap buy windows online price delivery plastic repair moscow discount order door balcony sale shop",
    "ru": "купить окна дешево цена доставка пластиковые ремонт москва скидка заказать дверь балкон акция магазин",
}
texts = st.lists(st.text(st.sampled_from("abcаб. \n"), max_size=60), max_size=6)
some_languages = st.lists(st.sampled_from(["en", "ru", ""]), min_size=6, max_size=6)


def batch(values: Sequence[str], languages: Sequence[str]) -> Batch:
    rows = zip(values, languages, strict=True)
    documents = (Document(text, str(i), "web", language) for i, (text, language) in enumerate(rows))
    return Batch(to_table(documents, "web", 0))


def plain(text: str, language: str, rule: Repetition) -> dict[str, float]:
    """The measures of one text over the alphabet of `texts`, as the settings describe them."""
    lines = [line.replace(".", " ").split() for line in text.split("\n")]
    words = [word for line in lines for word in line]
    if len(words) < rule.min_words:
        return dict.fromkeys(
            ("repeated_lines", "repeated_runs", "top_pair", "top_word", "richness", "stop_words"), np.nan
        )
    runs = [tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))]
    pairs = list(pairwise(words)) or [(words[0],)]
    return {
        "repeated_lines": sum(len(line) for i, line in enumerate(lines) if line in lines[:i]) / len(words),
        "repeated_runs": 1 - len(set(runs)) / len(runs),
        "top_pair": max(Counter(pairs).values()) / len(pairs),
        "top_word": max(Counter(words).values()) / len(words),
        "richness": len(set(words)) / len(words) ** 0.5,
        "stop_words": len(set(words) & set(rule.stop_words[language])) if language in rule.stop_words else np.nan,
    }


@given(texts, some_languages)
def test_the_measures_are_those_counted_in_plain_python(values: list[str], languages: list[str]) -> None:
    rule = Repetition(min_words=3, stop_words={"en": ("a", "ab", "c"), "ru": ("б",)})
    measures = rule.judge(batch(values, languages[: len(values)])).measures
    for i, text in enumerate(values):
        for name, expected in plain(text, languages[i], rule).items():
            np.testing.assert_allclose(measures[f"repetition.{name}"][i], expected, atol=1e-12, err_msg=name)


@given(texts, some_languages, st.integers(0, 6))
def test_a_batch_split_in_two_gives_the_same_verdicts(values: list[str], languages: list[str], at: int) -> None:
    rule = Repetition(min_words=2, max_repeated_lines=0.1, max_repeated_runs=0.1, max_top_pair=0.4, stop_words={})
    languages = languages[: len(values)]
    whole = rule.judge(batch(values, languages))
    parts = [rule.judge(batch(values[:at], languages[:at])), rule.judge(batch(values[at:], languages[at:]))]
    assert whole.drop.tolist() == [drop for part in parts for drop in part.drop.tolist()]
    for name, measured in whole.measures.items():
        np.testing.assert_array_equal(measured, np.concatenate([part.measures[name] for part in parts]))


def judged(text: str, language: str) -> str:
    """The reason the defaults give; empty if the text is kept."""
    verdict = Repetition().judge(batch([text], [language]))
    assert verdict.cause is not None
    assert bool(verdict.drop[0]) == (str(verdict.cause[0]) != "")
    return str(verdict.cause[0])


@pytest.mark.parametrize("language", ["en", "ru"])
def test_clean_and_short_texts_stay(language: str) -> None:
    assert judged(CLEAN[language], language) == ""
    assert judged("spam " * 49, language) == ""
    assert judged("spam " * 50, language) != ""
    assert judged("", language) == ""


@pytest.mark.parametrize("language", ["en", "ru"])
def test_keyword_spam_falls_whatever_language_is_claimed(language: str) -> None:
    words = random.Random(1).choices(WORDS[language].split(), k=300)
    assert judged(" ".join(words), "") == "repetition.richness"
    assert judged(" ".join(words), language) == "repetition.richness"


@pytest.mark.parametrize("language", ["en", "ru"])
def test_a_line_again_and_again_falls_however_it_is_written(language: str) -> None:
    line = CLEAN[language].split(".")[0]
    again = "\n".join([line, line.upper() + "!", f"  «{line}»"] * 6)
    assert judged(again, language) == "repetition.repeated_lines"
    assert judged(again.replace("\n", " "), language) == "repetition.repeated_runs"


def test_a_text_with_its_own_copy_below_falls_only_if_most_lines_are_copies() -> None:
    sentences = CLEAN["en"].split(".")
    copies = "\n".join(sentences + sentences)
    share = Repetition().judge(batch([copies], ["en"])).measures["repetition.repeated_lines"][0]
    assert share == pytest.approx(0.5)
    assert not Repetition(max_repeated_runs=1).judge(batch([copies], ["en"])).drop[0]
    assert Repetition(max_repeated_lines=0.49).judge(batch([copies], ["en"])).drop[0]


def test_template_lists_fall() -> None:
    names = [f"{first}{last}" for first in ("Та", "Ли", "Бе", "Су", "Вет") for last in ("русса", "нинка", "хменка")]
    rivers = "\n".join(f"{name} — одна из многих рек, протекающих по территории России." for name in names)
    assert judged(rivers, "ru") in ("repetition.repeated_runs", "repetition.richness")
    friends = "\n".join(f"{name} — моего друга зовут {name}." for name in names)
    assert judged(friends, "ru") == "repetition.top_pair"


def test_a_list_of_words_without_grammar_falls_only_in_its_language() -> None:
    words = " ".join(f"word{number}" for number in range(60))
    assert judged(words, "en") == "repetition.stop_words"
    assert judged(f"{words} of of", "en") == "repetition.stop_words"
    assert judged(f"{words} the of", "en") == ""
    assert judged(words, "de") == ""


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("repeated_lines", "max_repeated_lines"),
        ("repeated_runs", "max_repeated_runs"),
        ("top_pair", "max_top_pair"),
        ("top_word", "max_top_word"),
        ("richness", "min_richness"),
    ],
)
def test_a_text_at_the_bound_stays_and_beyond_it_falls_by_that_measure(name: str, bound: str) -> None:
    text = "\n".join(["a b c d e f", "g h i j k l"] * 4 + ["m n o a a a"])
    open_bounds = {key: 1.0 for key in Repetition.model_fields if key.startswith("max_")} | {"min_richness": 0.0}
    value = float(Repetition(min_words=1).judge(batch([text], [""])).measures[f"repetition.{name}"][0])
    beyond = value + 1e-9 if bound.startswith("min") else value - 1e-9
    at_bound = Repetition.model_validate({**open_bounds, "min_words": 1, bound: value}).judge(batch([text], [""]))
    over = Repetition.model_validate({**open_bounds, "min_words": 1, bound: beyond}).judge(batch([text], [""]))
    assert not at_bound.drop[0]
    assert over.drop[0]
    assert over.cause is not None
    assert over.cause[0] == f"repetition.{name}"


def spread(word: str, times: int, total: int) -> str:
    """So many times a word among words of which each stands once, `total` words in all."""
    parts = [[word] for _ in range(times)]
    for number in range(total - times * len(word.split())):
        parts[number % times].append(f"w{number}")
    return " ".join(" ".join(part) for part in parts)


def lines(different: int, again: int) -> str:
    """Different lines of three words, then some of them again, each beside another one than before."""
    made = [f"a{number} b{number} c{number}" for number in range(different)]
    return "\n".join(made + [made[7 * number % different] for number in range(again)])


def drawn(different: int) -> str:
    """A hundred words, so many different ones."""
    draw = random.Random(1)
    words = [f"w{number}" for number in range(different)]
    return " ".join(draw.sample(words + draw.choices(words, k=100 - different), 100))


def circle(different: int) -> str:
    """104 words, a hundred runs of five: different ones and then the first of them again, in the same order."""
    words = [f"w{number}" for number in range(different)]
    return " ".join((words + words)[:104])


@pytest.mark.parametrize(
    ("inside", "outside", "measure", "value"),
    [
        (lines(20, 20), lines(20, 21), "repeated_lines", 60 / 120),
        (circle(60), circle(59), "repeated_runs", 40 / 100),
        (spread("x y", 12, 101), spread("x y", 13, 101), "top_pair", 12 / 100),
        (spread("x", 25, 100), spread("x", 26, 100), "top_word", 25 / 100),
        (drawn(30), drawn(29), "richness", 30 / 100**0.5),
    ],
)
def test_the_bounds_that_the_settings_name(inside: str, outside: str, measure: str, value: float) -> None:
    verdict = Repetition().judge(batch([inside, outside], ["", ""]))
    assert verdict.cause.tolist() == ["", f"repetition.{measure}"]
    assert verdict.measures[f"repetition.{measure}"][0] == pytest.approx(value)
