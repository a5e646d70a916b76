"""kill -9 at any moment, resumed each time, ends in the very losses of a run that was never stopped."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import torch

from support import MakeSettings, losses, validations, weights
from yalm.training.loop import train

# Trains as `yalm train` does, and kills itself on the n-th call of a function of the loop: in the middle of a step,
# of a checkpoint's writing, or between the two.
KILLED_RUN = """
import itertools, os, signal, sys
from pathlib import Path
from yalm import atomic
from yalm.training import checkpoint, loop
from yalm.training.settings import TrainSettings

config, place, number = sys.argv[1:]
owner, name = {"step": (loop, "learning_rate"), "file": (checkpoint, "write_shard"),
               "state": (checkpoint, "save_state"), "rename": (Path, "rename"), "sync": (atomic, "_sync")}[place]
calls, original = itertools.count(1), getattr(owner, name)

def kill(*arguments, **options):
    if next(calls) == int(number):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **options)

setattr(owner, name, kill)
loop.train(TrainSettings.load(Path(config)))
"""


def test_killed_and_resumed_equals_uninterrupted(make_settings: MakeSettings, tmp_path: Path) -> None:
    whole, killed = make_settings(output="whole"), make_settings(output="killed")
    expected = train(whole)
    config = tmp_path / "config.toml"
    config.write_text(killed.to_toml())
    draw = random.Random()
    # Three kills inside steps, and the rest while a thread writes a checkpoint: in the middle of its files, when all of
    # it is written but its name, and anywhere. Every start makes as many calls of each.
    places = [("step", draw.randint(1, 4)) for _ in range(3)]
    places += [("file", draw.randint(2, 4)), ("state", 1), ("rename", 1), ("sync", draw.randint(3, 27))]
    draw.shuffle(places)
    for place, number in places:
        command = [sys.executable, "-c", KILLED_RUN, str(config), place, str(number)]
        ended = subprocess.run(command, capture_output=True, timeout=120, check=False)
        assert ended.returncode == -signal.SIGKILL, (places, ended.stderr.decode())
    result = train(killed)
    assert losses(killed) == losses(whole), places
    assert validations(killed) == validations(whole), places
    for name, tensor in weights(expected.checkpoint).items():
        assert torch.equal(weights(result.checkpoint)[name], tensor), (places, name)
    names = {path.name for path in (killed.output / "checkpoints").iterdir()}
    assert names == {"step-00000008", "step-00000012"}
