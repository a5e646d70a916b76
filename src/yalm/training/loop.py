"""The training loop: one function, read from top to bottom.

A step has four phases, timed by name: *batch* (the next sequences), *forward*, *backward* (these once for each
micro-batch; on one device in turn, on a pipeline's stages as `pipeline.order` says), and *step* (clipping and the
optimizer). Which sequences a step reads, how the weights began, and the learning rate are functions of the settings and
the step alone; so a run that is killed and resumed computes what one never stopped would have, bit for bit on one
device. How the model lies over devices is the engine's business; the loop is the same on one device and on many.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from yalm.errors import YalmError
from yalm.model.costs import training_flops
from yalm.model.network import Yalm, build
from yalm.tokens.batches import Batches
from yalm.training.checkpoint import STATE_FOLDER, Checkpoints, Progress, read_progress, restore_model
from yalm.training.engine import Engine, make_engine
from yalm.training.metrics import Metrics, PhaseTimer, peak_flops
from yalm.training.optimizer import learning_rate
from yalm.training.parallel import World, join_world
from yalm.training.precision import LossScale, keep_weights, warnings
from yalm.training.run import CHECKPOINTS_FOLDER, StopSignal, open_run
from yalm.training.settings import TrainSettings
from yalm.training.validation import ValidationPart, batch_loss, validate
from yalm.training.weights import draw_weights


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: its newest checkpoint (a model folder), how far it is, the signal that stopped it, if any."""

    checkpoint: Path
    progress: Progress
    total_steps: int
    stopped_by: int | None


class Watcher(Protocol):
    """Somebody who looks on from outside; what it raises ends the run, and nothing more is saved."""

    def begin(self, engine: Engine, world: World) -> None:
        """All is laid out over the devices; steps follow."""

    def step(self) -> None:
        """A step is done."""


