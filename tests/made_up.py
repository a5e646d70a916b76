"""Made-up documents for the tests of the corpus: sentences out of a few words, by a seed, and two that were written."""

import random

from yalm.corpus.document import Document, to_table
from yalm.corpus.rules.rule import Batch

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


RUSSIAN = (
    "Утром над рекой стоял туман, и старый паром двигался почти на ощупь. Паромщик Семён Ильич слушал воду: по тому, "
    "как она била в борт, он узнавал, далеко ли до берега.\n\n«Сегодня никого не будет», — сказал он внуку и закурил. "
    "Но едва солнце поднялось над лесом, на пристани показались двое. Один нёс чемодан, перевязанный верёвкой, другой "
    "вёл за руку девочку лет пяти.\n\nОни молча взошли на паром. Девочка смотрела на воду и спросила, глубоко ли. "
    "Семён Ильич ответил, что в половодье дна не достать и самым длинным шестом, а летом коровы переходят вброд. "
    "Потом все долго молчали, и только скрипел канат да перекликались в тумане птицы."
)
ENGLISH = (
    "The observatory stood at the end of a road that nobody had repaired since the war. In winter the keeper walked up "
    "twice a week, carrying bread, candles and the post.\n\n“You are late,” said the astronomer, although he had no "
    "clock. He was measuring the brightness of a single star, as he had done every clear night for eleven years, and "
    "he was not sure whether it had changed at all.\n\nThe keeper put the bread on the table and looked at the long "
    "columns of figures. It seemed to her that a man could spend his time in worse ways. When she went down again, the "
    "valley was full of fog, and only the church tower and the tops of three poplars could be seen above it."
)


def batch_of(texts: list[str], language: str = "ru") -> Batch:
    """Texts as documents of one language, for a rule to judge."""
    documents = [Document(text, str(i), "test", language) for i, text in enumerate(texts)]
    return Batch(to_table(documents, "part", 0))
