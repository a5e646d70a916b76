"""Which engine computes a step, and what a person is told who cannot have it. What they compute: test_parallel.py,
test_checkpoint.py, test_deepspeed.py."""

import sys

import pytest

from support import MakeSettings
from yalm.errors import YalmError
from yalm.training.loop import train

DEEPSPEED = "compute.engine=deepspeed"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("compute.zero=0", "does not take zero 0; take 1, 2, 3, or engine native"),
        ("compute.replicate=2", "does not take replicate 2; take 1, or engine native"),
        ("compute.precision=fp8", "does not take precision fp8; take fp32, tf32, bf16, fp16, or engine native"),
        ("compute.compile=on", "does not take compile on; take auto, off, or engine native"),
    ],
)
def test_what_deepspeed_does_not_take_is_one_line(make_settings: MakeSettings, override: str, told: str) -> None:
    make_settings(override)
    with pytest.raises(YalmError) as error:
        make_settings(override, DEEPSPEED)
    assert str(error.value).endswith(f": engine deepspeed {told}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["compute.engine=native", "compute.zero=2", "compute.offload=false"])
def test_offload_folder_is_for_deepspeed(make_settings: MakeSettings, missing: str) -> None:
    how = (DEEPSPEED, "compute.zero=3", "compute.offload=true", "compute.offload_folder=files")
    make_settings(*how)
    with pytest.raises(YalmError, match="offload_folder is for engine deepspeed, zero 3, offload true"):
        make_settings(*how, missing)


def test_deepspeed_does_not_take_bf16_weights_or_moments(make_settings: MakeSettings) -> None:
    bf16 = ("optimizer.weights=bf16", "compute.precision=bf16")
    make_settings(*bf16)
    with pytest.raises(YalmError, match=r"engine deepspeed does not take optimizer.weights bf16; take fp32"):
        make_settings(*bf16, DEEPSPEED)
    with pytest.raises(YalmError, match=r"engine deepspeed does not take optimizer.moments bf16; take fp32"):
        make_settings("optimizer.moments=bf16", DEEPSPEED)


def test_without_deepspeed_its_extra_is_named(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # an import of it fails
    with pytest.raises(YalmError, match=r"DeepSpeed is not installed; pip install 'openyalm\[deepspeed\]', or take"):
        train(make_settings(DEEPSPEED))


def test_deepspeed_is_not_imported_unasked(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yalm.training.deepspeed", None)
    assert train(make_settings()).progress.step == 12