def train(settings: TrainSettings, fresh: bool = False, watcher: Watcher | None = None) -> TrainResult:
    """Train, or go on training, until `schedule.tokens` are seen or a SIGTERM or Ctrl-C asks to stop.

    Everything lands in `settings.output`. Raises YalmError for settings, data or a folder that a person must mend, and
    when the loss is no longer finite.
    """
    with ExitStack() as stack:
        world = stack.enter_context(join_world(settings.compute))
        data = Batches(settings.data.parts, settings.data.sequence_length, settings.seed)
        data.mixture.require(settings.total_steps * settings.batch.sequences)
        validation_parts = [ValidationPart.open(part) for part in settings.data.validation]
        config = settings.model.config(data.vocab_size)
        if settings.data.sequence_length > config.max_positions:
            raise YalmError(
                f"data.sequence_length {settings.data.sequence_length} exceeds the model's {config.max_positions} "
                "positions; lower it or set model.max_positions"
            )
        # Not before: a run that cannot begin leaves no settings behind, which the mended ones would differ from.
        folder = stack.enter_context(open_run(settings, fresh and world.is_main)) if world.is_main else settings.output
        world.wait()
        tokenizer_file = data.folders[0].tokenizer_file
        checkpoints = stack.enter_context(
            Checkpoints(folder / CHECKPOINTS_FOLDER, settings.checkpoint.keep, tokenizer_file, world)
        )
        latest = checkpoints.latest()
        progress = read_progress(latest) if latest else Progress()

        model = build(config, "meta")
        keep_weights(model, settings.optimizer.weights)
        fill: Callable[[Yalm], None] = (
            partial(restore_model, checkpoint=latest)
            if latest
            else partial(draw_weights, seed=settings.seed, device=world.device)
        )
        scale = LossScale(settings.compute.precision, progress.loss_scale, progress.clean_steps)
        engine = make_engine(model, world, settings, scale, fill)
        if latest:
            engine.restore_optimizer(latest / STATE_FOLDER)

        metrics = stack.enter_context(
            Metrics(
                folder,
                progress.step,
                settings.total_steps,
                enabled=world.is_main,
                tensorboard=settings.metrics.tensorboard,
            )
        )
        for warning in warnings(config, settings.compute.precision, world.device):
            metrics.say(f"warning: {warning}")
        if latest:
            metrics.say(f"resuming {folder} at step {progress.step} of {settings.total_steps}")
        run_validation: Callable[[], dict[str, dict[str, float]]] = partial(
            validate,
            engine.network,
            validation_parts,
            world,
            sequence_length=settings.data.sequence_length,
            sequences=settings.validation.sequences,
            micro_sequences=settings.batch.micro_sequences,
            cross_documents=settings.data.cross_documents,
        )
        phase = PhaseTimer(world.device)
        peak = peak_flops(world.device) * world.size
        flops_per_token = training_flops(config, settings.data.sequence_length)
        stop = stack.enter_context(StopSignal())
        micro_batches = settings.batch.sequences // (settings.batch.micro_sequences * world.data_size)
        batches = data.prefetch(sample_ranges(settings, progress.step, world))
        stack.callback(batches.close)
        losses: deque[torch.Tensor] = deque()  # of micro-batches that went forward and not yet backward
        logged_step = progress.step
        if watcher is not None:
            watcher.begin(engine, world)

        while progress.step < settings.total_steps and not world.any(stop.received is not None or checkpoints.failed):
            loss_sum = torch.zeros((), device=world.device)
            # Gradients are averaged over ranks, so each rank's share of the mean is taken `size` times.
            weight = scale.value * world.data_size / settings.tokens_per_step
            for direction, micro_batch in world.passes(micro_batches):
                if direction == "forward":
                    with phase("batch"):
                        batch = next(batches)
                    with phase("forward"):
                        losses.append(batch_loss(engine.network, batch, world, settings.data.cross_documents, weight))
                else:
                    loss = losses.popleft()
                    with phase("backward"):
                        engine.backward(loss, last=micro_batch == micro_batches - 1)
                    loss_sum += loss.detach() / weight
            progress = Progress(
                progress.step + 1,
                progress.sequences + settings.batch.sequences,
                progress.tokens + settings.tokens_per_step,
            )
            with phase("step"):
                lr = learning_rate(progress.tokens, settings.optimizer.lr, settings.schedule)
                grad_norm = engine.step(lr)
                progress = replace(progress, loss_scale=scale.value, clean_steps=scale.clean_steps)
            if watcher is not None:
                watcher.step()

            metrics.advance(progress.step)
            last = progress.step == settings.total_steps
            if progress.step % settings.metrics.every_steps == 0 or last:
                seconds = phase.take()
                rate = (progress.step - logged_step) * settings.tokens_per_step / sum(seconds.values())
                logged_step = progress.step
                mean_loss = float(world.sum(loss_sum)) / settings.tokens_per_step
                record = {
                    "step": progress.step,
                    "tokens": progress.tokens,
                    "loss": mean_loss,
                    "lr": lr,
                    "grad_norm": float(grad_norm),
                    "tokens_per_second": rate,
                    "mfu": rate * flops_per_token / peak,
                    **scale.record(),
                    "seconds": seconds,
                }
                if not math.isfinite(mean_loss):
                    raise YalmError(
                        f"{folder}: the loss is {mean_loss} at step {progress.step}; lower optimizer.lr, "
                        f"or go on from the last checkpoint ({checkpoints.latest() or 'none yet'})"
                    )
                metrics.training(record)
            if validation_parts and (progress.step % settings.validation.every_steps == 0 or last):
                metrics.validation(progress.step, progress.tokens, run_validation())
            if progress.step % settings.checkpoint.every_steps == 0:
                checkpoints.save(engine, progress)

        checkpoint = checkpoints.save(engine, progress)
        checkpoints.wait()
        if stop.received is not None:
            metrics.say(f"stopped by {stop.received.name} at step {progress.step}; the same command goes on from there")
        return TrainResult(checkpoint, progress, settings.total_steps, stop.received)


def sample_ranges(settings: TrainSettings, first_step: int, world: World) -> Iterator[tuple[int, int]]:
    """The samples of this rank from `first_step` on, as (first, count) of each micro-batch in turn.

    A step's samples are numbered on from those of the step before, and each rank takes a run of them; so the samples of
    a step are the same on any number of ranks. Ranks that divide layers among them take the same ones.
    """
    share = settings.batch.sequences // world.data_size
    count = settings.batch.micro_sequences
    if settings.batch.sequences % (world.data_size * count):
        raise YalmError(
            f"batch.sequences {settings.batch.sequences} must be a multiple of batch.micro_sequences {count} "
            f"x {world.data_size} ranks; change one of them"
        )
    for step in range(first_step, settings.total_steps):
        start = step * settings.batch.sequences + world.data_rank * share
        yield from ((first, count) for first in range(start, start + share, count))
