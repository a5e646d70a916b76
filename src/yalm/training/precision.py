"""In what types a run computes, applied to the plain network from outside; what must stay fp32 is named here.

`compute.precision` chooses the type of the matrix products and of the activations between them:

    fp32  exact products                       tf32  fp32 with products cut to 10 bits of mantissa (Ampere or newer)
    bf16  bfloat16                             fp16  float16 with a loss scale
    fp8   bf16, and the layers' linears in float8 by torchao (compute capability 8.9 or newer)

Whatever it is, these stay fp32, for rounding would be added up in them or would decide over small differences:

    LayerNorm            statistics, gain and shift (`Fp32LayerNorm`); the saved mean and deviation too
    attention            the softmax and its log-sum, inside PyTorch's fused operation; only q, k, v and output are half
    rotary               angles, cosines and sines (`network.Rotary`); they are rounded when they multiply
    cross entropy        log-softmax, probabilities, losses and the sums over chunks (`ops.cross_entropy`)
    gradients            their sum over ranks (FSDP2's reduce_dtype) and their norm (`clip_gradients`)
    weights, optimizer   fp32 masters and moments, but for what `optimizer.weights` and `.moments` say is kept in bf16

The price of half types where layers are neither compiled nor fused: a LayerNorm reads and writes a few copies more.
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.costs import alignment, unaligned
from yalm.model.network import Yalm
from yalm.model.ops.linear import cpu_multiplies
from yalm.training.pipeline import TABLE, Link
from yalm.training.settings import Precision, WeightType

# What activations and gathered weights are cast to; the other precisions leave them fp32.
HALF: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
# float8 products of torch need sizes that are multiples of this; other linears stay bf16.
FP8_MULTIPLE = 16


def apply_precision(model: Yalm, precision: Precision, device: torch.device) -> None:
    """Set how products round and make the modules keep what must be fp32, in place, before sharding.

    The casts of weights and the sums of gradients are FSDP2's (`HALF`). YalmError where the device cannot do it.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    if precision == "tf32" and capability < (8, 0):
        raise YalmError("compute.precision tf32 needs a GPU of compute capability 8.0 or newer; take fp32")
    if precision == "fp8" and capability < (8, 9):
        raise YalmError("compute.precision fp8 needs a GPU of compute capability 8.9 or newer; take bf16")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if precision == "fp8":
        float8_linears(model)
    if precision in HALF:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.__class__ = Fp32LayerNorm


class Fp32LayerNorm(nn.LayerNorm):
    """LayerNorm in fp32, result in the type of x. On CPUs torch would save half-precision statistics for backward.

    A class, and no function put on each module: the compiler would compile every layer for its own functions.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) to (…, H)."""
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


def float8_linears(model: Yalm, emulate: bool = False) -> None:
    """Let torchao compute the layers' linear layers in float8 with a scale per tensor, in place.

    Those whose sizes are no multiples of 16, the embedding and the output stay as they are. `emulate` computes the
    same values without float8 products, on any device. YalmError without torchao.
    """
    try:
        from torchao.float8 import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
            Float8LinearConfig,
            convert_to_float8_training,
        )
    except ImportError:
        raise YalmError("compute.precision fp8 needs torchao; pip install torchao, or take bf16") from None
    for layer in model.model.layers:
        convert_to_float8_training(layer, config=Float8LinearConfig(emulate=emulate), module_filter_fn=_fits_float8)


def _fits_float8(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and not (
        module.in_features % FP8_MULTIPLE or module.out_features % FP8_MULTIPLE
    )


def keep_weights(model: Yalm, weights: WeightType) -> None:
    """Cast the weights to the type in which they are kept between steps, in place, before sharding."""
    model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[weights])


def clip_gradients(model: nn.Module, max_norm: float, link: Link | None = None) -> Tensor:
    """Scale all gradients so that their common norm is at most `max_norm`; returns the norm before, in fp32.

    It is the norm over all ranks, to the same bits on each; in a pipeline, whose `link` is given, that of all stages'
    gradients. What several ranks have is counted once. torch's own takes the norm of bf16 gradients in bf16, which
    stops adding after a few hundred equal numbers.
    """
    gradients, copies = [], []
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None and not (link and link.stage > 0 and name == TABLE):
            copies.append(1)
            if isinstance(gradient, DTensor):
                dimensions = zip(gradient.device_mesh.shape, gradient.placements, strict=True)
                copies[-1] = math.prod(ranks for ranks, placement in dimensions if placement.is_replicate())
                gradient = gradient.to_local()
            gradients.append(gradient)
    norms = torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32))
    norm: Tensor = torch.linalg.vector_norm(norms / norms.new_tensor(copies).sqrt())
    if dist.is_initialized() and dist.get_world_size() > 1:
        norm = norm.square()
        dist.all_reduce(norm)
        norm = norm.sqrt()
    clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


class LossScale:
    """A factor on the loss that keeps fp16's gradients between its smallest and its largest number.

    fp16 ends at 65,504 and is imprecise below 6e-5, so the loss is multiplied by the largest power of two at which
    nothing overflows (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2): a step with an overflow is skipped and
    halves the factor, GROWTH_INTERVAL steps in a row without one double it. Powers of two change no digit. Whether a
    step overflowed is read off the gradients' norm, which all ranks have in common anyway; the price is a wait for it.

    In other precisions the factor is 1 and nothing is checked.
    """

    FIRST = 2.0**16
    GROWTH_INTERVAL = 1000

    def __init__(self, precision: Precision, saved_value: float, clean_steps: int) -> None:
        """Go on from a saved value and its steps without overflow; a saved value of 1 is that of another precision."""
        self.dynamic = precision == "fp16"
        fresh = not self.dynamic or saved_value == 1
        self.value = (self.FIRST if self.dynamic else 1.0) if fresh else saved_value
        self.clean_steps = 0 if fresh else clean_steps

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the factor out of the gradients, in place."""
        if self.dynamic:
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, 1 / self.value)

    def accepts(self, grad_norm: Tensor) -> bool:
        """Whether the step may be taken, by the norm of its gradients, the same on all ranks; adapts the factor.

        YalmError when there is nothing left to halve.
        """
        if not self.dynamic:
            return True
        if torch.isfinite(grad_norm):
            self.clean_steps += 1
            if self.clean_steps == self.GROWTH_INTERVAL:
                self.value, self.clean_steps = 2 * self.value, 0
            return True
        self.value, self.clean_steps = self.value / 2, 0
        if self.value <= 1:
            raise YalmError(
                "fp16 gradients overflow at every loss scale; lower optimizer.lr or take compute.precision bf16"
            )
        return False

    def record(self) -> dict[str, float]:
        """What metrics show of it."""
        return {"loss_scale": self.value, "clean_steps": self.clean_steps} if self.dynamic else {}


def warnings(config: ModelConfig, precision: Precision, device: torch.device) -> Iterator[str]:
    """Lines for a person whose precision will be slow here: no instructions for it, or sizes that miss tensor cores."""
    if device.type == "cpu" and precision in HALF and not cpu_multiplies(HALF[precision]):
        name = str(HALF[precision]).removeprefix("torch.")
        yield f"this CPU has no {name} instructions: compute.precision={precision} is slower than fp32"
    if device.type == "cuda" and precision != "fp32":
        for name, (size, padded) in unaligned(config, precision).items():
            wanted = f"{alignment(precision)}, as {precision} tensor cores want"
            yield f"{name} {size:,} is no multiple of {wanted}; {padded:,} is"
