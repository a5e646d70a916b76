"""A model in training and the step it takes, the same for ours and for a GPT-NeoX of transformers.

The step is made of the pieces of `yalm.training` and has its four phases. transformers brings its modules,
initialisation, SDPA attention and loss (bench/neox.py); in half precision it computes as its own trainer does, under
autocast with fp32 weights.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from measure import Spent, device_seconds
from neox import Neox, NeoxSizes
from yalm.model.config import ModelConfig
from yalm.model.costs import training_flops
from yalm.model.network import build
from yalm.tokens.batches import Batch
from yalm.training.metrics import PhaseTimer
from yalm.training.optimizer import make_optimizer
from yalm.training.parallel import World, parallelize
from yalm.training.precision import HALF
from yalm.training.settings import ComputeSettings, OptimizerSettings
from yalm.training.validation import batch_loss
from yalm.training.weights import draw_weights, materialize


@dataclass
class Contender:
    """A model in training, and what its steps have taken so far."""

    name: str
    shape: str
    model: nn.Module
    settings: OptimizerSettings
    flops_per_token: float
    world: World
    autocast: torch.dtype | None = None
    runs: list[Spent] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = make_optimizer(self.model, self.settings, seed=0)
        self.phase = PhaseTimer(self.world.device)

    def step(self, read: Sequence[Callable[[], Batch]], lr: float) -> torch.Tensor:
        """One optimizer step over micro-batches: the four phases of `yalm.training.loop`. Returns the mean loss."""
        total = torch.zeros((), device=self.world.device)
        for read_micro_batch in read:
            with self.phase("batch"):
                batch = read_micro_batch()
            with self.phase("forward"), self._types():
                loss = batch_loss(self.model, batch, self.world, True)  # type: ignore[arg-type]
            with self.phase("backward"):
                torch.autograd.backward(loss / (batch.targets.numel() * len(read)))
            total += loss.detach() / (batch.targets.numel() * len(read))
        with self.phase("step"):
            clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.optimizer.zero_grad()
        return total

    def step_seconds(self, read: Sequence[Callable[[], Batch]], repetitions: int) -> list[float]:
        """Seconds of a step, by the device's clock, after one to warm up."""
        return device_seconds(lambda: self.step(read, 0.0), self.world.device, repetitions)

    def _types(self) -> AbstractContextManager[object]:
        return torch.autocast(self.world.device.type, self.autocast) if self.autocast else nullcontext()

    @property
    def parameters(self) -> int:
        """All of them, the tied table counted once."""
        return sum(parameter.numel() for parameter in self.model.parameters())


def ours(
    config: ModelConfig,
    length: int,
    settings: OptimizerSettings,
    world: World,
    seed: int = 0,
    compute: ComputeSettings = ComputeSettings(),  # noqa: B008  frozen
) -> Contender:
    """Ours, made and laid out as `yalm train` does with these settings."""
    model = parallelize(build(config, "meta"), world, compute)
    materialize(model, world.device, compute.offload)
    draw_weights(model, seed, world.device)
    c = config
    shape = f"{c.num_layers} x {c.hidden_size}, feed-forward {c.intermediate_size}, embedding {c.embedding_size}"
    return Contender("yalm", shape, model, settings, training_flops(config, length), world)


def theirs(
    sizes: NeoxSizes,
    length: int,
    settings: OptimizerSettings,
    world: World,
    seed: int = 0,
    compute: ComputeSettings = ComputeSettings(),  # noqa: B008  frozen
) -> Contender:
    """transformers', with what it has of these settings: half precision, recomputation and compilation ("on")."""
    with torch.device(world.device):
        model = Neox(sizes, seed)
    if compute.recompute != "none":
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    if compute.compile == "on":
        model.model.compile()
    shape = f"{sizes.num_layers} x {sizes.hidden_size}, feed-forward {sizes.intermediate_size}, embedding full"
    half = HALF.get(compute.precision)
    return Contender("GPT-NeoX", shape, model, settings, sizes.training_flops(length), world, half)


def random_batch(vocab_size: int, sequences: int, length: int, seed: int = 0) -> Batch:
    """Ids at random, without documents; the same for the same seed."""
    tokens = torch.randint(vocab_size, (sequences, length + 1), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens, torch.zeros(sequences, length, dtype=torch.int64))
