"""kill -9 in mid-conversion: finished shards are kept if their checksum holds; memory is bounded by a layer."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from processes import is_killed
from support import GOLDEN
from yalm.model import convert
from yalm.model.convert import Result, convert_folder, convert_release
from yalm.model.shards import read_checksums
from yalm.model.verify import verify

WEIGHTS, VOCAB = GOLDEN / "weights", GOLDEN / "vocab.sp"
STANDIN = Path(__file__).parents[2] / "bench" / "standin.py"

# While a file's bytes are written, and when one is noted as finished.
BYTES, NOTE = "yalm.model.shards:DigestFile.write", "yalm.model.convert:write_text"
SIZES: dict[str, Any] = {"num_heads": 4, "max_positions": 64}


def to_folder(target: Path, **options: Any) -> Result:
    return convert_release(WEIGHTS, target, VOCAB, **SIZES | options)


def spoil(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def test_killed_and_resumed(tmp_path: Path) -> None:
    whole, target, partial = tmp_path / "whole", tmp_path / "new", tmp_path / ".new.partial"
    to_folder(whole)
    assert is_killed(NOTE, 3, convert_release, WEIGHTS, target, VOCAB, **SIZES)
    assert not target.exists()
    first, second, _ = sorted(partial.glob("*.safetensors"))  # the third is whole, but was not noted
    kept = second.stat()
    spoil(first)
    assert is_killed(BYTES, 3, convert_release, WEIGHTS, target, VOCAB, **SIZES)
    assert not target.exists()
    assert list(partial.glob(".*.partial"))  # what the kill left of the first, done again
    result = to_folder(target)
    assert (result.files, result.kept) == (5, 1)
    assert (target / second.name).stat().st_mtime_ns == kept.st_mtime_ns
    assert read_checksums(target) == read_checksums(whole)
    assert {path.name for path in target.iterdir()} == {path.name for path in whole.iterdir()}
    verify(target)
    assert not partial.exists()


def test_killed_and_resumed_back_to_the_release(tmp_path: Path) -> None:
    source, whole, target = tmp_path / "source", tmp_path / "whole", tmp_path / "new"
    to_folder(source)
    convert_folder(source, whole)
    assert is_killed(NOTE, 4, convert_folder, source, target)
    assert not target.exists()
    spoil(min((tmp_path / ".new.partial").glob("layer_*")))
    assert convert_folder(source, target).kept == 2
    assert read_checksums(target) == read_checksums(whole)


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A conversion stopped when all shards are there, but not yet in their place."""
    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_description", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            to_folder(tmp_path / "new")
    return tmp_path / "new"


def test_stopped_at_the_end_all_is_kept(interrupted: Path) -> None:
    assert to_folder(interrupted).kept == 5


@pytest.mark.parametrize("options", [{"dtype": "fp32"}, {"num_layers": 2}, {"intermediate_size": 256}], ids=str)
def test_other_settings_start_over(interrupted: Path, options: dict[str, Any]) -> None:
    assert to_folder(interrupted, **options).kept == 0
    verify(interrupted)


def test_what_came_of_another_source_is_done_again(interrupted: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(WEIGHTS, tmp_path / "other"))
    (other / "layer_04-model_00-model_states.pt").touch()
    result = convert_release(other, interrupted, VOCAB, num_heads=4, max_positions=64)
    assert result.kept == 4


# Prints by how much the process grew at its largest, in bytes.
MEASURED = """
import re, sys
from pathlib import Path
from yalm.model.convert import convert_folder, convert_release
from yalm.model.verify import verify

def status(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

def reset():
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")

weights, folder, back, vocab, golden, together = sys.argv[1:]
convert_release(golden, folder + "-first", vocab, num_heads=4)  # what is loaded at first use, once
there = lambda: convert_release(weights, folder, vocab)
whole = lambda: convert_release(together, folder + "-whole", vocab)
for run in (there, lambda: verify(folder), lambda: convert_folder(folder, back), whole):
    start = reset()
    run()
    print(status("VmHWM") - start)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured the Linux way")
def test_memory_is_bounded_by_a_layer(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    command = [sys.executable, str(STANDIN), str(weights), "--preset", "25m", "--layers", "12", "--dtype", "fp32"]
    subprocess.run(command, check=True, capture_output=True)
    largest = max(path.stat().st_size for path in weights.iterdir())
    total = sum(path.stat().st_size for path in weights.iterdir())
    together = tmp_path / "together"
    parts = {path.name[6:8].lstrip("0") or "0": torch.load(path) for path in weights.glob("layer_*")}
    tensors = {f"sequential.{part}.{name}": tensor for part in parts for name, tensor in parts[part].items()}
    together.mkdir()
    torch.save({"module": tensors}, together / "mp_rank_00_model_states.pt")
    arguments = [*map(str, (weights, tmp_path / "model", tmp_path / "back", VOCAB, WEIGHTS, together))]
    shown = subprocess.run([sys.executable, "-c", MEASURED, *arguments], check=True, capture_output=True, text=True)
    grown = [int(line) for line in shown.stdout.split()]
    constant = 50e6  # blocks of 1 MiB, and slack
    assert max(grown) < largest + constant < total, grown
    assert read_checksums(tmp_path / "model-whole") == read_checksums(tmp_path / "model")
