"""The loop: it learns, and what should not change its results does not."""

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ranks import run_ranks
from saving import train_rank
from support import GOLDEN, MakeSettings, losses, validations, weights
from yalm.errors import YalmError
from yalm.model.folder import read_config
from yalm.training import metrics
from yalm.training.loop import sample_ranges, train
from yalm.training.metrics import PHASES, read_metrics
from yalm.training.parallel import World
from yalm.training.settings import TrainSettings


def test_it_learns_and_leaves_a_model_folder(make_settings: MakeSettings) -> None:
    settings = make_settings("schedule.tokens=7680")
    result = train(settings)
    history = losses(settings)
    assert len(history) == result.progress.step == settings.total_steps == 40
    assert sum(history[-4:]) / 4 < 0.6 * history[0]
    scores = validations(settings)
    assert scores[40]["held_out"]["bits_per_byte"] < 0.7 * scores[6]["held_out"]["bits_per_byte"]
    assert read_config(result.checkpoint).hidden_size == 32
    assert (result.checkpoint / "tokenizer.model").read_bytes() == (GOLDEN / "vocab.sp").read_bytes()


def test_a_step_is_accounted_for(make_settings: MakeSettings) -> None:
    settings = make_settings()
    train(settings)
    record = next(record for record in read_metrics(settings.output) if record["step"] == 5)
    assert tuple(record["seconds"]) == PHASES
    assert all(seconds > 0 for seconds in record["seconds"].values())
    assert record["tokens"] == 5 * settings.tokens_per_step
    assert record["tokens_per_second"] == pytest.approx(settings.tokens_per_step / sum(record["seconds"].values()))
    assert record["lr"] == pytest.approx(learning_rate_of_step(settings, 5))
    assert record["grad_norm"] > 0


def learning_rate_of_step(settings: TrainSettings, step: int) -> float:
    from yalm.training.optimizer import learning_rate

    return learning_rate(step * settings.tokens_per_step, settings.optimizer.lr, settings.schedule)


@pytest.mark.parametrize(
    "override",
    [
        "batch.micro_sequences=8",
        "batch.micro_sequences=1",
        'compute.recompute="selective"',
        'compute.recompute="full"',
        'compute.compile="off"',
    ],
)
def test_how_it_computes_does_not_change_the_losses(make_settings: MakeSettings, override: str) -> None:
    plain, other = make_settings(output="plain"), make_settings(override, output="other")
    train(plain)
    train(other)
    assert losses(other) == pytest.approx(losses(plain), rel=1e-4)


def test_attention_within_documents_is_another_model(make_settings: MakeSettings) -> None:
    across, within = make_settings(output="across"), make_settings("data.cross_documents=false", output="within")
    train(across)
    train(within)
    # The first step's weights are the same; only what attention may see differs, and barely at the start.
    assert losses(within)[0] == pytest.approx(losses(across)[0], rel=0.05)
    assert losses(within) != losses(across)


def test_seeds_change_weights_and_data(make_settings: MakeSettings) -> None:
    runs = [make_settings(f"seed={seed}", output=f"run{seed}") for seed in (1, 2)]
    for settings in runs:
        train(settings)
    assert losses(runs[0])[0] != losses(runs[1])[0]


