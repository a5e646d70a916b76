"""Our C++ where it cannot be compiled."""

import logging
from pathlib import Path

import pytest

from yalm.model.ops import native

NAMES = pytest.mark.parametrize("name", list(native.FUNCTIONS))


@NAMES
def test_without_a_compiler_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: native.Name
) -> None:
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    with caplog.at_level(logging.WARNING, "yalm"):
        assert native.library.__wrapped__(name) is None
    assert native.SLOWER[name] in caplog.text
    assert "install g++" in caplog.text


@NAMES
def test_a_compiler_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, name: native.Name
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("-no-such-flag",))
    with caplog.at_level(logging.WARNING, "yalm"):
        assert native.library.__wrapped__(name) is None
    assert "failed" in caplog.text
    assert list((tmp_path / "yalm").iterdir()) == []
