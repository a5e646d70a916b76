"""Rotary positions in one kernel each way; the plain formula is `network.Rotary`.

The kernel reads q | k | v as the projection leaves them and writes queries and keys, turned, and values, each in a
tensor of its own; backward it turns the three gradients back into one. With T tokens, a width of H and c bytes a number
it moves 6·T·H·c bytes each way, where PyTorch's operations move 18 forward, and attention keeps 3·T·H·c bytes instead
of 5, since its values are no longer a view of the whole projection.

The price: values are copied.
"""

from typing import Any

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

# Heads of one token that a program turns.
HEADS = 16


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def turn(
    qkv: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    angles: tl.tensor,
    heads: tl.tensor,
    half: tl.tensor,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """HEADS heads of one token, from qkv to the other three, or (BACK) from those to qkv, turned the other way."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    column = tl.arange(0, BLOCK)
    exists = column < half
    inside = (head < heads)[:, None] & exists[None, :]
    # Angles are one row for each position, or one for each token.
    angle = (token % angles) * half + column
    c = tl.load(cos + angle, mask=exists, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + angle, mask=exists, other=0.0).to(tl.float32)[None, :]
    if BACK:
        s = -s
    alone = ((token * heads + head) * 2 * half)[:, None] + column[None, :]
    packed = ((token * heads + head) * 6 * half)[:, None] + column[None, :]
    for which in tl.static_range(3):
        if which == 0:
            single = query
        elif which == 1:
            single = key
        else:
            single = value
        joint = packed + which * 2 * half
        if BACK:
            source, source_at, target, target_at = single, alone, qkv, joint
        else:
            source, source_at, target, target_at = qkv, joint, single, alone
        a = tl.load(source + source_at, mask=inside, other=0.0)
        b = tl.load(source + source_at + half, mask=inside, other=0.0)
        if which < 2:
            x, y = a.to(tl.float32), b.to(tl.float32)
            a = (c * x - s * y).to(target.dtype.element_ty)
            b = (s * x + c * y).to(target.dtype.element_ty)
        tl.store(target + target_at, a, mask=inside)
        tl.store(target + target_at + half, b, mask=inside)


def split_rotary(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q | k | v (B, S, A, 3, D) to turned queries and keys and to values, (B, S, A, D) each; differentiable in qkv.

    `cos` and `sin` are those of a `network.Rotary`: (S, 1, 1, D/2), or with positions for each sequence
    (B, S, 1, 1, D/2). Products and sums are fp32.
    """
    query, key, value = _SplitRotary.apply(qkv, cos, sin)  # type: ignore[no-untyped-call]
    return query, key, value


class _SplitRotary(torch.autograd.Function):
    """See `split_rotary`."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        parts = tuple(torch.empty_like(qkv[..., 0, :], memory_format=torch.contiguous_format) for _ in range(3))
        _launch(qkv.contiguous(), parts, cos, sin, back=False)
        return parts

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        batch, seq, heads, size = grads[0].shape
        grad_qkv = grads[0].new_empty(batch, seq, heads, 3, size)
        _launch(grad_qkv, tuple(grad.contiguous() for grad in grads), cos, sin, back=True)
        return grad_qkv, None, None


def _launch(qkv: Tensor, parts: tuple[Tensor, ...], cos: Tensor, sin: Tensor, back: bool) -> None:
    *_, heads, _, size = qkv.shape
    cos, sin = cos.flatten(0, -2), sin.flatten(0, -2)
    grid = (qkv[..., 0, 0, 0].numel(), triton.cdiv(heads, HEADS))
    block = triton.next_power_of_2(size // 2)
    turn[grid](qkv, *parts, cos, sin, len(cos), heads, size // 2, BACK=back, HEADS=HEADS, BLOCK=block)
