"""Devices and how the model is laid over them, applied to the plain network from outside.

A run always stands on a device mesh; one device is a mesh of one. Weights are sharded over the mesh by FSDP2 (ZeRO-3:
each layer gathered before its use), which is also what keeps fp32 master weights under half-precision compute, so that
one device in bf16 and a cluster take the same path. One device in fp32 needs neither, and trains the plain modules.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from yalm.errors import YalmError
from yalm.model.network import Yalm
from yalm.model.ops.linear import onednn_linears
from yalm.training.precision import HALF, apply_precision
from yalm.training.settings import ComputeSettings


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, its device, and the mesh they form."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the progress."""
        return self.rank == 0

    def sum(self, value: Tensor) -> Tensor:
        """`value` summed over all ranks."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any rank; the same answer on all."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.size > 1 else flag

    def scalar(self, value: Tensor) -> float:
        """A tensor of one element as a number, gathered if it is spread over ranks."""
        return float(value.full_tensor() if isinstance(value, DTensor) else value)

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join_world(settings: ComputeSettings) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; leave on exit."""
    device = pick_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        size = dist.get_world_size()
        mesh = init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
        yield World(dist.get_rank(), size, device, mesh)
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" is this process's GPU if there is one, else the CPU."""
    if name == "auto":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise YalmError(f"compute.device = {name!r}: cannot be used here ({reason}); take auto or cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def parallelize(model: Yalm, world: World, settings: ComputeSettings) -> Yalm:
    """Apply recomputation, compilation, precision and sharding to the modules, in place, and oneDNN on CPUs."""
    compiled = settings.compile == "on" or (settings.compile == "auto" and world.device.type == "cuda")
    half = HALF.get(settings.precision)
    sharded = world.size > 1 or half is not None
    apply_precision(model, settings.precision, world.device)
    if half is None and not compiled:
        onednn_linears(model)
    # Inputs are not cast: the weights of the loss, which carry the loss scale, must arrive in fp32.
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.model.layers:
        if settings.recompute:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        if compiled:
            layer.compile()
        if sharded:
            fully_shard(layer, mesh=world.mesh, mp_policy=policy)
    if sharded:
        fully_shard(model, mesh=world.mesh, mp_policy=policy)
    return model
