"""AdamW and its learning rate; for weights or moments kept in bf16, an AdamW that rounds at random.

bf16 weights need no fp32 copy, for a little noise (for bf16 training Zamirai et al. 2020, arXiv 2010.06192); bf16
moments are half as large (DeepSeek-V3 was trained with them, arXiv 2412.19437, section 3.3.2). How they are rounded,
and why, is in `yalm.model.ops.stochastic_adamw`.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from yalm.model.ops.stochastic_adamw import Place, Update, stochastic_adamw_
from yalm.training.settings import OptimizerSettings, ScheduleSettings

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MOMENTS = ("exp_avg", "exp_avg_sq")


def make_optimizer(model: nn.Module, settings: OptimizerSettings, seed: int) -> torch.optim.Optimizer:
    """AdamW in two groups: matrices with weight decay, norms and biases without.

    Fused where weights and moments are fp32; else `StochasticAdamW`, whose noise comes from `seed`.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (settings.beta1, settings.beta2)
    if "bf16" in (settings.weights, settings.moments):
        moments = TYPES[settings.moments]
        return StochasticAdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, seed=seed, moments=moments)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW for weights or `moments` in bf16: fp32 arithmetic, the results rounded stochastically."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        seed: int,
        moments: torch.dtype = torch.float32,
    ) -> None:
        self.seed = seed
        self.moments = moments
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all weights that have a gradient."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None:
                    self._update(parameter, _local(parameter.grad), group, number)
        return None

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for name in MOMENTS:
                state[name] = torch.zeros_like(parameter, dtype=self.moments)
        state["step"] += 1
        step, (beta1, beta2), lr = int(state["step"]), group["betas"], group["lr"]
        stochastic_adamw_(
            _local(parameter),
            gradient,
            _local(state["exp_avg"]),
            _local(state["exp_avg_sq"]),
            Update(
                keep=1 - lr * group["weight_decay"],
                beta1=beta1,
                beta2=beta2,
                rate=lr / (1 - beta1**step),
                correction=(1 - beta2**step) ** 0.5,
                eps=group["eps"],
            ),
            Place(_begin(parameter), tuple(parameter.shape)),
            (self.seed, step, number),
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the moments keep their type, where torch casts them to that of the weights."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name in MOMENTS:
                if number in state_dict["state"]:
                    moment = state_dict["state"][number][name]
                    self.state[parameter][name] = moment.to(parameter.device, self.moments, copy=True)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _begin(tensor: Tensor) -> tuple[int, ...]:
    """Where, in the whole tensor, the part begins that this rank holds."""
    if isinstance(tensor, DTensor):
        return tuple(compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)[1])
    return (0,) * tensor.dim()


def learning_rate(tokens: int, lr: float, schedule: ScheduleSettings) -> float:
    """The rate of the step that ends at `tokens` seen: linear up to `lr`, then a cosine to `final_lr_ratio`·lr."""
    if tokens < schedule.warmup_tokens:
        return lr * tokens / schedule.warmup_tokens
    span = max(1, schedule.tokens - schedule.warmup_tokens)
    progress = min(1.0, (tokens - schedule.warmup_tokens) / span)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return lr * (schedule.final_lr_ratio + (1 - schedule.final_lr_ratio) * cosine)
