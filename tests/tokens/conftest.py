"""A small tokenizer with byte pieces, and documents to encode."""

import json
from pathlib import Path

import pytest

from yalm.tokens.tokenizer import Tokenizer, train_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "yalm-tiny"
TEXTS = [
    f"Документ номер {number}.\nСтрока   с пробелами\tи табуляцией.\n\nDocument {number}: [code]:\n    x = {number}\n"
    * (1 + number % 7)
    for number in range(120)
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tokenizer.model", vocab_size=420)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def golden() -> Tokenizer:
    return Tokenizer(GOLDEN / "vocab.sp")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """One JSON-lines file of TEXTS."""
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text, "meta": {}}) + "\n" for text in TEXTS), encoding="utf-8")
    return file
