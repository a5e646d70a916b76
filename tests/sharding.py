"""What a rank does in the tests of data parallelism: whole runs, one after the other."""

import os

from yalm.training.loop import train
from yalm.training.settings import TrainSettings


def train_each(runs: list[TrainSettings]) -> None:
    """Train run after run in this process and the others of its world."""
    for attempt, settings in enumerate(runs):
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(attempt)  # the world that is formed is a new one
        train(settings)