def test_resumed_equals_uninterrupted_bit_for_bit(make_settings: MakeSettings) -> None:
    whole, parts = make_settings(output="whole"), make_settings(output="parts")
    expected = train(whole)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps=5)
        stopped = train(parts)
    assert stopped.stopped_by == signal.SIGTERM
    assert stopped.progress.step == 5
    result = train(parts)
    assert losses(parts) == losses(whole)
    assert validations(parts) == validations(whole)
    for name, tensor in weights(expected.checkpoint).items():
        assert torch.equal(weights(result.checkpoint)[name], tensor), name


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Send this process a SIGTERM while step number `steps` is running."""
    from yalm.training import loop

    calls = itertools.count(1)
    original = loop.learning_rate

    def count(*arguments: Any) -> float:
        if next(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    patch.setattr(loop, "learning_rate", count)


def test_a_finished_run_is_left_alone(make_settings: MakeSettings) -> None:
    settings = make_settings()
    first = train(settings)
    before = (settings.output / "metrics.jsonl").read_text()
    assert train(settings) == first
    assert (settings.output / "metrics.jsonl").read_text() == before


def test_fresh_starts_over(make_settings: MakeSettings) -> None:
    settings = make_settings()
    train(settings)
    (settings.output / "mine.txt").touch()
    other = make_settings("optimizer.lr=0.02")
    train(other, fresh=True)
    assert len(losses(other)) == other.total_steps
    assert (settings.output / "mine.txt").exists()


def test_a_run_of_other_settings_is_refused(make_settings: MakeSettings) -> None:
    train(make_settings())
    with pytest.raises(YalmError, match=r"started with optimizer.lr = 0.01, now it is 0.02"):
        train(make_settings("optimizer.lr=0.02"))


def test_cadence_and_threads_may_change_on_resume(make_settings: MakeSettings) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps=3)
        train(make_settings())
    settings = make_settings("checkpoint.keep=5", "validation.every_steps=4")
    assert train(settings).progress.step == settings.total_steps


def test_two_trainers_in_one_folder_are_refused(make_settings: MakeSettings) -> None:
    import fcntl

    settings = make_settings()
    settings.output.mkdir()
    with (settings.output / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(YalmError, match="another process is training here"):
            train(settings)


def test_a_loss_that_is_not_finite_stops_the_run(make_settings: MakeSettings) -> None:
    settings = make_settings("optimizer.lr=1e30", "optimizer.clip_norm=1e30")
    with pytest.raises(YalmError, match=r"lower optimizer\.lr") as error:
        train(settings)
    assert "\n" not in str(error.value)
    assert all(loss < 1e30 for loss in losses(settings))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.sequence_length=64"], "exceeds the model's 32 positions"),
        (["schedule.tokens=1e12"], "epoch caps"),
        (["batch.sequences=7"], "must be a multiple of batch.micro_sequences"),
        (['compute.device="gpu0"'], "compute.device = 'gpu0'"),
        (["model.preset=dem"], "did you mean 'demo'"),
        (["model.num_heads=5"], "multiple of 2 x num_heads"),
    ],
)
def test_impossible_settings_are_one_line(
    make_settings: MakeSettings, overrides: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(YalmError, match=message) as error:
        train(make_settings(*overrides))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()  # or the mended settings would be others than those of the run


def test_ranks_share_a_steps_samples(make_settings: MakeSettings) -> None:
    settings = make_settings("batch.micro_sequences=2")

    def samples(size: int) -> list[set[int]]:
        device, mesh = torch.device("cpu"), None
        steps: list[set[int]] = [set() for _ in range(settings.total_steps)]
        for rank in range(size):
            ranges = list(sample_ranges(settings, 0, World(rank, size, device, mesh)))  # type: ignore[arg-type]
            for index, (first, count) in enumerate(ranges):
                step = steps[index * settings.total_steps // len(ranges)]
                assert step.isdisjoint(range(first, first + count))
                step.update(range(first, first + count))
        return steps

    assert samples(1) == samples(2) == samples(4)
    assert samples(1)[1] == set(range(8, 16))


@pytest.mark.parametrize(
    "overrides",
    [(), ('compute.precision="bf16"',), pytest.param(('compute.recompute="full"',), marks=pytest.mark.slow)],
)
def test_two_ranks_train_as_one(make_settings: MakeSettings, overrides: tuple[str, ...]) -> None:
    one, two = make_settings(*overrides, output="one"), make_settings(*overrides, output="two")
    train(one)
    run_ranks(2, train_rank, two)
    tolerance = 1e-4 if two.compute.precision == "fp32" else 0.02
    assert losses(two) == pytest.approx(losses(one), rel=tolerance)
    assert validations(two)[12]["held_out"]["nats_per_token"] == pytest.approx(
        validations(one)[12]["held_out"]["nats_per_token"], rel=tolerance
    )


def test_a_checkpoint_of_two_ranks_continues_on_one(make_settings: MakeSettings, tmp_path: Path) -> None:
    whole, moved = make_settings(output="whole"), make_settings(output="moved")
    train(whole)
    run_ranks(2, train_rank, moved)
    # Take back the end of the run: what is left is the two ranks' checkpoint of step 8.
    last = max((moved.output / "checkpoints").iterdir())
    assert last.name == "step-00000012"
    last.rename(tmp_path / "away")
    train(moved)
    assert losses(moved)[8:] == pytest.approx(losses(whole)[8:], rel=1e-4)


def test_the_peak_is_not_that_of_the_first_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may have to compile."""
    calls = itertools.count()
    monkeypatch.setattr(metrics, "product", lambda a, b: time.sleep(0.5 if next(calls) == 0 else 0.01))
    size = 8
    peak = metrics.measured_peak(torch.device("cpu"), torch.float32, size)
    assert 2 * size**3 / 0.3 < peak < 2 * size**3 / 0.01
