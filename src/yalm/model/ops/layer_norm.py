"""LayerNorm, alone or with the residual addition before it, by our own kernels; PyTorch has the references.

Statistics, gain and shift are fp32 whatever the type of the input, without the fp32 copies that PyTorch's operations
would read and write for that. Forward is one kernel with a row in one program's registers. Backward is two: one reads
rows for the two means in the gradient's formula, one goes over tiles with the means at hand and adds up the columns
for the parameters. In one kernel, rows of 10,240 and their three sums did not fit the registers.

With T tokens, a width of H and c bytes a number, residual, bias and norm move 4·T·H·c bytes forward and 6·T·H·c
backward, and keep their sum and two fp32 numbers a token.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

# A program's tile of the matrix, and how many tiles below each other it adds up for the parameters.
ROWS, COLUMNS, TILES = 8, 128, 16
# Numbers of a row that the backward pass reads at a time.
MOST = 4096


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def layer_norm_forward(
    x: tl.tensor,
    branch: tl.tensor,
    branch_bias: tl.tensor,
    weight: tl.tensor,
    shift: tl.tensor,
    total: tl.tensor,
    output: tl.tensor,
    means: tl.tensor,
    inverses: tl.tensor,
    width: tl.tensor,
    eps: tl.tensor,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row of `width` numbers; with ADDS it is x + branch + branch_bias, which goes to `total`."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        value += tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
        value += tl.load(branch_bias + column, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        # The norm is that of what the backward pass will read.
        value = rounded.to(tl.float32)
    mean = tl.sum(value, axis=0) / width
    centred = tl.where(inside, value - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / width + eps)
    gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    offset = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, (centred * inverse * gain + offset).to(output.dtype.element_ty), mask=inside)
    tl.store(means + row, mean)
    tl.store(inverses + row, inverse)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def layer_norm_slopes(
    grad_output: tl.tensor,
    total: tl.tensor,
    means: tl.tensor,
    inverses: tl.tensor,
    weight: tl.tensor,
    slopes: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """The means over one row of g = grad_output · weight and of g · normed, into `slopes` (height, 2) in fp32."""
    row = tl.program_id(0).to(tl.int64)
    mean, inverse = tl.load(means + row), tl.load(inverses + row)
    level = tl.zeros([BLOCK], tl.float32)
    slope = tl.zeros([BLOCK], tl.float32)
    for first in range(0, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = column < width
        upstream = tl.load(grad_output + row * width + column, mask=inside, other=0.0).to(tl.float32)
        scaled = upstream * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(total + row * width + column, mask=inside, other=0.0).to(tl.float32)
        level += scaled
        slope += scaled * (value - mean) * inverse
    tl.store(slopes + 2 * row, tl.sum(level, axis=0) / width)
    tl.store(slopes + 2 * row + 1, tl.sum(slope, axis=0) / width)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def layer_norm_backward(
    grad_output: tl.tensor,
    grad_total: tl.tensor,
    total: tl.tensor,
    means: tl.tensor,
    inverses: tl.tensor,
    slopes: tl.tensor,
    weight: tl.tensor,
    grad_x: tl.tensor,
    sums: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    tiles: tl.tensor,
    ADDS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Tiles below each other, and the sums of their columns for weight, shift and, with ADDS, branch_bias.

    `sums` is (programs, 2, width) in fp32, with ADDS (programs, 3, width).
    """
    part = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    exists = column < width
    gain = tl.load(weight + column, mask=exists, other=0.0).to(tl.float32)[None, :]
    weight_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    shift_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    bias_sum = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in range(tiles):
        row = (part * tiles + tile) * ROWS + tl.arange(0, ROWS)
        below = row < height
        inside = below[:, None] & exists[None, :]
        at = row[:, None] * width + column[None, :]
        # A row that does not exist adds 0; a column that does not is stored nowhere.
        mean = tl.load(means + row, mask=below, other=0.0)[:, None]
        inverse = tl.load(inverses + row, mask=below, other=0.0)[:, None]
        level = tl.load(slopes + 2 * row, mask=below, other=0.0)[:, None]
        slope = tl.load(slopes + 2 * row + 1, mask=below, other=0.0)[:, None]
        upstream = tl.load(grad_output + at, mask=inside, other=0.0).to(tl.float32)
        normed = (tl.load(total + at, mask=inside, other=0.0).to(tl.float32) - mean) * inverse
        # With g = grad_output · weight: (g - mean(g) - normed · mean(g · normed)) / deviation.
        of_x = (upstream * gain - level - normed * slope) * inverse
        weight_sum += upstream * normed
        shift_sum += upstream
        if ADDS:
            of_x += tl.load(grad_total + at, mask=inside, other=0.0).to(tl.float32)
            bias_sum += of_x
        tl.store(grad_x + at, of_x.to(grad_x.dtype.element_ty), mask=inside)
    start = sums + part * (2 + ADDS) * width + column
    tl.store(start, tl.sum(weight_sum, axis=0), mask=exists)
    tl.store(start + width, tl.sum(shift_sum, axis=0), mask=exists)
    if ADDS:
        tl.store(start + 2 * width, tl.sum(bias_sum, axis=0), mask=exists)


