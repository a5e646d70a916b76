"""Weights in 8 or 4 bits: half or a quarter of bf16 on disk, in memory, and on the way to the processor.

Only the matrices of layers and output transform are quantized, 99.7 % of the 100B; the token table, norms and
biases keep their type, and so do the activations. A matrix is rounded to the nearest code, from the weights alone: no
calibration texts, the same codes every time, each row by itself. A column or row of zeros stays exactly zero.

- 8 bits: one scale a row, codes -127 … 127, w = scale · code.
- 4 bits: a scale and a zero for every group of 128 columns, codes 0 … 15, w = scale · (code - zero). Asymmetric since
  that measured better than a symmetric code with a signed scale: relative RMS error 0.097 against 0.100 on the golden
  weights, 0.094 against 0.096 on a trained small model, 0.125 against 0.158 where one weight in 500 is an outlier, for
  1/16 of a bit. Searching each group's scale among three would take off 4 % more, and triple the conversion's time.

The layout is plain, so that a layer can be read from disk into its buffers and used as it lies. Tensors of N rows are
cut by rows, and by whole groups of columns: in each group's 64 bytes the low nibbles are its first 64 columns and the
high nibbles its last 64. The last group is filled up with zeros.
"""

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from yalm.config import Settings
from yalm.errors import YalmError
from yalm.model.network import Yalm, parts
from yalm.model.ops.quantized_linear import GROUP_SIZE, dequantize, quantized_linear

