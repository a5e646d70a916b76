"""One model over several processes: tensor and pipeline parallelism, applied to the plain modules from outside.

All ranks run the same program on the same requests with the same seed. What they add up or send they all hold in the
same bits, so every rank sees the same logits, draws the same tokens and takes the same turn next; no scheduler and no
calls between processes are needed, and one rank speaks for all.

    lm = yalm.load(folder, tensor=2, pipeline=2)           # in each of four processes, by torchrun

Tensor parallel (Shoeybi et al. 2019, arXiv 1909.08053): a rank has some of the heads and some of the feed-forward's
width in every layer; attention and feed-forward give sums over ranks, two all-reduces a layer. Pipeline parallel: a
rank has some of the layers, receives the residual from the rank before, and all get the last one's. The token table,
the norms and the output are on every rank.

The price: a pipeline is not filled with several batches, so it divides the memory and not the time; and the ranks must
be alike, since a different processor may round a logit otherwise and then draw another token.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.division import SPLIT_DIMS, stages
from yalm.model.network import Attention, Rotary, Yalm
from yalm.model.ops.quantized_linear import GROUP_SIZE

# How long a rank waits for another that gives no sign of life; must exceed the difference in their loading times.
TIMEOUT = timedelta(minutes=10)
# How long for the next thing to do, which a person may be thinking about.
PATIENCE = timedelta(days=365)


class LostRankError(YalmError):
    """Another process of a divided model is gone or silent: nothing more can be asked of this one."""


@contextmanager
def hearing(group: dist.ProcessGroup) -> Iterator[None]:
    """Around a call that needs the others of a group: LostRankError names them if one is gone or silent."""
    try:
        yield
    except RuntimeError as error:
        me = dist.get_rank()
        others = ", ".join(str(rank) for rank in dist.get_process_group_ranks(group) if rank != me)
        problem = f"rank {me} waits in vain for rank {others}, which is gone or silent"
        raise LostRankError(f"{problem}; see what it printed, and start all ranks again") from error


class Seat(NamedTuple):
    """A rank's place: tensor-parallel rank `tensor` of `tensors`, pipeline rank `stage` of `stages`."""

    tensor: int = 0
    tensors: int = 1
    stage: int = 0
    stages: int = 1

    @classmethod
    def of(cls, mesh: DeviceMesh | None) -> "Seat":
        """This process's place in the mesh; without one it is alone."""
        if mesh is None:
            return cls()
        across, along = mesh["tensor"], mesh["pipeline"]
        return cls(across.get_local_rank(), across.size(), along.get_local_rank(), along.size())


