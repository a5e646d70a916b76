"""Made-up documents for the tests of the corpus: Russian and English sentences out of a few words, by a seed."""

import random

NOUNS = {
    "ru": "дом река город книга дорога зима письмо поезд вечер окно сад море учитель друг работа школа лес снег",
    "en": "house river town book road winter letter train evening window garden sea teacher friend work school snow",
}
VERBS = {
    "ru": "стоит видит ждёт помнит любит держит ищет находит теряет слышит рисует пишет читает строит",
    "en": "stands sees waits remembers loves holds seeks finds loses hears draws writes reads builds",
}
SMALL = {"ru": "и в не на с что по как из у за от но к", "en": "the of and to in that with for on at by it is as"}
PLACES = {
    "ru": "утром днём ночью весной летом осенью зимой вчера сегодня",
    "en": "today yesterday slowly again often never",
}


def sentence(draw: random.Random, language: str) -> str:
    """A sentence of seven to sixteen words, with small words between the others."""
    kinds = (NOUNS, VERBS, SMALL, NOUNS, SMALL, NOUNS, PLACES)
    count = draw.randrange(7, 17)
    words = [draw.choice(kinds[i % len(kinds)][language].split()) for i in range(count)]
    return " ".join(words).capitalize() + draw.choice(".....!?")


def text(seed: int, language: str = "ru", sentences: int = 12) -> str:
    """Paragraphs of three sentences."""
    draw = random.Random(f"{seed}/{language}")
    lines = [sentence(draw, language) for _ in range(sentences)]
    return "\n".join(" ".join(lines[i : i + 3]) for i in range(0, sentences, 3))
