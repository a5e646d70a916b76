"""Linear layers with weights of 8 or 4 bits, in the plain layout of `yalm.model.quantize`.

On a CPU few rows of input are bound by reading the weights, so these become fp32 in registers, in our own C++
(`native`): at 10,240 x 10,240 torch's int8 product took 24 times as long in fp32 and 3 times in bf16, and its int4 one
wants another layout. Many rows are bound by arithmetic, so a block of the weights becomes fp32 at a time, and `product`
multiplies. Elsewhere the whole weight is dequantized for each product, in the type of the input. Sums are fp32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from yalm.model.ops.linear import product
from yalm.model.ops.native import Name, library

SOURCE: Name = "quantized_linear"
GROUP_SIZE = 128
# Up to here C++ multiplies, beyond it `product`.
MOST_NATIVE_ROWS = 64
# fp32 bytes of a block of dequantized weights; smaller ones cost more in calls than the cache gains.
BLOCK_BYTES = 16 << 20
# Weights dequantized at a time in plain PyTorch, whose intermediate results should stay in the cache.
PLAIN_WEIGHTS = 1 << 18


def dequantize(weight: Tensor, scale: Tensor, zero: Tensor | None, columns: int) -> Tensor:
    """The matrix (N, columns) in fp32 that quantized tensors (see `Quantization.layout`) stand for."""
    if zero is None:
        return weight.float() * scale.float()
    groups = weight.view(len(weight), -1, GROUP_SIZE // 2)
    codes = torch.cat((groups & 15, groups >> 4), dim=2).float()
    return (codes - zero[..., None]).mul_(scale.float()[..., None]).flatten(1)[:, :columns]


def quantized_linear(x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor) -> Tensor:
    """x (…, K) · Wᵀ + bias: (…, N) in the type of x."""
    flat, rows = x.reshape(-1, x.shape[-1]), len(weight)
    scale = scale.to(torch.float32 if zero is None else torch.bfloat16)  # whatever `module.to(dtype)` made of it
    if x.device.type != "cpu":
        output = F.linear(flat, dequantize(weight, scale, zero, x.shape[-1]).to(x.dtype), bias.to(x.dtype))
    elif library(SOURCE) is not None and len(flat) <= MOST_NATIVE_ROWS:
        output = _few_rows(flat, weight, scale, zero, bias)
    else:
        output = _many_rows(flat, weight, scale, zero, bias)
    return output.view(*x.shape[:-1], rows)


def _few_rows(x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor) -> Tensor:
    """x (M, K), M small, times the weight by C++."""
    padded = F.pad(x.float(), (0, -x.shape[1] % GROUP_SIZE)).contiguous()
    output = torch.empty(len(x), len(weight))
    _call("product", [padded], [weight, scale, zero, bias.float()], [output], len(x), len(weight), x.shape[1])
    return output.to(x.dtype)


def _many_rows(x: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, bias: Tensor) -> Tensor:
    """x (M, K), M large, times the weight in blocks of its rows by `product`."""
    columns, bias = x.shape[1], bias.to(x.dtype)
    x = F.pad(
        x, (0, -columns % GROUP_SIZE)
    )  # whole groups: with gaps between rows oneDNN takes a thousand times longer
    output = x.new_empty(len(x), len(weight))
    step = max(1, BLOCK_BYTES // (4 * columns))
    room = torch.zeros(min(step, len(weight)), x.shape[1])
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        values = room[: len(weight[rows])]
        _dequantize_into(values, weight[rows], scale[rows], zero[rows] if zero is not None else None, columns)
        output[:, rows] = product(x, values.to(x.dtype), bias[rows])
    return output


def _dequantize_into(values: Tensor, weight: Tensor, scale: Tensor, zero: Tensor | None, columns: int) -> None:
    """Fill the first `columns` of `values` (N, whole groups), by C++ where there is any."""
    if library(SOURCE) is not None:
        _call("values", [], [weight, scale, zero], [values], len(values), columns)
        return
    step = max(1, PLAIN_WEIGHTS // columns)
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        zeros = zero[rows] if zero is not None else None
        values[rows, :columns] = dequantize(weight[rows], scale[rows], zeros, columns)


def _call(name: str, before: list[Tensor], quantized: list[Tensor | None], after: list[Tensor], *counts: int) -> None:
    """Call the C++ function of that name for 8 or 4 bits, on contiguous tensors."""
    inputs = [tensor.contiguous() for tensor in quantized if tensor is not None]
    bits = 8 if quantized[0] is not None and quantized[0].dtype is torch.int8 else 4
    function = getattr(library(SOURCE), f"int{bits}_{name}")
    function(*(tensor.data_ptr() for tensor in (*before, *inputs, *after)), *counts, torch.get_num_threads())
