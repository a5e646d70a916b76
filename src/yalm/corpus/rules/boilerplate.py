"""Advertisements and the notices of web pages, told by their words.

A coarse rule beside the classifier of quality, for texts that are nothing but an offer: what it counts are words of
buying and subscribing, and of cookies and rights, in the forms pages use. It looks at no grammar, so it drops only
where every eighth word is one of them and several different ones meet.
"""

from functools import lru_cache
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from yalm.corpus.rules.counts import HashSet, equal_runs, owners, share, sums
from yalm.corpus.rules.rule import Batch, Rule, Verdict
from yalm.corpus.words import Words

_WORDS = (
    "купить купите покупайте заказать закажите заказ заказа скидка скидки скидку скидок скидкой акция акции "
    "распродажа распродажи цена цене цены ценам ценами дешево дёшево дешевле недорого выгодно выгодные доставка "
    "доставкой доставки доставку оплата оплаты оплату корзину корзина каталог магазин магазина магазине звоните "
    "позвоните подпишитесь подписывайтесь подписка подписку бесплатно бесплатная бесплатный бесплатной руб рублей "
    "опт оптом гарантия гарантией ассортимент наличии товар товары товаров товара предложение спешите успейте "
    "реклама промокод кэшбэк рассрочка рассрочку кредит менеджер консультация консультацию buy order discount "
    "discounts sale sales cheap cheapest price prices pricing shipping delivery checkout cart shop store "
    "subscribe subscription newsletter free offer offers deal deals coupon promo bestseller warranty refund "
    "satisfaction guaranteed limited hurry bonus cookie cookies куки privacy gdpr конфиденциальности copyright "
    "reserved защищены login войти зарегистрироваться регистрация "
)


class Boilerplate(Rule):
    """Drops texts made of the words of offers and notices.

    Of 65,000 Russian and English texts without advertisements one fell, a joke about a sale. How many advertisements
    it finds is not measured: that needs pages of the web with labels.
    """

    name: ClassVar[str] = "boilerplate"

    max_share: float = Field(
        default=0.125, ge=0, le=1, description="largest share of a text's words that are of such kind"
    )
    min_different: int = Field(default=4, ge=1, description="different words of the kind that must meet")
    words_from: int = Field(default=10, ge=1, description="words from which texts are looked at")

    def judge(self, batch: Batch) -> Verdict:
        """Measures boilerplate.words, their share."""
        words = batch.words
        hits = _offers().holds(words.hashes.values)
        places = np.flatnonzero(hits)
        order, starts = equal_runs(words.hashes.values[places], owners(words.offsets)[places])
        first = np.zeros(len(hits), bool)
        first[places[order[starts]]] = True
        shares = share(sums(hits, words.offsets), words.counts)
        drop = (shares > self.max_share) & (sums(first, words.offsets) >= self.min_different)
        drop &= words.counts >= self.words_from
        return Verdict(drop, np.where(drop, "boilerplate.words", ""), {"boilerplate.words": shares})


@lru_cache(maxsize=1)
def _offers() -> HashSet:
    return HashSet(Words(pa.array([_WORDS], pa.large_string())).hashes.values)