def layer_norm(x: Tensor, weight: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm of x (…, H) with weight and shift (H), in x's type, differentiable in all three (`F.layer_norm`)."""
    output: Tensor = _LayerNorm.apply(x, None, None, weight, shift, eps)  # type: ignore[no-untyped-call]
    return output


def add_layer_norm(
    x: Tensor, branch: Tensor, branch_bias: Tensor, weight: Tensor, shift: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The residual x + branch + branch_bias and its LayerNorm, both (…, H), differentiable in the first five.

    x and branch (…, H) of one type, which is that of the results too; branch_bias, weight, shift (H). The sum is
    rounded once.
    """
    total, output = _LayerNorm.apply(x, branch, branch_bias, weight, shift, eps)  # type: ignore[no-untyped-call]
    return total, output


class _LayerNorm(torch.autograd.Function):
    """See `layer_norm` and, with a branch, `add_layer_norm`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        branch_bias: Tensor | None,
        weight: Tensor,
        shift: Tensor,
        eps: float,
    ) -> Tensor | tuple[Tensor, Tensor]:
        x = x.contiguous()
        width = x.shape[-1]
        height = x.numel() // width
        adds = branch is not None
        total = torch.empty_like(x) if adds else x
        output = torch.empty_like(x)
        means, inverses = torch.empty(2, height, dtype=torch.float32, device=x.device)
        block = triton.next_power_of_2(width)
        layer_norm_forward[height,](
            x,
            branch.contiguous() if branch is not None else None,
            branch_bias,
            weight,
            shift,
            total,
            output,
            means,
            inverses,
            width,
            eps,
            adds,
            block,
            num_warps=min(max(block // 512, 4), 32),
        )
        ctx.save_for_backward(total, means, inverses, weight, shift, branch_bias)
        return (total, output) if adds else output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        total, means, inverses, weight, shift, branch_bias = ctx.saved_tensors
        adds = branch_bias is not None
        width, height = total.shape[-1], len(means)
        grad_output = grads[-1].contiguous()
        grad_total = grads[0].contiguous() if adds else None
        grad_x = torch.empty_like(total)
        slopes = torch.empty(height, 2, dtype=torch.float32, device=total.device)
        block = min(triton.next_power_of_2(width), MOST)
        layer_norm_slopes[height,](grad_output, total, means, inverses, weight, slopes, width, block)
        tiles = min(TILES, triton.cdiv(height, ROWS))
        parts = triton.cdiv(height, ROWS * tiles)
        sums = torch.empty(parts, 2 + adds, width, dtype=torch.float32, device=total.device)
        layer_norm_backward[parts, triton.cdiv(width, COLUMNS)](
            grad_output,
            grad_total,
            total,
            means,
            inverses,
            slopes,
            weight,
            grad_x,
            sums,
            height,
            width,
            tiles,
            adds,
            ROWS,
            COLUMNS,
        )
        summed = sums.sum(0)
        of_weight, of_shift = summed[0].to(weight.dtype), summed[1].to(shift.dtype)
        of_branch, of_bias = (grad_x, summed[2].to(branch_bias.dtype)) if adds else (None, None)
        return grad_x, of_branch, of_bias, of_weight, of_shift, None
