"""AdamW and its learning rate; for weights kept in bf16, an AdamW that rounds at random.

bfloat16 has 8 bits of mantissa: an update below 1/512 of a weight, which most are, is rounded away each time, and
training stalls. `StochasticAdamW` rounds up or down with the chances that make the mean exact, so that small updates
arrive on average (Gupta et al. 2015, arXiv 1502.02551; for bf16 training Zamirai et al. 2020, arXiv 2010.06192). That
saves the fp32 copy of the weights for a little noise.

The chances are a hash of (seed, step, parameter, place in it), so they are the same on any number of ranks. The price:
a dozen passes over the weights instead of one fused kernel, a tensor at a time.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from yalm.training.settings import OptimizerSettings, ScheduleSettings


def make_optimizer(model: nn.Module, settings: OptimizerSettings, seed: int) -> torch.optim.Optimizer:
    """AdamW in two groups: matrices with weight decay, norms and biases without.

    Fused for fp32 weights; for bf16 ones `StochasticAdamW`, whose noise comes from `seed`.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    betas = (settings.beta1, settings.beta2)
    if settings.weights == "bf16":
        return StochasticAdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, seed=seed)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps, fused=True)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW for bf16 weights: fp32 moments and arithmetic, the new weight rounded stochastically."""

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, seed: int
    ) -> None:
        self.seed = seed
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
                    self._update(parameter, _local(parameter.grad).float(), group, number)
        return None

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any], number: int) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["step"] += 1
        step, (beta1, beta2), lr = int(state["step"]), group["betas"], group["lr"]
        weight, mean, square = _local(parameter), _local(state["exp_avg"]), _local(state["exp_avg_sq"])
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
        updated = (
            weight.float().mul_(1 - lr * group["weight_decay"]).addcdiv_(mean, scale, value=-lr / (1 - beta1**step))
        )
        weight.copy_(round_stochastically(updated, random_bits(places(parameter), (self.seed, step, number))))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the moments stay fp32, where torch casts them to the type of the weights."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            for name in ("exp_avg", "exp_avg_sq"):
                if number in state_dict["state"]:
                    self.state[parameter][name] = state_dict["state"][number][name].to(parameter.device).clone()


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def places(tensor: Tensor) -> Tensor:
    """The numbers, in the whole tensor row by row, of the elements that this rank holds: int64, in its part's shape."""
    shape, offsets = tuple(tensor.shape), (0,) * tensor.dim()
    if isinstance(tensor, DTensor):
        shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    numbers = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for size, offset, whole in zip(shape, offsets, tensor.shape, strict=True):
        numbers = numbers[..., None] * whole + torch.arange(offset, offset + size, device=tensor.device)
    return numbers


def random_bits(places: Tensor, key: tuple[int, ...]) -> Tensor:
    """16 random bits for each of `places` (int64), a function of it and of `key` alone, as int32 from 0 to 65,535.

    Rounds of "lowbias32" (C. Wellons, github.com/skeeto/hash-prospector), one for each number of the key.
    """
    bits = places & 0xFFFFFFFF
    for number in (*key, 0):
        bits = bits ^ (number & 0xFFFFFFFF)
        bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
        bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & 0xFFFFFFFF
        bits = bits ^ (bits >> 16)
    return (bits & 0xFFFF).to(torch.int32)


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """fp32 `values` to bf16, up with the chance of the distance from below: the 16 bits that bf16 cuts off carry if
    random `bits` (0 to 65,535) are added. What bf16 can hold stays as it is."""
    return ((values.view(torch.int32) + bits) & -0x10000).view(torch.float32).bfloat16()


def learning_rate(tokens: int, lr: float, schedule: ScheduleSettings) -> float:
    """The rate of the step that ends at `tokens` seen: linear up to `lr`, then a cosine to `final_lr_ratio`·lr."""
    if tokens < schedule.warmup_tokens:
        return lr * tokens / schedule.warmup_tokens
    span = max(1, schedule.tokens - schedule.warmup_tokens)
    progress = min(1.0, (tokens - schedule.warmup_tokens) / span)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return lr * (schedule.final_lr_ratio + (1 - schedule.final_lr_ratio) * cosine)
