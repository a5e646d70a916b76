"""Files of `torch.save`: what is read through the map and at the span is what was saved; untrusted ones are refused."""

import io
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.pickles import Ignored, load_contents, locate, map_bytes
from yalm.model.shards import Span

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def bytes_of(tensor: Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def bytes_at(span: Span | None) -> bytes:
    assert span is not None
    with open(span.path, "rb") as stream:
        stream.seek(span.offset)
        return stream.read(span.nbytes)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Tensor]:
    """Tensors of all types and sizes: some alone, some parts of a storage they share, some turned."""
    found: dict[str, Tensor] = {}
    for number in range(draw(st.integers(1, 5))):
        rows, columns = draw(st.integers(0, 40)), draw(st.integers(0, 40))
        base = torch.randn(rows, columns).to(draw(st.sampled_from(DTYPES)))
        found[f"whole.{number}"] = base
        first = draw(st.integers(0, rows))
        found[f"part.{number}"] = base[first : draw(st.integers(first, rows))]
        found[f"columns.{number}"] = base[:, : draw(st.integers(0, columns))]
        found[f"turned.{number}"] = base.t()
        found[f"vector.{number}"] = base.flatten()[draw(st.integers(0, base.numel())) :]
        found[f"parameter.{number}"] = torch.nn.Parameter(base.clone())
    return found


@given(tensors(), st.sampled_from([1, 64, 4096]))
def test_what_is_read_is_what_was_saved(saved: dict[str, Tensor], page: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(saved, path)
        found = locate(path, load_contents(path))
        assert found.keys() == saved.keys()
        for name, stored in found.items():
            begin = stored.start - stored.start % page
            mapped = map_bytes(path, begin, path.stat().st_size)
            tensor = stored.within(mapped, begin)
            assert (tensor.dtype, tensor.shape) == (saved[name].dtype, saved[name].shape)
            assert bytes_of(tensor) == bytes_of(saved[name].detach())
            assert (stored.span is None) == (not saved[name].is_contiguous())
            if stored.span is not None:
                assert (stored.span.dtype, stored.span.shape) == (tensor.dtype, tuple(tensor.shape))
                assert bytes_at(stored.span) == bytes_of(tensor)


def test_settings_and_random_states_are_empty_objects(tmp_path: Path) -> None:
    torch.save({"args": Namespace(heads=4), "weights": {"x": torch.arange(3)}}, tmp_path / "x.pt")
    before = set(torch.serialization.get_safe_globals())
    contents = load_contents(tmp_path / "x.pt")
    assert set(torch.serialization.get_safe_globals()) == before
    assert type(contents["args"]) is Ignored
    assert vars(contents["args"]) == {}
    with pytest.raises(YalmError, match="'args' is none"):
        locate(tmp_path / "x.pt", contents)


def rewrite(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """Make the archive anew, with other bytes in its records."""
    records = {}
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))
    path.write_bytes(buffer.getvalue())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: rewrite(path, lambda name, data: data[:8] if name.endswith("data/0") else data),
        lambda path: rewrite(path, lambda name, data: data, zipfile.ZIP_DEFLATED),
    ],
    ids=["shorter than said", "compressed"],
)
def test_bytes_that_are_not_there_are_refused(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "x.pt"
    torch.save({"x": torch.zeros(1000), "y": torch.zeros(1000)}, path)
    damage(path)
    with pytest.raises(YalmError) as error:
        locate(path, load_contents(path))
    assert "\n" not in str(error.value)


def test_a_sparse_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.eye(3).to_sparse()}, tmp_path / "x.pt")
    with pytest.raises(YalmError, match="plain dict of tensors"):
        locate(tmp_path / "x.pt", load_contents(tmp_path / "x.pt"))
