"""Tensor parallelism in training: every layer's matrices divided over a few ranks, with the sequence in between.

Attention and feed-forward take whole sequences and a part of the heads or of the width; what lies between them (norms,
sums, the embedding's norm, the output's dense layer) takes all of the width and a part of the positions (sequence
parallelism; Korthikanti et al. 2022, arXiv 2205.05198, section 4.2). So activations are divided as well, and a layer
costs two gathers of T·H numbers and two reductions in either direction. The token table and the logits are divided by
words; the loss meets in two numbers a token.

Parameters become DTensors, all of them, so that sharding, clipping and checkpoints see one kind. Computing sees none:
while a module runs, its parameters are this rank's plain parts (`_with_local_parameters`), and what goes between ranks
is written out in two functions that are each other's backward, `gather` and `scatter`.

The price: sizes must divide evenly, and gradients of what every rank has (norms, biases behind a sum) are summed one
by one, in the type of computing.
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from yalm.errors import YalmError
from yalm.model.division import SPLIT_DIMS
from yalm.model.network import Yalm
from yalm.model.ops.cross_entropy import VocabularyShard, linear_cross_entropy
from yalm.model.ops.linear import linear

SEQUENCE = 1  # the dimension of (B, S, …) that is divided between the matrices


def divide(model: Yalm, mesh: DeviceMesh) -> None:
    """Divide a model, or a pipeline's stage of one, over a mesh of one dimension, in place; YalmError if sizes do not
    divide.

    Called with the same ids on each of the ranks, it gives the same loss on each.
    """
    config, ranks, rank, group = model.config, mesh.size(), mesh.get_local_rank(), mesh.get_group()
    sizes = {
        "num_heads": config.num_heads,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
    }
    for name, size in sizes.items():
        if size % ranks:
            raise YalmError(f"compute.tensor {ranks} does not divide the model's {name} {size:,}; choose a divisor")
    _distribute(model, mesh)
    first_word = rank * config.vocab_size // ranks
    tokens = model.model.embed_tokens.tokens
    tokens.forward = partial(_look_up, tokens, first_word, group)  # type: ignore[method-assign]
    for layer in model.model.layers:
        for name, dim in SPLIT_DIMS.items():
            if dim == 1:
                module = layer.get_submodule(name)
                assert isinstance(module, nn.Linear)
                module.forward = partial(_sum_products, module, group)  # type: ignore[method-assign]
        for name in ("self_attn", "mlp"):
            layer.get_submodule(name).register_forward_pre_hook(
                lambda _, inputs: (gather(inputs[0], group), *inputs[1:])
            )
        _with_local_parameters(layer, list(layer.modules()))
    if model.lm_head.weight is not None:  # a pipeline's last stage
        model.model.norm.register_forward_hook(lambda _, inputs, output: gather(output, group))
        model.cross_entropy = partial(linear_cross_entropy, shard=VocabularyShard(first_word, group))
    _with_local_parameters(model, [*model.model.embed_tokens.modules(), *model.model.norm.modules(), model.lm_head])


def _distribute(model: Yalm, mesh: DeviceMesh) -> None:
    """Make DTensors of all parameters, each rank keeping its part of what it has whole; nothing is sent."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    placement = _placement(path, name)
                    # src_data_rank=None: every rank cuts its part out of its own copy.
                    part = distribute_tensor(parameter.detach(), mesh, [placement], src_data_rank=None)
                    made[parameter] = nn.Parameter(part)
                module._parameters[name] = made[parameter]


def _placement(path: str, name: str) -> Shard | Replicate:
    """How the parameter `name` of the module at `path` lies on the ranks."""
    if path in ("model.embed_tokens.tokens", "lm_head"):
        return Shard(0)
    dim = SPLIT_DIMS.get(".".join(path.split(".")[-2:]))
    if dim is None or (dim == 1 and name == "bias"):
        return Replicate()
    return Shard(dim)


def _with_local_parameters(module: nn.Module, owners: Iterable[nn.Module]) -> None:
    """Let `module.forward` find this rank's plain parts where `owners` have DTensors.

    A parameter that all ranks have sees some of the positions on each, so its gradient is a sum over them.
    """
    owners = [owner for owner in owners if owner._parameters]
    forward = module.forward

    def local_forward(*inputs: Any, **named: Any) -> Any:
        distributed: list[dict[str, Any]] = [dict(owner._parameters) for owner in owners]
        local: dict[DTensor, Any] = {}
        for owner, parameters in zip(owners, distributed, strict=True):
            for name, parameter in parameters.items():
                if isinstance(parameter, DTensor):
                    if parameter not in local:
                        partial_sum = isinstance(parameter.placements[0], Replicate)
                        local[parameter] = parameter.to_local(grad_placements=[Partial()] if partial_sum else None)
                    owner._parameters[name] = local[parameter]
        try:
            return forward(*inputs, **named)
        finally:
            for owner, parameters in zip(owners, distributed, strict=True):
                owner._parameters.update(parameters)

    module.forward = local_forward


def _look_up(module: nn.Embedding, first_word: int, group: dist.ProcessGroup, ids: Tensor) -> Tensor:
    """Ids (B, S) to this rank's positions (B, S/ranks, E): each rank gives the rows it has, zeros for the others."""
    places = ids - first_word
    here = (places >= 0) & (places < len(module.weight))
    rows = F.embedding(places.clamp(0, len(module.weight) - 1), module.weight)
    return scatter(rows * here[..., None], group)


def _sum_products(module: nn.Linear, group: dist.ProcessGroup, x: Tensor) -> Tensor:
    """A linear layer whose inputs are divided: (B, S, K/ranks) to this rank's positions (B, S/ranks, N)."""
    return scatter(linear(x, module.weight), group) + module.bias


def gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, S/ranks, H) on every rank to all positions (B, S, H); the gradient is summed and divided again."""
    gathered: Tensor = _Gather.apply(x, group)  # type: ignore[no-untyped-call]
    return gathered


def scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """(B, S, H) on every rank to their sum, this rank's positions of it (B, S/ranks, H)."""
    scattered: Tensor = _Scatter.apply(x, group)  # type: ignore[no-untyped-call]
    return scattered


def _gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    ranks = dist.get_world_size(group)
    parts = x.new_empty((ranks, *x.shape))
    dist.all_gather_single(parts.flatten(0, 1), x.contiguous(), group=group)
    return parts.movedim(0, SEQUENCE).flatten(SEQUENCE, SEQUENCE + 1)


def _scattered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    batch, length, *features = x.shape
    ranks = dist.get_world_size(group)
    parts = x.reshape(batch, ranks, length // ranks, *features).movedim(SEQUENCE, 0).contiguous()
    summed = torch.empty_like(parts[0])
    dist.reduce_scatter_single(summed, parts.flatten(0, 1), group=group)
    return summed


class _Gather(torch.autograd.Function):
    """See `gather`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gathered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _scattered(grad, ctx.group), None


class _Scatter(torch.autograd.Function):
    """See `scatter`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _scattered(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _gathered(grad, ctx.group), None
