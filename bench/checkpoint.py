"""How long a checkpoint holds the steps, written at once and in the background, on one process.

    python bench/checkpoint.py [--preset 25m] [--threads 1] [--saves 5] [--output results.jsonl]

Rounds of a few steps are timed in turn: without a save, with one and a wait for the disk before the steps, as a loop
without a writer of its own would, and with one that is written while the steps run (and waited for at the end of the
round). What a round takes longer than one without a save is its price; on a machine with other work, only much larger
differences than the ranges mean anything, and CPU seconds are the better clock. A step is held for as long as `save`
runs. The first save, which also allocates the memory for the copies, is left out.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from measure import Spent, median, ranged, report, spent
from yalm.model.network import Yalm, build, initialize
from yalm.model.presets import preset
from yalm.training.checkpoint import Checkpoints, Progress
from yalm.training.engine import NativeEngine
from yalm.training.optimizer import make_optimizer
from yalm.training.parallel import join_world, parallelize
from yalm.training.precision import LossScale
from yalm.training.settings import ComputeSettings, OptimizerSettings

SEQUENCES, LENGTH = 4, 256


def make_step(model: Yalm, optimizer: torch.optim.Optimizer, device: torch.device) -> Callable[[], None]:
    """A step of training on random ids."""
    ids = torch.randint(model.config.vocab_size, (SEQUENCES, LENGTH + 1), device=device)

    def step() -> None:
        loss = model(ids[:, :-1], ids[:, 1:]) / (SEQUENCES * LENGTH)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="25m")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2, help="steps of a round")
    parser.add_argument("--every", type=int, default=200, help="steps between two saves, for the share of the time")
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a temporary folder by default")
    parser.add_argument("--output", type=Path, default=None, help="append the result as a line of JSON")
    options = parser.parse_args()
    settings = ComputeSettings(threads=options.threads)
    rounds: dict[str, list[Spent]] = {"not saved": [], "written at once": [], "written in the background": []}
    held: dict[str, list[float]] = {way: [] for way in rounds}
    with tempfile.TemporaryDirectory(dir=options.folder) as place, join_world(settings) as world:
        tokenizer_file = Path(place) / "tokenizer"
        tokenizer_file.write_bytes(b"none")
        model = initialize(build(preset(options.preset), world.device), seed=0)
        optimizer = make_optimizer(parallelize(model, world, settings), OptimizerSettings(), seed=0)
        engine = NativeEngine(model, optimizer, world, settings, 1.0, LossScale("fp32", 1.0, 0))
        step = make_step(model, optimizer, world.device)
        numbers = itertools.count()
        with Checkpoints(Path(place) / "checkpoints", 1, tokenizer_file, world) as checkpoints:

            def save(wait: bool) -> None:
                checkpoints.save(engine, Progress(next(numbers)))
                if wait:
                    checkpoints.wait()

            def run(way: str) -> None:
                if way != "not saved":
                    held[way].append(spent(partial(save, way == "written at once")).wall)
                for _ in range(options.steps):
                    step()
                checkpoints.wait()

            step()
            save(wait=True)
            for _ in range(options.rounds):
                for way, seconds in rounds.items():
                    seconds.append(spent(partial(run, way)))
        size = sum(file.stat().st_size for file in Path(place).rglob("*") if file.is_file())
    walls = {way: [each.wall for each in seconds] for way, seconds in rounds.items()}
    cpus = {way: [each.cpu for each in seconds] for way, seconds in rounds.items()}
    alone = median(walls["not saved"])
    rows = [
        {
            "checkpoint": way,
            "holds a step, s": ranged(held[way], 3) if held[way] else "",
            f"{options.steps} steps, s": ranged(walls[way], 2),
            "CPU s": ranged(cpus[way], 2),
            "price, s": f"{median(walls[way]) - alone:.2f}",
            f"of {options.every} steps": f"{(median(walls[way]) - alone) * options.steps / options.every / alone:.2%}",
        }
        for way in rounds
    ]
    facts = {"preset": options.preset, "device": world.device, "bytes": f"{size:,}", "rounds": options.rounds}
    report("Checkpoints", rows, options.output, **facts)


if __name__ == "__main__":
    main()
