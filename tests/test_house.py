"""The floors of the house: imports run downward only."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "yalm"
# Each room with the rooms it may import, besides the ground.
GROUND = {"config", "errors", "atomic", "progress", "streams"}
ROOMS = {
    "config": {"errors"},
    "errors": set(),
    "progress": set(),
    "streams": {"errors"},
    "atomic": set(),
    "model": set(),
    "tokens": set(),
    "corpus": {"tokens"},
    "planning": {"model"},
    "training": {"model", "tokens"},
    "profiling": {"model", "tokens", "planning", "training"},
    "inference": {"model", "tokens"},
    "demo": {"model", "tokens", "training", "inference"},
    "cli": {"model", "tokens", "corpus", "planning", "training", "profiling", "inference", "demo"},
    "__main__": {"cli"},
    "__init__": {"inference"},
}
ABOVE_GROUND = set(ROOMS) - GROUND
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(file: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: write imports from the root"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        rooms |= {name.split(".")[1] for name in names if name.startswith("yalm.")}
    return rooms


def test_every_room_is_on_the_plan() -> None:
    assert {room_of(file) for file in FILES} <= set(ROOMS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downward(file: Path) -> None:
    room = room_of(file)
    allowed = ROOMS[room] | {room} | (GROUND if room in ABOVE_GROUND else set())
    assert imported_rooms(file) <= allowed


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_chapter_is_too_long(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 500
