"""kill -9 at any moment, resumed each time, ends in the very losses of a run that was never stopped."""

import random

import torch

from processes import is_killed
from support import MakeSettings, losses, validations, weights
from yalm.training.loop import train

# Calls in the middle of a step, of a checkpoint's writing, or between the two.
PLACES = {
    "step": "yalm.training.loop:learning_rate",
    "file": "yalm.training.checkpoint:write_shard",
    "state": "yalm.training.checkpoint:save_state",
    "rename": "pathlib:Path.rename",
    "sync": "yalm.atomic:_sync",
}


def test_killed_and_resumed_equals_uninterrupted(make_settings: MakeSettings) -> None:
    whole, killed = make_settings(output="whole"), make_settings(output="killed")
    expected = train(whole)
    draw = random.Random()
    # Three kills inside steps, and the rest while a thread writes a checkpoint: in the middle of its files, when all of
    # it is written but its name, and anywhere. Every start makes as many calls of each.
    places = [("step", draw.randint(1, 4)) for _ in range(3)]
    places += [("file", draw.randint(2, 4)), ("state", 1), ("rename", 1), ("sync", draw.randint(3, 27))]
    draw.shuffle(places)
    for place, number in places:
        assert is_killed(PLACES[place], number, train, killed), places
    result = train(killed)
    assert losses(killed) == losses(whole), places
    assert validations(killed) == validations(whole), places
    for name, tensor in weights(expected.checkpoint).items():
        assert torch.equal(weights(result.checkpoint)[name], tensor), (places, name)
    names = {path.name for path in (killed.output / "checkpoints").iterdir()}
    assert names == {"step-00000008", "step-00000012"}
