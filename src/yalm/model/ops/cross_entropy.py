"""Linear layer and cross entropy in one, without ever holding all the logits.

With N tokens and a vocabulary of V, the logits and their gradient are the largest tensors of a training step: N·V
numbers each, twice over. Here they are made for a chunk of rows at a time, and the chunk's gradients are taken at
once, in the forward pass, while its logits are still in cache; only the gradients of the three inputs stay. Nothing
is recomputed: the matrix work is that of the plain formula (one product forward, two backward).

A kernel turns a chunk's logits into their gradient where they lie, in Triton on GPUs (`softmax_loss`) and in C++ on
CPUs (`softmax_loss_cpu`); without them, and where words are divided over processes, PyTorch's operations go through
fp32 copies.

The price: the gradient of the table (V·E, fp32) is alive from the forward pass on, and the loss can be
differentiated once.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from yalm.model.ops.linear import add_product_, must_cast, product
from yalm.model.ops.softmax_loss_cpu import has_softmax_losses
from yalm.model.ops.softmax_loss_cpu import softmax_losses_ as softmax_losses_cpu_

# Bytes of one chunk's fp32 logits. On CPUs small chunks stay in cache; on GPUs large ones fill the multiprocessors.
CHUNK_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
# Fewer rows than this starve the products, whatever the vocabulary.
CHUNK_ROWS = 128
# Every chunk reads and writes the table's gradient for 2 FLOPs a row and number: a quarter of its width in rows keeps
# that rare, and a chunk's logits at a quarter of that gradient.
WIDTH_SHARE = 4


@dataclass(frozen=True)
class VocabularyShard:
    """The words from `first` on whose rows of the table this process has; the group's processes have all of them."""

    first: int
    group: dist.ProcessGroup

    def log_softmax(self, logits: Tensor) -> Tensor:
        """Of this process's logits (N, V/ranks), normalised over all words; `logits` are overwritten."""
        highest = logits.amax(-1)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        logits -= highest[:, None]
        total = logits.exp().sum(-1)
        dist.all_reduce(total, group=self.group)
        return logits.sub_(total.log_()[:, None])

    def find(self, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Where `targets` are among this process's `size` words, and whether they are; elsewhere the place is wrong."""
        places = targets - self.first
        return places.clamp(0, size - 1), (places >= 0) & (places < size)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    targets: Tensor,
    weights: Tensor | None = None,
    shard: VocabularyShard | None = None,
) -> tuple[Tensor, Tensor]:
    """Σ weights·(-log softmax(hidden·weightᵀ + bias)[targets]), and its terms.

    hidden (N, E), weight (V, E), bias (V), targets (N) int64, weights (N) or None for 1 each. Returns the scalar sum
    in fp32 nats, differentiable in hidden, weight and bias, and the unweighted losses (N) in fp32, which are not.

    With `shard`, weight and bias are some of the words' and the losses are over all of them, the same on every process
    of the group (Shoeybi et al. 2019, arXiv 1909.08053, section 3); the gradient of hidden is this process's summand.

    Memory beyond inputs and outputs: two fp32 copies of a chunk's logits, at most
    2·max(CHUNK_BYTES, 4·V·CHUNK_ROWS, 4·V·E/WIDTH_SHARE) bytes (with a kernel one copy, of hidden's type on GPUs);
    and where gradients are wanted, the three gradients (N·E in hidden's type, V·E and V in fp32). On a CPU that has no
    instructions for their type also fp32 copies of hidden, weight and bias, with which all is computed.
    """
    if must_cast(hidden):  # once, not in every chunk
        hidden, weight, bias = hidden.float(), weight.float(), bias.float()
    if weights is None:
        weights = torch.ones(targets.shape, dtype=torch.float32, device=hidden.device)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad or bias.requires_grad):
        loss, losses = _LinearCrossEntropy.apply(hidden, weight, bias, targets, weights, shard)  # type: ignore[no-untyped-call]
        return loss, losses
    losses = torch.cat(
        [
            _losses_and_gradient(product(hidden[rows], weight, bias), targets[rows], None, shard)[0]
            for rows in _chunks(hidden, weight)
        ]
    )
    return (losses * weights).sum(), losses


class _LinearCrossEntropy(torch.autograd.Function):
    """The differentiable case; see `linear_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        weights: Tensor,
        shard: VocabularyShard | None,
    ) -> tuple[Tensor, Tensor]:
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        grad_bias = torch.zeros(bias.shape, dtype=torch.float32, device=bias.device)
        losses = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
        for rows in _chunks(hidden, weight):
            # No name for the logits: they must be gone before the products of the backward pass.
            losses[rows], grad_logits = _losses_and_gradient(
                product(hidden[rows], weight, bias), targets[rows], weights[rows], shard
            )
            grad_bias += grad_logits.sum(0, dtype=torch.float32)
            typed = grad_logits.to(weight.dtype)
            grad_hidden[rows] = product(typed, weight.T)
            add_product_(grad_weight, typed.T, hidden[rows].T)
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(bias.dtype))
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden, grad_weight, grad_bias = ctx.saved_tensors
        # In place: a table's gradient is large. autograd sees it, and refuses to use them a second time.
        gradients = (gradient.mul_(grad_loss) for gradient in (grad_hidden, grad_weight, grad_bias))
        return *gradients, None, None, None


def _losses_and_gradient(
    logits: Tensor, targets: Tensor, weights: Tensor | None, shard: VocabularyShard | None
) -> tuple[Tensor, Tensor]:
    """Losses (rows) of logits (rows, V), and with `weights` (rows) the logits' gradient; uses the logits up."""
    if shard is None and has_kernel(logits):
        from yalm.model.ops.softmax_loss import softmax_losses_

        return softmax_losses_(logits, targets, weights), logits
    if shard is None and has_softmax_losses(logits):
        logits = logits.float()
        return softmax_losses_cpu_(logits, targets, weights), logits
    places = targets[:, None]
    if shard is None:
        log_probabilities, here = F.log_softmax(logits.float(), dim=-1), None
        losses = -log_probabilities.gather(1, places).squeeze(1)
    else:
        log_probabilities = shard.log_softmax(logits.float())
        places, here = shard.find(places, logits.shape[1])
        losses = -(log_probabilities.gather(1, places) * here).squeeze(1)
        dist.all_reduce(losses, group=shard.group)
    if weights is None:
        return losses, logits
    # d loss / d logits = weights · (softmax - one-hot of the target)
    gradient = log_probabilities.exp_()
    ones = gradient.new_ones(places.shape) if here is None else here.to(gradient.dtype)
    gradient.scatter_add_(1, places, -ones)
    return losses, gradient.mul_(weights[:, None])


def has_kernel(logits: Tensor) -> bool:
    """Whether the kernel of GPUs takes these logits."""
    return logits.is_cuda and find_spec("triton") is not None


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Rows of `hidden` in slices whose fp32 logits fit CHUNK_BYTES, or as many more as the products want."""
    budget = CHUNK_BYTES["cpu" if hidden.device.type == "cpu" else "cuda"]
    words, width = weight.shape
    size = max(CHUNK_ROWS, width // WIDTH_SHARE, budget // (4 * words))
    return [slice(start, start + size) for start in range(0, hidden.shape[0], size)]