class Slice(NamedTuple):
    """Elements `start` to `stop` of dimension `dim`, followed by zeros up to `size`."""

    dim: int
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class Shard:
    """Which part of every tensor tensor-parallel rank `rank` of `ranks` holds; YalmError if heads do not divide.

    Head width times heads, or the feed-forward's width, is the number of features that are divided. A rank has
    ceil(features / ranks) of them, the last ranks fewer and zeros instead, which changes no output. The other tensors
    of a linear follow along the same dimension; packed weights and their scales are divided between groups only.
    """

    config: ModelConfig
    rank: int
    ranks: int

    def __post_init__(self) -> None:
        if self.config.num_heads % self.ranks:
            problem = f"tensor={self.ranks}: the model's {self.config.num_heads} heads cannot be divided evenly"
            raise YalmError(f"{problem}; choose a divisor of the heads")

    def slice(self, name: str, shape: Sequence[int]) -> Slice | None:
        """The part of the tensor `name` (of the model or of a layer) of that whole shape; None is all of it.

        A bias behind a product that is summed over ranks is the first rank's, and zeros on the others. YalmError if
        a group of packed inputs would fall to two ranks.
        """
        dim = SPLIT_DIMS.get(module := ".".join(name.split(".")[-3:-1]))
        if dim is None or self.ranks == 1:
            return None
        if dim == 1 and len(shape) == 1:
            return Slice(0, 0, shape[0] if self.rank == 0 else 0, shape[0])
        hidden, width = self.config.hidden_size, self.config.intermediate_size
        features = {"self_attn.qkv_proj": 3 * hidden, "self_attn.o_proj": hidden}.get(module, width)
        total, size = shape[dim], -(-features // self.ranks)
        zeros = name.endswith("weight_zero")
        if dim == 1 and (total != features or zeros):
            if total == 1 and not zeros:
                return None  # one scale for all inputs
            if size % GROUP_SIZE:
                problem = f"{name} has groups of {GROUP_SIZE} in its {features} inputs, which a cut would tear"
                raise YalmError(f"tensor={self.ranks}: {problem}; choose fewer ranks or 8 bits")
            size = size // GROUP_SIZE * (total // -(-features // GROUP_SIZE))
        start = min(self.rank * size, total)
        return Slice(dim, start, min(start + size, total), size)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """This rank's part of a whole tensor, a view of it where no zeros are needed."""
        part = self.slice(name, tensor.shape)
        if part is None:
            return tensor
        view = tensor.narrow(part.dim, part.start, part.stop - part.start)
        if view.shape[part.dim] == part.size:
            return view
        padded = tensor.new_zeros([part.size if dim == part.dim else n for dim, n in enumerate(tensor.shape)])
        padded.narrow(part.dim, 0, view.shape[part.dim]).copy_(view)
        return padded


class Stage(nn.Module):
    """A pipeline rank's `layers`, of which `first` is the first, in place of all the body's.

    One pass over it is a pass over all ranks' layers. The layers keep their numbers; the attention hears numbers from
    0, as the cache holds this rank's layers only.
    """

    def __init__(self, layers: nn.ModuleList, first: int, mesh: DeviceMesh) -> None:
        super().__init__()
        self.layers, self.first = layers, first
        self.rank, self.ranks, self.group = mesh.get_local_rank(), mesh.size(), mesh.get_group()

    def __iter__(self) -> Iterator[nn.Module]:
        """The body goes over its layers; here that is this one step."""
        yield self

    def forward(self, x: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
        """(B, S, H), the embedding, to (B, S, H), the last layer's output, the same on all ranks."""

        def local(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
            return attention(query, key, value, layer - self.first)

        x = x.contiguous()
        if self.rank > 0:
            with hearing(self.group):
                dist.recv(x, group=self.group, group_src=self.rank - 1)
        for layer in self.layers:
            x = layer(x, rotary, local)
        with hearing(self.group):
            if self.rank < self.ranks - 1:
                dist.send(x, group=self.group, group_dst=self.rank + 1)
            dist.broadcast(x, group=self.group, group_src=self.ranks - 1)
        return x


def join(tensor: int = 1, pipeline: int = 1, device_type: str = "cpu", timeout: timedelta = TIMEOUT) -> DeviceMesh:
    """Join the processes that torchrun started to a mesh with dimensions "pipeline" and "tensor".

    `device_type` "cpu" talks by gloo; "cuda" by NCCL, each process on the GPU of its LOCAL_RANK. Leave with
    `torch.distributed.destroy_process_group()`. YalmError if the number of processes or GPUs does not match.
    """
    world, wanted = int(os.environ.get("WORLD_SIZE", "1")), tensor * pipeline
    if min(tensor, pipeline) < 1:
        raise YalmError(f"tensor={tensor} x pipeline={pipeline}: give numbers of processes, from 1 on")
    if wanted != world:
        problem = f"tensor={tensor} x pipeline={pipeline} needs {wanted} processes and finds {world}"
        raise YalmError(f"{problem}; start them with torchrun --nproc-per-node {wanted}")
    if device_type == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            found = f"process {local_rank} of this machine finds {torch.cuda.device_count()} GPUs"
            raise YalmError(f"{found}; start at most one process for each")
        torch.cuda.set_device(local_rank)
    if not dist.is_initialized():
        backend = "nccl" if device_type == "cuda" else "gloo"
        store = None if "RANK" in os.environ else dist.HashStore()  # type: ignore[attr-defined]
        place = (-1, -1) if store is None else (1, 0)  # -1: as torchrun says
        dist.init_process_group(backend, None, timeout, *place, store=store)
    mesh = init_device_mesh(device_type, (pipeline, tensor), mesh_dim_names=("pipeline", "tensor"))
    for group in mesh.get_all_groups():
        _set_pg_timeout(timeout, group)
    return mesh


def cut(model: Yalm, seat: Seat) -> Yalm:
    """Leave of a whole model what the rank at `seat` holds, in place; returns it.

    Works by shapes alone, so that a model on "meta" can be cut before a weight is read; its linears may be of any kind
    (see `Shard`). YalmError if heads or layers do not divide.
    """
    shard = Shard(model.config, seat.tensor, seat.tensors)
    mine = stages(model.config.num_layers, seat.stages)[seat.stage]
    layers = model.model.layers[mine.start : mine.stop]
    for layer in layers:
        for name, whole in list(layer.state_dict(keep_vars=True).items()):
            _replace(layer, name, shard.cut(name, whole.detach()))
    model.model.add_module("layers", layers)
    model.local_layers, model.local_heads = len(mine), model.config.num_heads // seat.tensors
    return model


def connect(model: Yalm, layers: Sequence[nn.Module], mesh: DeviceMesh) -> Yalm:
    """Let the ranks of a model that was `cut` to `layers` work together, in place; returns it."""
    across, along = mesh["tensor"], mesh["pipeline"]
    if across.size() > 1:
        for layer in layers:
            for name in ("self_attn", "mlp"):
                layer.get_submodule(name).register_forward_hook(_summed(across.get_group()))
    if along.size() > 1:
        mine = stages(model.config.num_layers, along.size())[along.get_local_rank()]
        model.model.add_module("layers", Stage(model.model.layers, mine.start, along))
    return model


def _summed(group: dist.ProcessGroup) -> Callable[[nn.Module, object, Tensor], Tensor]:
    """A forward hook that adds up a module's outputs over the ranks, in fp32: half types would round at every rank."""

    def hook(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        total = output.float().contiguous()
        with hearing(group):
            dist.all_reduce(total, group=group)
        return total.to(output.dtype)

    return hook


def _replace(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Put `tensor` in the place of the parameter or buffer of that name, whose shape may differ."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    is_parameter = isinstance(getattr(owner, leaf), nn.Parameter)
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
