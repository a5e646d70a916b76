"""Fixtures of several rooms."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from support import GOLDEN, load_golden_model, write_texts
from yalm.model.network import Yalm

# Examples are fast; the machine may not be. Nothing here judges time. A submission is judged on the same examples each
# time; runs by hand search on.
settings.register_profile("yalm", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("yalm")


@pytest.fixture(scope="session")
def golden() -> Path:
    return GOLDEN


@pytest.fixture
def golden_model() -> Yalm:
    return load_golden_model()


@pytest.fixture(scope="session")
def token_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Token folders `first` and `second` to train on and `held_out` to validate on, by the golden tokenizer."""
    from yalm.tokens.build import build_shards

    root = tmp_path_factory.mktemp("tokens")
    folders = {}
    for seed, name in enumerate(("first", "second", "held_out")):
        folders[name] = root / name
        build_shards([write_texts(root, seed)], GOLDEN / "vocab.sp", folders[name], language=name)
    return folders
