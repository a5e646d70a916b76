"""What ranks do to a checkpoint: train, save and be watched, fail to save, be killed while saving."""

import errno
import itertools
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.folder import ModelFolder
from yalm.model.network import build
from yalm.training import checkpoint, loop
from yalm.training.checkpoint import Checkpoints, Progress, restore_model
from yalm.training.engine import NativeEngine
from yalm.training.parallel import join_world, parallelize
from yalm.training.precision import LossScale
from yalm.training.settings import ComputeSettings, TrainSettings
from yalm.training.weights import draw_weights, held, materialize

# 57 million parameters, of which no tensor is a hundredth.
WIDE = ModelConfig(
    vocab_size=1000, embedding_size=384, hidden_size=384, num_layers=32, num_heads=6, intermediate_size=1024
)


def train_rank(settings: TrainSettings) -> None:
    """Train as one of several ranks."""
    loop.train(settings)


def error_of_training(runs: list[TrainSettings]) -> str:
    """Train run after run in this process: what a person is told when that ends."""
    try:
        for settings in runs:
            loop.train(settings)
    except YalmError as error:
        return str(error)
    return "no error"


def train_rank_until(settings: TrainSettings, step: int) -> None:
    """Train as one of several ranks, each of which is asked to stop during that step."""
    learning_rate = loop.learning_rate

    def stop(tokens: int, *arguments: Any) -> float:
        if tokens == step * settings.tokens_per_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return learning_rate(tokens, *arguments)

    loop.learning_rate = stop
    loop.train(settings)


def train_until_a_rank_is_killed(settings: TrainSettings) -> None:
    """Rank 1 is killed by its writer, when half of its files of the second checkpoint are there."""
    write_shard, calls = checkpoint.write_shard, itertools.count(1)

    def write(*arguments: Any) -> str:
        if next(calls) == 4 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return write_shard(*arguments)

    checkpoint.write_shard = write
    loop.train(settings)


def memory_of_saving(folder: Path, tokenizer_file: Path) -> tuple[int, int]:
    """By how many bytes this rank's resident memory rises, at most, while it saves; and the model's bytes.

    The optimizer has one vector of the model: the weights are what is measured.
    """
    settings = ComputeSettings(device="cpu", threads=1)
    with join_world(settings) as world:
        model = parallelize(build(WIDE, "meta"), world, settings)
        materialize(model, world.device)  # never whole anywhere
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.01)
        size = sum(parameter.nbytes for parameter in build(WIDE, "meta").parameters())
        bias = model.lm_head.bias
        bias.grad = torch.zeros_like(bias)
        optimizer = torch.optim.AdamW([bias])
        optimizer.step()
        with Checkpoints(folder, 1, tokenizer_file, world) as checkpoints:
            engine = NativeEngine(model, optimizer, world, settings, 1.0, LossScale("fp32", 1.0, 0))
            return rise(lambda: (checkpoints.save(engine, Progress(1, 1, 1)), checkpoints.wait())), size


def memory_of_starting(folder: Path) -> dict[str, int]:
    """By how many bytes this rank's resident memory rises, at most, while it draws a model and while it reads it.

    And how many bytes it reads, holds, and would hold alone.
    """
    settings = ComputeSettings(device="cpu", threads=1)
    found = {"whole": sum(parameter.nbytes for parameter in build(WIDE, "meta").parameters()), "read": 0}
    read = ModelFolder.read

    def count(*arguments: Any) -> torch.Tensor:
        tensor = read(*arguments)
        found["read"] += tensor.nbytes
        return tensor

    with join_world(settings) as world, patch.object(ModelFolder, "read", count):
        model = parallelize(build(WIDE, "meta"), world, settings)
        found["drawing"] = rise(lambda: (materialize(model, world.device), draw_weights(model, 0, world.device)))
        found["reading"] = rise(lambda: restore_model(model, folder))
        found["held"] = sum(held(parameter)[0].nbytes for parameter in model.parameters())
    return found


def rise(work: Callable[[], Any]) -> int:
    """By how many bytes this process's resident memory rises, at most, in `work`."""
    Path("/proc/self/clear_refs").write_text("5")  # begin the peak anew
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """A line of this process's status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[field].split()[0])


def train_until_the_disk_is_full(settings: TrainSettings, what: str) -> str:
    """Rank 1's disk takes no "weights" or no "state" of the second checkpoint: what this rank makes of it.

    A step that follows a save ends when the writer has.
    """
    owner, name = {"weights": (checkpoint, "write_shard"), "state": (FileSystemWriter, "write_data")}[what]
    write, learning_rate, calls = getattr(owner, name), loop.learning_rate, itertools.count(1)
    # Of the four files, for the embedding, two layers and the output, rank 1 of two writes two; the state is one.
    first = {"weights": 3, "state": 2}[what]

    def fail(*arguments: Any) -> Any:
        if next(calls) == first and os.environ["RANK"] == "1":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    def join(*arguments: Any) -> float:
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()
        return learning_rate(*arguments)

    setattr(owner, name, fail)
    loop.learning_rate = join
    try:
        loop.train(settings)
    except YalmError as error:
        return str(error)
    return "no error"
