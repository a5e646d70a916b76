"""Streams of any compression, against the compressors' own; injected damage; bounded memory."""

import bz2
import gzip
import io
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from yalm.errors import YalmError
from yalm.streams import BrokenFile, LongLine, open_bytes, read_lines, sample, stem

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
    "": bytes,
}
endings = pytest.mark.parametrize("ending", COMPRESS)
compressions = pytest.mark.parametrize("ending", [ending for ending in COMPRESS if ending])


def written(folder: Path, ending: str, *members: bytes) -> Path:
    file = folder / f"a.txt{ending}"
    file.write_bytes(b"".join(COMPRESS[ending](member) for member in members))
    return file


def lines_until_broken(file: Path, limit: int = 1 << 20) -> tuple[list[bytes], str]:
    lines: list[bytes] = []
    try:
        for number, line in read_lines(file, lambda size: None, limit):
            lines.append(line)
            assert number == len(lines)
    except BrokenFile as error:
        return lines, error.reason
    return lines, ""


@endings
def test_members_in_a_row_are_one_stream_and_every_byte_is_counted(tmp_path: Path, ending: str) -> None:
    first, second = random.Random(0).randbytes(700_000), b"the end\n" * 3
    file = written(tmp_path, ending, first, b"", second)
    sizes: list[int] = []
    with open_bytes(file, sizes.append) as stream:
        assert stream.read() == first + second
        assert stream.read(1) == b""
    assert sum(sizes) == file.stat().st_size


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line and b"\r" not in line)), st.booleans())
@pytest.mark.parametrize("ending", COMPRESS)
def test_lines_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, ending: str, lines: list[bytes], windows: bool
) -> None:
    content = b"".join(line + (b"\r\n" if windows else b"\n") for line in lines)
    file = written(tmp_path_factory.mktemp("lines"), ending, content[:7], content[7:])
    assert lines_until_broken(file) == (lines, "")


def test_lines_longer_than_a_chunk(tmp_path: Path) -> None:
    lines = [bytes([65 + i]) * size for i, size in enumerate([3, 600_000, 0, 1 << 18, (1 << 18) - 1, 5, 900_000])]
    assert lines_until_broken(written(tmp_path, ".zst", b"\n".join(lines))) == (lines, "")


@compressions
def test_a_cut_file_gives_all_before_the_cut_and_then_the_reason(tmp_path: Path, ending: str) -> None:
    lines = [b"%d" % number for number in range(1000)]
    file = written(tmp_path, ending, b"\n".join(lines) + b"\n", random.Random(1).randbytes(5000))
    file.write_bytes(file.read_bytes()[:-40])
    found, reason = lines_until_broken(file)
    assert found[:1000] == lines
    assert reason == "compressed data ends early"
    with open_bytes(file, lambda size: None) as stream:
        assert stream.read(1 << 20).startswith(b"\n".join(lines))
        with pytest.raises(BrokenFile):
            stream.read(1)
        with pytest.raises(BrokenFile):
            stream.read()


@compressions
def test_a_flipped_byte_gives_the_members_before_it_and_then_the_reason(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path, ending, b"good\n" * 100, b"bad\n" * 100_000)
    data = bytearray(file.read_bytes())
    start = len(COMPRESS[ending](b"good\n" * 100))
    data[start : start + 20] = b"\xff" * 20
    file.write_bytes(data)
    found, reason = lines_until_broken(file)
    assert found == [b"good"] * 100
    assert reason == "broken compressed data"


@compressions
def test_members_may_be_padded_with_zeros(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path, ending, b"one\n")
    file.write_bytes(file.read_bytes() + bytes(600) + COMPRESS[ending](b"two\n") + bytes(20_000))
    assert lines_until_broken(file) == ([b"one", b"two"], "")


@endings
def test_streams_read_no_further_than_asked(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path, ending, b"first\n" + random.Random(2).randbytes(4_000_000))
    sizes: list[int] = []
    assert next(iter(read_lines(file, sizes.append))) == (1, b"first")
    assert 0 < sum(sizes) < 1_500_000


@endings
def test_a_line_beyond_the_limit_is_an_error(tmp_path: Path, ending: str) -> None:
    file = written(tmp_path, ending, b"short\n", b"x" * 2_000_000)
    assert lines_until_broken(file, limit=1000) == ([b"short"], "line too long")
    with pytest.raises(LongLine):
        list(read_lines(written(tmp_path, ending, b"x" * 1001 + b"\n"), lambda size: None, limit=1000))
    assert lines_until_broken(written(tmp_path, ending, b"x" * 1000 + b"\n"), limit=1000) == ([b"x" * 1000], "")


@given(st.binary(max_size=300), st.lists(st.integers(0, 9), max_size=60))
def test_reads_of_any_size_give_the_bytes_in_order(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, sizes: list[int]
) -> None:
    file = written(tmp_path_factory.mktemp("reads"), ".zst", content[:100], content[100:])
    reference = io.BytesIO(content)
    with open_bytes(file, lambda size: None) as stream:
        assert [stream.read(size) for size in sizes] == [reference.read(size) for size in sizes]
        assert stream.read() == reference.read()


def test_text_can_be_read_over_a_stream(tmp_path: Path) -> None:
    file = written(tmp_path, ".gz", "раз\r\nдва\n".encode())
    with io.TextIOWrapper(open_bytes(file, lambda size: None), encoding="utf-8", newline="") as text:
        assert list(text) == ["раз\r\n", "два\n"]


def test_a_missing_file_is_a_persons_error(tmp_path: Path) -> None:
    with pytest.raises(YalmError, match="cannot read the file"):
        list(read_lines(tmp_path / "none.gz", lambda size: None))


def test_stems_and_samples() -> None:
    assert [stem(Path(name)) for name in ("00.jsonl.zst", "a.b.txt", "plain", "x.warc.gz")] == [
        "00",
        "a.b",
        "plain",
        "x",
    ]
    assert sample("первая строка\nвторая\0".encode()) == "первая строка вторая\ufffd"
    assert sample(b"\xff\xfe") == "\ufffd\ufffd"
    assert sample("\ud800x" + "y" * 500) == "\ufffdx" + "y" * 198
