"""Cross entropy of logits in one kernel, which puts their gradient in their place; `cross_entropy` has the plain one.

A row is read twice: once for its largest logit and the sum of exponents, kept together as they go (Milakov &
Gimelshein 2018, arXiv 1805.02867), and once for the gradient. With N rows, a vocabulary of V and c bytes a number that
moves 3·N·V·c bytes and needs no room, where PyTorch's operations go through fp32 copies.
"""

import torch
import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, import-untyped, unused-ignore]
from torch import Tensor

# Logits that a program has in registers at a time.
MOST = 8192


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def softmax_loss(
    logits: tl.tensor,
    targets: tl.tensor,
    weights: tl.tensor,
    losses: tl.tensor,
    width: tl.tensor,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row: its loss, and with GRADIENT weight · (softmax - one-hot) over the logits."""
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * width
    column = tl.arange(0, BLOCK)
    # Read before the first reduction, which all warps wait for: afterwards another warp may have written over it.
    target = tl.load(targets + row)
    of_target = tl.load(start + target).to(tl.float32)
    # The lowest number, not -inf, whose difference from itself is none.
    largest = -3.4028234e38
    total = 0.0
    for first in range(0, width, BLOCK):
        value = tl.load(start + first + column, mask=first + column < width, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(largest, tl.max(value, axis=0))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(value - larger), axis=0)
        largest = larger
    log_total = largest + tl.log(total)
    tl.store(losses + row, log_total - of_target)
    if GRADIENT:
        weight = tl.load(weights + row)
        for first in range(0, width, BLOCK):
            inside = first + column < width
            value = tl.load(start + first + column, mask=inside, other=-float("inf")).to(tl.float32)
            gradient = tl.exp(value - log_total) - tl.where(first + column == target, 1.0, 0.0)
            tl.store(start + first + column, (weight * gradient).to(logits.dtype.element_ty), mask=inside)


def softmax_losses_(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """-log softmax(logits)[targets] in nats, fp32 (N); with `weights` their gradient takes the logits' place.

    logits (N, V) contiguous, targets (N) int64, weights (N) fp32: what the gradient of each row is multiplied by. Not
    differentiable by itself.
    """
    height, width = logits.shape
    losses = torch.empty(height, dtype=torch.float32, device=logits.device)
    block = min(triton.next_power_of_2(width), MOST)
    # Where a model is spread over devices, this one need not be the current one.
    with torch.cuda.device_of(logits):  # type: ignore[no-untyped-call]
        softmax_loss[height,](logits, targets, weights, losses, width, weights is not None, block, num_warps=8)
    return losses
