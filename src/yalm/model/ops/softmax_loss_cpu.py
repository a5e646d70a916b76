"""Cross entropy of logits on CPUs, in C++ (`softmax_loss.cpp`); `softmax_loss` is the kernel of GPUs.

torch's operations write the log-probabilities beside the logits and go over them twice more for the gradient: at 25
million parameters that was a twentieth of a training step, and this is a hundredth.
"""

from typing import Any

import torch
from torch import Tensor

from yalm.model.ops.native import Name, library

SOURCE: Name = "softmax_loss"

# An operation of torch's, so that profilers see it.
_operations: Any = torch.library.Library("yalm", "FRAGMENT")  # type: ignore[no-untyped-call]
_operations.define("softmax_losses_(Tensor(a!) logits, Tensor targets, Tensor? weights) -> Tensor")


def has_softmax_losses(logits: Tensor) -> bool:
    """Whether `softmax_losses_` takes the fp32 copy of these logits: on a CPU for which it can be compiled."""
    return logits.device.type == "cpu" and library(SOURCE) is not None


def softmax_losses_(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    """-log softmax(logits)[targets] in nats, fp32 (N); with `weights` their gradient takes the logits' place.

    logits (N, V) contiguous fp32, targets (N) int64 in [0, V), weights (N) fp32: what the gradient of each row is
    multiplied by. Not differentiable by itself.
    """
    losses: Tensor = torch.ops.yalm.softmax_losses_(logits, targets, weights)
    return losses


def _softmax_losses_(logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    functions, (rows, words) = library(SOURCE), logits.shape
    assert functions is not None, "has_softmax_losses said so"
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < words:
        raise IndexError(f"targets from {int(targets.min())} to {int(targets.max())}, of {words} words")
    losses = torch.empty(rows)
    given = [tensor.contiguous() if tensor is not None else None for tensor in (logits, targets, weights, losses)]
    pointers = [tensor.data_ptr() if tensor is not None else None for tensor in given]
    functions.softmax_losses(*pointers, rows, words, torch.get_num_threads())
    return losses


_operations.impl("softmax_losses_", _softmax_losses_, "CPU")
