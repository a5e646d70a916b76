"""What a training step is computed by, as the loop sees it: one interface, two answers.

`NativeEngine` is the plain modules under FSDP2 and PyTorch's AdamW, and does all that `compute` can ask for.
`yalm.training.deepspeed.DeepSpeedEngine` hands the same network and the same AdamW to DeepSpeed. Everything else, the
data, the loss, the learning rate, the loss scale, checkpoints and metrics, does not know which of them it has. The
price is a call between the loop and PyTorch, and a DeepSpeed that is told to leave alone what is done here.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.tensor import DTensor

from yalm.model.network import Yalm
from yalm.training.optimizer import make_optimizer
from yalm.training.parallel import World, parallelize, plan_communication
from yalm.training.pipeline import sum_table_gradient
from yalm.training.precision import LossScale, clip_gradients
from yalm.training.settings import ComputeSettings, TrainSettings
from yalm.training.weights import Copy, materialize


class Engine(Protocol):
    """Computes steps and knows the state between them. Its methods are called by all ranks together."""

    @property
    def model(self) -> Yalm:
        """The network, for its sizes and the names of its parameters."""

    @property
    def network(self) -> nn.Module:
        """What is called in place of `model`, with the same arguments."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a micro-batch's scaled loss; after the `last` of a step they are averaged over ranks."""

    def step(self, lr: float) -> Tensor:
        """Clip the gradients, update the weights unless the loss scale overflowed, drop the gradients.

        Returns the gradients' norm before clipping, over all ranks.
        """

    def weights(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Parameters as they are kept between steps, gathered whole on every rank, one after another."""

    def optimizer_state(self, copy: Copy) -> dict[str, Any]:
        """The optimizer's "state" as torch's `get_optimizer_state_dict` has it, sharded, every value copied by `copy`.

        Without its groups, which the settings say again, and which are others on each stage of a pipeline.
        """

    def restore_optimizer(self, folder: Path) -> None:
        """Load the optimizer's state from `folder`, which any engine on any number of ranks may have written."""


def make_engine(
    model: Yalm, world: World, settings: TrainSettings, scale: LossScale, fill: Callable[[Yalm], None]
) -> Engine:
    """The engine of `compute.engine` around a model on "meta", divided in place and then filled with weights by `fill`.

    YalmError where DeepSpeed is not installed or does not take a setting.
    """
    if settings.compute.engine == "deepspeed":
        from yalm.training.deepspeed import DeepSpeedEngine  # takes seconds to import

        materialize(model, world.device)
        fill(model)
        return DeepSpeedEngine(model, world, settings, scale)
    parallelize(model, world, settings.compute)
    materialize(model, world.device, settings.compute.offload)
    fill(model)
    optimizer = make_optimizer(model, settings.optimizer, settings.seed)
    return NativeEngine(model, optimizer, world, settings.compute, settings.optimizer.clip_norm, scale)


@dataclass(frozen=True)
class NativeEngine:
    """A model laid over devices by `parallelize`, and an optimizer of its parameters."""

    model: Yalm
    optimizer: torch.optim.Optimizer
    world: World
    compute: ComputeSettings
    clip_norm: float
    scale: LossScale

    @property
    def network(self) -> nn.Module:
        """See `Engine`."""
        return self.model

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Engine`."""
        plan_communication(self.model, self.compute, last)
        torch.autograd.backward(loss)
        if last:
            sum_table_gradient(self.model, self.world.link)

    def step(self, lr: float) -> Tensor:
        """See `Engine`."""
        self.scale.unscale(self.model.parameters())
        grad_norm = clip_gradients(self.model, self.clip_norm, self.world.link)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.scale.accepts(grad_norm):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return grad_norm

    def weights(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """See `Engine`."""
        state = self.model.state_dict()
        for name in names:
            weight = state[name]
            # Offloaded weights go by the device, whose group gathers.
            sharded: Any = weight.to(self.world.device) if isinstance(weight, DTensor) else None
            yield name, weight if sharded is None else sharded.full_tensor()

    def optimizer_state(self, copy: Copy) -> dict[str, Any]:
        """See `Engine`."""
        state: Any = get_optimizer_state_dict(self.model, self.optimizer)["state"]
        copied = {
            name: {key: copy(f"{name} {key}", value) for key, value in values.items()} for name, values in state.items()
        }
        return {"state": copied}

    def restore_optimizer(self, folder: Path) -> None:
        """See `Engine`."""
        state: dict[str, Any] = get_optimizer_state_dict(self.model, self.optimizer)
        load_state({"state": state["state"]}, checkpoint_id=folder)
        set_optimizer_state_dict(self.model, self.optimizer, state)
