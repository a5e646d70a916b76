"""Offers and notices fall, talk of buying something does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from made_up import text
from yalm.corpus.document import Document, to_table
from yalm.corpus.rules.boilerplate import Boilerplate
from yalm.corpus.rules.rule import Batch, Verdict

OFFERS = (
    "Купить дёшево! Скидки только сегодня, доставка бесплатная. Закажите товар в нашем магазине, акция и распродажа!",
    "Buy now and save! Best price guaranteed, free shipping on every order. Subscribe to our newsletter for discounts.",
)
TALK = (
    "Вчера я хотел купить хлеба, но магазин на углу был закрыт, и мы пошли пешком до самого рынка за рекой.",
    "She could not remember the price of the house, nor who had wanted to buy it in that long and hungry winter.",
)


def verdict(texts: list[str], rule: Boilerplate = Boilerplate()) -> Verdict:  # noqa: B008
    return rule.judge(Batch(to_table([Document(t, str(i), "s") for i, t in enumerate(texts)], "web", 0)))


def test_offers_fall_and_talk_stays() -> None:
    assert verdict([*OFFERS, *TALK]).drop.tolist() == [True, True, False, False]
    assert set(verdict(list(OFFERS)).cause) == {"boilerplate.words"}


def test_the_share_is_that_of_words() -> None:
    measured = verdict(["buy order a b c d e f g h", "buy, BUY; Купить-купить!", "sale", ""])
    assert measured.measures["boilerplate.words"].tolist() == [0.2, 1.0, 1.0, 0.0]
    assert not measured.drop.any()  # too few words, or too few different ones


def test_different_words_must_meet() -> None:
    words = "buy order discount sale"
    assert verdict([f"{words} " * 3]).drop.tolist() == [True]
    assert verdict([f"{words} " * 3], Boilerplate(min_different=5)).drop.tolist() == [False]
    assert verdict(["sale " * 12]).drop.tolist() == [False]


@pytest.mark.parametrize("words", ["купить скидка доставка акция", "buy discount shipping promo"])
@pytest.mark.parametrize(
    ("different", "total", "falls"), [(4, 32, False), (4, 31, True), (4, 10, True), (4, 9, False), (3, 10, False)]
)
def test_offers_at_the_thresholds(words: str, different: int, total: int, falls: bool) -> None:
    text = " ".join(words.split()[:different] + ["слово"] * (total - different))
    assert verdict([text]).drop.tolist() == [falls]


@pytest.mark.parametrize("language", ["ru", "en"])
def test_made_up_texts_stay(language: str) -> None:
    assert not verdict([text(seed, language) for seed in range(50)]).drop.any()


@given(st.lists(st.sampled_from([*OFFERS, *TALK, "", "одно слово"]), min_size=1, max_size=6), st.data())
def test_a_batch_cut_in_two_is_judged_alike(texts: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(texts)))
    whole, parts = verdict(texts), [verdict(texts[:cut]), verdict(texts[cut:])]
    assert np.array_equal(whole.drop, np.concatenate([part.drop for part in parts]))
