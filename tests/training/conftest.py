"""A tiny run on the token folders of the golden tokenizer."""

from pathlib import Path

import pytest

from support import MakeSettings, settings_values
from yalm.config import apply_override
from yalm.training.settings import TrainSettings


@pytest.fixture
def make_settings(token_folders: dict[str, Path], tmp_path: Path) -> MakeSettings:
    """Settings of the tiny run, with overrides such as `"batch.sequences=4"`."""

    def make(*overrides: str, output: str = "run") -> TrainSettings:
        values = settings_values(token_folders, tmp_path / output)
        for override in overrides:
            apply_override(values, override)
        return TrainSettings.parse(values, "test")

    return make
