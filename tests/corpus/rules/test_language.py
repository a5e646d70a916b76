"""Languages found, at their threshold and in texts too short to tell."""

import numpy as np

from made_up import ENGLISH, RUSSIAN, batch_of
from yalm.corpus.rules.language import Language

GERMAN = "Der Nebel lag über dem Fluss, und der alte Fährmann hörte nur das Wasser. " * 4


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
