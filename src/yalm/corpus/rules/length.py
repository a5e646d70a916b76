"""Too short, too long, or without natural sentences.

Sentences are split by sentencex, which knows the abbreviations of Russian and English and is fast enough (100 MB a
second) to split every text. A sentence is natural if it begins like one, ends like one, and has words in between.
"""

from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from yalm.corpus.rules.counts import LEADS, LETTERS, SPACES, Bytes, sums
from yalm.corpus.rules.rule import Batch, ByLanguage, Rule, Verdict, decide

_OPENING = r"""["'«“„‘(\[—–*_-]"""
_CLOSING = r"""["'»”“’)\]*_]"""
_NATURAL = rf"(?s)\A\s*(?:{_OPENING}+\s*)*[\p{{Lu}}\d].*[.!?…]{_CLOSING}*\s*\z"
_INSIDE = r"\pL\pM'’-"  # of a word: what parts two words begins with something else
_WORDS = rf"(?:\pL[{_INSIDE}]*[^{_INSIDE}][^\pL]*){{%d}}\pL"


class Length(Rule):
    """Drops texts that are too short, too long, or have too few natural sentences.

    A natural sentence begins with a capital or a digit, possibly after a quote or dash, ends with terminal
    punctuation, has at least `sentence_words` words, and is made of letters for the most part. The default lengths
    only drop what says nothing; Russian has no articles, hence its lower bound on words. Texts shorter than
    `sentences_from` words, quotes and fragments of chats, owe no sentence. With these bounds 0.4 % of the Russian and
    0.3 % of the English texts they were set on fall; for pages of the web ask for more.
    """

    name: ClassVar[str] = "length"

    min_characters: ByLanguage = Field(default=ByLanguage(ru=30, en=30), description="fewest characters")
    max_characters: ByLanguage = Field(default=ByLanguage(ru=5e6, en=5e6), description="most characters")
    min_words: ByLanguage = Field(default=ByLanguage(ru=5, en=6), description="fewest words")
    max_words: ByLanguage = Field(default=ByLanguage(ru=8e5, en=1e6), description="most words")
    min_sentences: ByLanguage = Field(default=ByLanguage(ru=1, en=1), description="fewest natural sentences")
    sentences_from: int = Field(default=200, ge=0, description="words from which a text must have natural sentences")
    sentence_words: int = Field(default=4, ge=1, le=50, description="fewest words of a natural sentence")
    sentence_letters: float = Field(default=0.7, ge=0, le=1, description="least share of letters in a natural sentence")

    def judge(self, batch: Batch) -> Verdict:
        """Measures length.characters, length.words and length.sentences. An empty text always falls."""
        languages = batch.languages
        words = batch.words.counts.astype(np.float64)
        sentences = self.sentences(batch.texts, languages)
        measures = {
            "length.characters": pc.utf8_length(batch.texts).to_numpy(zero_copy_only=False).astype(np.float64),
            "length.words": words,
            "length.sentences": sentences.astype(np.float64),
        }
        min_sentences = np.where(words >= self.sentences_from, self.min_sentences.of(languages), np.nan)
        limits = {
            "length.characters": (np.fmax(self.min_characters.of(languages), 1), self.max_characters.of(languages)),
            "length.words": (self.min_words.of(languages), self.max_words.of(languages)),
            "length.sentences": (min_sentences, None),
        }
        return decide(measures, limits)

    def sentences(self, texts: pa.Array, languages: NDArray[np.str_]) -> NDArray[np.int64]:
        """How many natural sentences each text has."""
        import sentencex

        split = [
            sentencex.segment("ru" if language == "ru" else "en", text)
            for language, text in zip(languages.tolist(), texts.to_pylist(), strict=True)
        ]
        every = pa.array([sentence for sentences in split for sentence in sentences], pa.large_string())
        of_bytes = Bytes(every)
        letters, visible = of_bytes.of(LEADS & LETTERS), of_bytes.of(LEADS & ~SPACES)
        natural = letters >= self.sentence_letters * visible
        for pattern in (_NATURAL, _WORDS % (self.sentence_words - 1)):
            natural &= pc.match_substring_regex(every, pattern).to_numpy(zero_copy_only=False)
        offsets = np.concatenate(([0], np.cumsum([len(sentences) for sentences in split], dtype=np.int64)))
        return sums(natural, offsets)
