"""The reference's model as a language model, in memory and as a folder."""

from pathlib import Path

import pytest

from support import GOLDEN, load_golden_model
from yalm.inference.language_model import LanguageModel
from yalm.model.folder import save_folder
from yalm.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    return LanguageModel(load_golden_model(), Tokenizer(GOLDEN / "vocab.sp"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_golden_model()
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_folder(path, model.config, model.state_dict(), GOLDEN / "vocab.sp")
    return path
