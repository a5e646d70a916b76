"""Bytes read past the system's cache are those of the file, whatever the system gives at a time or refuses."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.shards import DIRECT, PAGE, read_bytes

LENGTH = 5 * PAGE + 1234
BYTES = torch.randint(256, (LENGTH,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
needs_direct = pytest.mark.skipif(not DIRECT, reason="this system reads through its cache only")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bytes") / "file"
    file.write_bytes(BYTES.numpy().tobytes())
    return file


def memory(size: int, address: int) -> tuple[Tensor, Tensor]:
    """A tensor of that size at an address of that remainder by pages; and what it is a part of, a page more a side."""
    around = torch.full((size + 3 * PAGE,), 77, dtype=torch.uint8)
    start = PAGE + (address - around.data_ptr()) % PAGE
    return around[start : start + size], around


def check(path: Path, offset: int, size: int, address: int) -> None:
    into, around = memory(size, address)
    assert read_bytes(path, offset, into, direct=True) == size
    assert torch.equal(into, BYTES[offset : offset + size])
    into.fill_(77)
    assert bool((around == 77).all())  # nothing beside it was written


spans = st.tuples(st.integers(0, LENGTH), st.integers(0, LENGTH)).map(sorted)


@given(spans, st.sampled_from([0, 0, 1, 64, 4095]))
def test_the_bytes_of_the_file(path: Path, span: list[int], shift: int) -> None:
    start, stop = span
    check(path, start, stop - start, start + shift)


@given(spans, st.lists(st.sampled_from([1, 512, 700, PAGE, 3 * PAGE]), min_size=1))
def test_reads_that_give_less_than_they_were_asked_for(path: Path, span: list[int], least: list[int]) -> None:
    read, counts = os.preadv, iter(least)
    start, stop = span

    def short(file: int, views: list[Any], offset: int) -> int:
        return read(file, [views[0][: next(counts, None)]], offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "preadv", short)
        check(path, start, stop - start, start)


@needs_direct
@pytest.mark.parametrize("refuses", ["open", "read"])
def test_file_systems_that_know_no_such_reads(path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str) -> None:
    open_file, read = os.open, os.preadv
    flags_of: dict[int, int] = {}
    refusals = []

    def refuse() -> None:
        refusals.append(refuses)
        raise OSError(errno.EINVAL, "Invalid argument")

    def opens(file: Path, flags: int) -> int:
        if flags & DIRECT and refuses == "open":
            refuse()
        number = open_file(file, flags & ~DIRECT)
        flags_of[number] = flags
        return number

    def reads(file: int, views: list[Any], offset: int) -> int:
        if flags_of[file] & DIRECT:
            refuse()
        return read(file, views, offset)

    monkeypatch.setattr(os, "open", opens)
    monkeypatch.setattr(os, "preadv", reads)
    check(path, 100, LENGTH - 200, 100)
    assert refusals == [refuses]


@needs_direct
@pytest.mark.parametrize(("shift", "direct"), [(0, True), (64, False)])
def test_whole_pages_come_past_the_cache(path: Path, monkeypatch: pytest.MonkeyPatch, shift: int, direct: bool) -> None:
    asked, open_file, read = [], os.open, os.preadv
    flags_of: dict[int, int] = {}

    def opened(file: Path, flags: int) -> int:
        number = open_file(file, flags & ~DIRECT)
        flags_of[number] = flags
        return number

    def reads(file: int, views: list[Any], offset: int) -> int:
        asked.append((offset, len(views[0]), bool(flags_of[file] & DIRECT)))
        return read(file, views, offset)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "preadv", reads)
    check(path, 100, 3 * PAGE, 100 + shift)
    pages = [(100, PAGE - 100, False), (PAGE, 2 * PAGE, True), (3 * PAGE, 100, False)]
    assert asked == (pages if direct else [(100, 3 * PAGE, False)])


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("offset", [LENGTH - 10, LENGTH - 2 * PAGE, 0, 2 * LENGTH])
def test_a_file_that_ends_too_soon(path: Path, direct: bool, offset: int) -> None:
    into, _ = memory(LENGTH + 1, offset)
    with pytest.raises(YalmError, match="file: is cut off; copy the file again"):
        read_bytes(path, offset, into, direct)


@pytest.mark.parametrize("direct", [False, True])
def test_a_disk_that_fails(path: Path, monkeypatch: pytest.MonkeyPatch, direct: bool) -> None:
    def fails(*arguments: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    into, _ = memory(2 * PAGE, 0)
    with pytest.raises(YalmError, match=r"file: cannot be read \(Input/output error\)"):
        read_bytes(path, 0, into, direct)
    with pytest.raises(YalmError, match="nowhere: cannot be read"):
        read_bytes(path.parent / "nowhere", 0, into, direct)
