"""Pipeline parallelism in training: a run of layers on each rank, micro-batches passing through, one forward, one back.

A stage is the plain model with the other stages' layers taken out. What it lacks in front is received from the stage
before, what it lacks behind is sent to the next one, and both are differentiable operations (`_Receive`, `_Send`): the
backward pass of one receives gradients where the other sends them. So the loop does on each stage what it does on one
device; only the order is another (`order`, 1F1B of Narayanan et al. 2021, arXiv 2104.04473, section 2.2.1), in which a
stage holds the activations of no more micro-batches than there are stages from it to the last.

The first and the last stage both have the token table, and add up its gradients before the optimizer's step.

The price: of every step (stages - 1) / micro-batches goes to filling and draining, and each pass waits for its
neighbour's.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from yalm.model.division import stages
from yalm.model.network import Yalm

Pass = Literal["forward", "backward"]
TABLE = "model.embed_tokens.tokens.weight"


def order(stage: int, count: int, micro_batches: int) -> Iterator[tuple[Pass, int]]:
    """The passes of `stage` of `count`, by number of the micro-batch: as few ahead as fill the stages behind it.

    On one stage each micro-batch goes forward and backward before the next.
    """
    ahead = min(count - 1 - stage, micro_batches)
    yield from (("forward", number) for number in range(ahead))
    for number in range(micro_batches - ahead):
        yield "forward", ahead + number
        yield "backward", number
    yield from (("backward", number) for number in range(micro_batches - ahead, micro_batches))


class Link:
    """What goes between this stage and its neighbours: residuals one way, their gradients the other.

    Each way has a process group of its own: where sends and receives of one group run in the order of their calls, as
    on GPUs, two neighbours that send to each other at once would wait for ever. Sending does not wait for the receiver,
    but the next one for the last.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        """Made by all ranks together, for a mesh whose first dimension is "pipeline"."""
        self.stage, self.count = mesh.get_local_rank("pipeline"), mesh.size(0)
        self.group = mesh.get_group("pipeline")
        columns = mesh.mesh.flatten(1).T.tolist()
        self.ways = {step: dist.new_subgroups_by_enumeration(columns)[0] for step in (1, -1)}  # type: ignore[no-untyped-call]
        self._sending: dict[int, tuple[dist.Work | None, Tensor]] = {}

    def send(self, x: Tensor, step: int) -> None:
        """To the next stage (`step` 1) or the one before (-1)."""
        if step in self._sending and (work := self._sending[step][0]) is not None:
            work.wait()
        x = x.detach().contiguous()
        self._sending[step] = dist.isend(x, group=self.ways[step], group_dst=self.stage + step), x

    def receive(self, x: Tensor, step: int) -> Tensor:
        """Into `x`, from the stage before (`step` 1) or the next one (-1): what is sent with that step."""
        dist.recv(x, group=self.ways[step], group_src=self.stage - step)
        return x

    def sum_ends(self, gradient: Tensor) -> None:
        """On the first and the last stage: to `gradient` that of the other end, in place; both get the same bits."""
        other = torch.empty_like(gradient)
        peer = self.count - 1 - self.stage
        exchange = [
            dist.P2POp(dist.isend, gradient.clone(), group=self.group, group_peer=peer),
            dist.P2POp(dist.irecv, other, group=self.group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        gradient += other


def cut(model: Yalm, link: Link, dtype: torch.dtype, tensor_ranks: int) -> None:
    """Leave of a model the layers of this stage, in place; parameters keep their names.

    `dtype` is the type of the residual, whose positions `tensor_ranks` divide among them. YalmError if there are fewer
    layers than stages.
    """
    body, first, last = model.model, link.stage == 0, link.stage == link.count - 1
    mine = stages(model.config.num_layers, link.count)[link.stage]
    for number in range(model.config.num_layers):
        if number not in mine:
            del body.layers._modules[str(number)]  # `del body.layers[number]` would give the others new numbers
    if not first:
        _drop(body.embed_tokens.norm)
        body.embed_tokens.forward = _Entrance(link, model.config.hidden_size, dtype, tensor_ranks)  # type: ignore[method-assign]
    if not last:
        body.norm = _Exit(link)  # type: ignore[assignment]
        _drop(model.lm_head)
        model.cross_entropy = lambda sent, *_: (sent.sum(), sent)
    if not (first or last):
        _drop(body.embed_tokens.tokens)


def _drop(module: nn.Module) -> None:
    """Leave the module without its parameters."""
    for name in module._parameters:
        module._parameters[name] = None


class _Entrance:
    """In place of the embedding: ids (B, S) to the residual that the stage before sends, (B, S/ranks, H)."""

    def __init__(self, link: Link, hidden_size: int, dtype: torch.dtype, tensor_ranks: int) -> None:
        self.link, self.hidden_size, self.dtype, self.tensor_ranks = link, hidden_size, dtype, tensor_ranks

    def __call__(self, ids: Tensor) -> Tensor:
        batch, length = ids.shape
        shape = (batch, length // self.tensor_ranks, self.hidden_size)
        # What is received has a gradient though nothing here made it.
        anchor = torch.zeros((), device=ids.device, requires_grad=True)
        received: Tensor = _Receive.apply(anchor, self.link, shape, self.dtype)  # type: ignore[no-untyped-call]
        return received


class _Exit(nn.Module):
    """In place of the output: sends the residual (B, S, H), and gives a zero (1, 1, 1) as this stage's loss."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.link = link

    def forward(self, x: Tensor) -> Tensor:
        sent: Tensor = _Send.apply(x, self.link)  # type: ignore[no-untyped-call]
        return sent


class _Receive(torch.autograd.Function):
    """See `_Entrance`."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, link: Link, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        ctx.link = link
        return link.receive(anchor.new_empty(shape, dtype=dtype), 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None]:
        ctx.link.send(grad, -1)
        return None, None, None, None


class _Send(torch.autograd.Function):
    """See `_Exit`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, link: Link) -> Tensor:
        ctx.link, ctx.like = link, (x.shape, x.dtype)
        link.send(x, 1)
        return x.new_zeros((1, 1, 1), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        shape, dtype = ctx.like
        return ctx.link.receive(grad.new_empty(shape, dtype=dtype), -1), None


def sum_table_gradient(model: Yalm, link: Link | None) -> None:
    """Add up what the first and the last stage have of the token table's gradient, after the backward passes."""
    if link is not None and link.stage in (0, link.count - 1):
        gradient = model.get_parameter(TABLE).grad
        assert gradient is not None
        link.sum_ends(gradient.to_local() if isinstance(gradient, DTensor) else gradient)
