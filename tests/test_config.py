"""Settings: what is saved is read back; what is wrong is said in one line with the nearest key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from yalm.config import Settings, apply_override
from yalm.errors import YalmError


class Inner(Settings):
    rate: float = Field(default=1e-3, gt=0)
    names: tuple[str, ...] = ()


class Outer(Settings):
    seed: int = 0
    title: str = "a"
    limit: int | None = None
    inner: Inner = Inner()
    items: tuple[Inner, ...] = ()


INNERS = st.builds(
    Inner,
    rate=st.floats(min_value=1e-300, max_value=1e300),
    names=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]))).map(tuple),
)


@given(
    st.builds(
        Outer,
        seed=st.integers(-(2**62), 2**62),
        title=st.text(st.characters(codec="utf-8", exclude_categories=["Cs"])),
        limit=st.none() | st.integers(0, 9),
        inner=INNERS,
        items=st.lists(INNERS, max_size=3).map(tuple),
    )
)
def test_saved_settings_are_read_back(tmp_path_factory: pytest.TempPathFactory, settings: Outer) -> None:
    path = tmp_path_factory.mktemp("settings") / "settings.toml"
    path.write_text(settings.to_toml(), encoding="utf-8", newline="\n")
    assert Outer.load(path) == settings


def test_overrides_are_toml_values_or_text() -> None:
    settings = Outer.load(None, ["seed=7", "inner.rate=1e-4", "title=plain text", 'inner.names=["x", "y"]'])
    assert settings == Outer(seed=7, title="plain text", inner=Inner(rate=1e-4, names=("x", "y")))


def test_a_whole_float_is_an_integer() -> None:
    assert Outer.load(None, ["seed=20e6"]).seed == 20_000_000


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sed=1"], "unknown key 'sed'; did you mean 'seed'"),
        (["inner.rat=1"], "unknown key 'inner.rat'; did you mean 'rate'"),
        (["xyzzy=1"], "valid here: inner, items, limit, seed, title"),
        (["inner.rate=0"], "inner.rate = 0: input should be greater than 0"),
        (["seed=many"], "seed = 'many': input should be a valid integer"),
        (["items=[{rte=1}]"], "unknown key 'items.0.rte'; did you mean 'rate'"),
        (["seed"], "write it as section.key=value"),
        (["=3"], "write it as section.key=value"),
        (["seed=1", "seed.x=2"], "'seed' is a value, not a section"),
    ],
)
def test_mistakes_are_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(YalmError) as error:
        Outer.load(None, overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot read"), (b"seed = = 1", "not valid TOML"), (b"\xff\xfe", "not valid TOML")]
)
def test_unreadable_files_are_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(YalmError, match=message) as error:
        Outer.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().seed = 1  # type: ignore[misc]


def test_an_override_makes_missing_sections() -> None:
    values: dict[str, object] = {}
    apply_override(values, "a.b.c=1")
    assert values == {"a": {"b": {"c": 1}}}