# The modules whose matrix is quantized, and the tensors it becomes.
MATRICES = ("qkv_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "dense")
PARTS = ("weight", "weight_scale", "weight_zero")
# Weights in work at a time while quantizing: the fp32 copies of a block of rows stay near the processor's cache.
BLOCK_WEIGHTS = 1 << 18


class Quantization(Settings):
    """How the matrices of a model are stored; in config.json as `quantization_config`."""

    quant_method: Literal["yalm"] = "yalm"
    bits: Literal[8, 4]
    group_size: Literal[128] | None = None
    """Columns that share a scale; None is the whole row."""

    @model_validator(mode="after")
    def _one_layout_for_each_width(self) -> Self:
        expected = GROUP_SIZE if self.bits == 4 else None
        if self.group_size != expected:
            raise ValueError(f"group_size must be {expected} for {self.bits} bits, not {self.group_size}")
        return self

    @classmethod
    def named(cls, name: str) -> Self:
        """The settings called "int8" or "int4"; YalmError for other names."""
        known: dict[str, dict[str, Any]] = {"int8": {"bits": 8}, "int4": {"bits": 4, "group_size": GROUP_SIZE}}
        if name not in known:
            raise YalmError(f"quantization {name!r} is not known; choose one of {', '.join(known)}")
        return cls(**known[name])

    @property
    def name(self) -> str:
        """ "int8" or "int4"."""
        return f"int{self.bits}"

    def layout(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, int], torch.dtype]]:
        """Shape and type of each tensor that stands for a (rows, columns) matrix, by the name it has in its module."""
        if self.bits == 8:
            return {"weight": ((rows, columns), torch.int8), "weight_scale": ((rows, 1), torch.float32)}
        groups = -(-columns // GROUP_SIZE)
        return {
            "weight": ((rows, groups * GROUP_SIZE // 2), torch.uint8),
            "weight_scale": ((rows, groups), torch.bfloat16),
            "weight_zero": ((rows, groups), torch.uint8),
        }


@torch.no_grad()
def quantize(
    weight: Tensor, quantization: Quantization, columns: int | None = None, names: Sequence[str] = PARTS
) -> dict[str, Tensor]:
    """The tensors of `Quantization.layout` for a matrix (N, K) of any floating type and device.

    `columns`, at least K, is how wide the matrix is to be: zeros on the right. `names` asks for some of the tensors;
    all but `weight` take a third of the time. Takes the memory of the result and of a block of rows. ValueError if a
    weight is not finite, or too large for the scale's type.
    """
    rows, width = len(weight), columns or weight.shape[1]
    result = {
        name: torch.empty(shape, dtype=dtype, device=weight.device)
        for name, (shape, dtype) in quantization.layout(rows, width).items()
        if name in names
    }
    step = max(1, BLOCK_WEIGHTS // width)
    for start in range(0, rows, step):
        block = slice(start, start + step)
        values = F.pad(weight[block].float(), (0, width - weight.shape[1]))
        made = _int8(values, "weight" in names) if quantization.bits == 8 else _int4(values, "weight" in names)
        if not made["weight_scale"].isfinite().all():
            raise ValueError("a weight is not finite, or too large")
        for name, tensor in result.items():
            tensor[block] = made[name]
    return result


def _int8(values: Tensor, with_codes: bool) -> dict[str, Tensor]:
    made = {"weight_scale": values.abs().amax(1, keepdim=True) / 127}
    if with_codes:
        # A row of zeros, or of numbers so small that their scale is 0, has codes of 0.
        codes = values.div_(made["weight_scale"]).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(-127, 127)
        made["weight"] = codes.to(torch.int8)
    return made


def _int4(values: Tensor, with_codes: bool) -> dict[str, Tensor]:
    values = F.pad(values, (0, -values.shape[1] % GROUP_SIZE)).view(len(values), -1, GROUP_SIZE)
    low, high = (bound.clone() for bound in values.aminmax(dim=2, keepdim=True))
    low, high = low.clamp_(max=0), high.clamp_(min=0)
    # Rounded to its stored type first, so that codes are the nearest ones to what will be multiplied.
    scale = ((high - low) / 15).bfloat16()
    zero = (-low / scale).nan_to_num_(0.0, 0.0, 0.0).round_().clamp_(0, 15)
    made = {"weight_scale": scale.squeeze(2), "weight_zero": zero.squeeze(2).to(torch.uint8)}
    if with_codes:
        codes = (values / scale).nan_to_num_(0.0, 0.0, 0.0).round_().add_(zero).clamp_(0, 15).to(torch.uint8)
        first, last = codes.chunk(2, dim=2)
        made["weight"] = (first | last << 4).flatten(1)
    return made


class QuantizedLinear(nn.Module):
    """`nn.Linear` with a quantized weight: (…, K) to (…, N) in the type of its input; all tensors are buffers."""

    weight: Tensor
    weight_scale: Tensor
    weight_zero: Tensor | None
    bias: Tensor

    def __init__(self, in_features: int, out_features: int, quantization: Quantization, bias: Tensor) -> None:
        super().__init__()
        self.in_features, self.out_features, self.quantization = in_features, out_features, quantization
        self.register_buffer("weight_zero", None)
        for name, (shape, dtype) in quantization.layout(out_features, in_features).items():
            self.register_buffer(name, torch.empty(shape, dtype=dtype, device=bias.device))
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, linear: nn.Linear, quantization: Quantization) -> Self:
        """The quantized form of a linear layer with a bias; on "meta" its shapes."""
        module = cls(linear.in_features, linear.out_features, quantization, linear.bias.detach())
        if linear.weight.device.type != "meta":
            for name, tensor in quantize(linear.weight.detach(), quantization).items():
                setattr(module, name, tensor)
        return module

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return quantized_linear(x, self.weight, self.weight_scale, self.weight_zero, self.bias)

    def dequantize(self) -> Tensor:
        """The weight (N, K) in fp32."""
        return dequantize(self.weight, self.weight_scale, self.weight_zero, self.in_features)

    def extra_repr(self) -> str:
        """What `print` shows inside the brackets."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.quantization.name}"


def quantized_part(name: str) -> tuple[str, str] | None:
    """For a tensor of a quantized model: the matrix in whose place it stands, and its name in `Quantization.layout`.

    None for the tensors that are as in every model.
    """
    module, _, part = name.rpartition(".")
    return (f"{module}.weight", part) if module.rpartition(".")[2] in MATRICES and part in PARTS else None


def quantize_modules(model: Yalm, quantization: Quantization) -> Yalm:
    """Replace the linear layers of every layer and of the output transform, in place, one at a time.

    On "meta" only shapes change, to be filled afterwards. The result generates and scores, and is not to be trained.
    ValueError if a weight is not finite.
    """
    for _, part in parts(model):
        for module in list(part.modules()):
            for name, child in list(module.named_children()):
                if name in MATRICES and isinstance(child, nn.Linear):
                    setattr(module, name, QuantizedLinear.of(child, quantization))
    return model
