"""Settings: frozen, validated objects read from TOML, with `section.key=value` overrides.

Every settings class of the house derives from `Settings`. A wrong key, type or value ends in one
`YalmError` that names the key, says what is wrong and suggests the nearest valid one. The price of
one validation library for all is that defaults and bounds stand in the classes, not in the code that uses them.
"""

import difflib
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from yalm.errors import YalmError


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are errors, defaults are validated too."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    @classmethod
    def load(cls, file: str | Path | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a TOML file (or nothing), apply `section.key=value` overrides, validate.

        Override values are read as TOML (`3e-4`, `true`, `[1, 2]`) and, where that fails, as plain text.
        Raises YalmError for an unreadable file, a malformed override, or a wrong key, type or value.
        """
        values = read_toml(file) if file is not None else {}
        for override in overrides:
            apply_override(values, override)
        return cls.parse(values, source=str(file) if file is not None else "settings")

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Validate plain values; `source` says in the error where they came from."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise YalmError(f"{source}: {_explain(cls, error)}") from None

    def to_toml(self) -> str:
        """All settings, defaults included, as TOML that `load` reads back to an equal object."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def read_toml(file: str | Path) -> dict[str, Any]:
    """The content of a TOML file; YalmError if it cannot be read or is not TOML."""
    try:
        with open(file, "rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise YalmError(f"{file}: cannot read the settings file ({error.strerror}); check the path") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise YalmError(f"{file}: not valid TOML ({error}); mend that line") from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in nested `values`, in place."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise YalmError(f"override {override!r}: write it as section.key=value, for example optimizer.lr=3e-4")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    node = values
    for key in keys[:-1]:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise YalmError(f"override {override!r}: {key!r} is a value, not a section; set it whole")
        node = child
    node[keys[-1]] = value


def nearest(word: str, candidates: Sequence[str]) -> str:
    """A suggestion `; did you mean 'x'?`, or the list of what is valid if nothing is near."""
    close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; valid here: {', '.join(sorted(candidates))}"


def _explain(cls: type[Settings], error: ValidationError) -> str:
    """The first problem of a validation as one line."""
    problem = error.errors(include_url=False)[0]
    location, classes = _resolve(cls, [str(part) for part in problem["loc"]])
    where = ".".join(location) or "settings"
    if problem["type"] == "extra_forbidden":
        valid = sorted({key for each in classes for key in each.model_fields})
        return f"unknown key {where!r}{nearest(location[-1], valid)}"
    message = problem["msg"].removeprefix("Value error, ").replace("\n", " ")
    if problem["type"] == "missing":
        return f"{where!r} is required; add it or set {where}=VALUE"
    if not location:
        return message[0].lower() + message[1:]
    return f"{where} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _resolve(cls: type[Settings], location: Sequence[str]) -> tuple[list[str], list[type[Settings]]]:
    """Where a problem is, as a person writes it, and the settings classes whose keys are valid beside its last part.

    In a union of classes told apart by a field such as `kind`, pydantic puts the value of that field into the location.
    """
    path: list[str] = []
    beside: list[type[Settings]] = [cls]
    inside: list[type[Settings]] = [cls]
    for part in location:
        chosen = [each for each in inside if part in [field.default for field in each.model_fields.values()]]
        if len(inside) > 1 and chosen:
            inside = chosen
            continue
        fields = [each.model_fields[part] for each in inside if part in each.model_fields]
        path.append(part)
        beside = inside
        if fields:
            inside = _settings_in(fields[0].annotation)
    return path, beside


def _settings_in(annotation: Any) -> list[type[Settings]]:
    """The settings classes inside an annotation such as `X`, `X | None`, `X | Y` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _settings_in(argument)]
