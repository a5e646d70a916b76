"""Languages found, at their threshold and in texts too short to tell."""

import numpy as np
import pytest

from made_up import ENGLISH, RUSSIAN, batch_of
from yalm.corpus.rules import language as module
from yalm.corpus.rules.language import Language

GERMAN = "Der Nebel lag über dem Fluss, und der alte Fährmann hörte nur das Wasser. " * 4
GREEK = "Η ομίχλη σκέπαζε το ποτάμι και ο γέρος βαρκάρης άκουγε μόνο το νερό που χτυπούσε τα ξύλα. " * 4
HINDI = "आज सुबह नदी पर कोहरा था और बूढ़ा माँझी केवल पानी की आवाज़ सुन रहा था, जो नाव से टकरा रहा था। " * 4


class Told:
    """In the place of fastText: says one thing of every text and keeps what it was shown."""

    def __init__(self, language: str, probability: float) -> None:
        self.f, self.answer, self.shown = self, (probability, f"__label__{language}"), list[str]()

    def predict(self, text: str, *_: object) -> list[tuple[float, str]]:
        self.shown.append(text)
        return [self.answer]


def test_language_is_found_and_others_fall() -> None:
    batch = batch_of([RUSSIAN, ENGLISH, GERMAN, "Коротко.", "Short.", "123"], "")
    verdict = Language().judge(batch)
    assert verdict.columns["language"].to_pylist() == ["ru", "en", "de", "ru", "en", ""]
    assert verdict.drop.tolist() == [False, False, True, False, False, True]
    assert np.isnan(verdict.measures["language.confidence"]).tolist() == [False] * 3 + [True] * 3


def test_short_texts_have_the_language_of_their_source() -> None:
    assert Language().judge(batch_of(["Debian"], "ru")).columns["language"].to_pylist() == ["ru"]


def test_confidence_at_its_threshold() -> None:
    found = float(Language().judge(batch_of([ENGLISH], "en")).measures["language.confidence"][0])
    assert not Language(min_confidence=found).judge(batch_of([ENGLISH], "en")).drop[0]
    verdict = Language(min_confidence=float(np.nextafter(found, 1))).judge(batch_of([ENGLISH], "en"))
    assert verdict.cause.tolist() == ["language.confidence"]


@pytest.mark.parametrize("stated", ["ru", "en", ""])
def test_a_page_in_another_script_is_no_short_text(stated: str) -> None:
    verdict = Language().judge(batch_of([GREEK, HINDI], stated))
    assert verdict.columns["language"].to_pylist() == ["el", "hi"]
    assert verdict.cause.tolist() == ["language.other"] * 2


@pytest.mark.parametrize("cut", [-1, 0, 1])
def test_the_beginning_is_asked_about_from_two_hundred_bytes_of_letters(
    monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    told = Told("ru", 0.3 + cut / 100)
    monkeypatch.setattr(module, "_model", lambda: told)
    texts = ["az" * 99 + "A", "AZ" * 100, "1. [`{@] " + "жя" * 49 + "ё", "1. [`{@] " + "ҐЯ" * 50]
    verdict = Language().judge(batch_of([*texts, "ж" + "x" * 500], "en"))
    assert np.isnan(verdict.measures["language.confidence"]).tolist() == [True, False, True, False, False]
    assert told.shown == [texts[1] + "\n", texts[3] + "\n", "ж" + "x" * 299 + "\n"]
    assert verdict.cause.tolist() == [
        "language.confidence" if cut < 0 and text in (1, 3, 4) else "" for text in range(5)
    ]


@pytest.mark.parametrize(
    ("text", "language"), [("абв ab", "ru"), ("абвг abcde", "en"), ("a 1", "en"), ("я 1", "ru"), ("12 «—»", "")]
)
def test_the_script_of_most_letters_decides_on_short_texts(text: str, language: str) -> None:
    assert Language().judge(batch_of([text], "")).columns["language"].to_pylist() == [language]
