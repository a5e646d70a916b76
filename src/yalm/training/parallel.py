"""Devices and how the model is laid over them, applied to the plain network from outside.

A run always stands on a device mesh; one device is a mesh of one. FSDP2 keeps the weights there in shards, gathers
each layer for its use, and reduces the gradients; it is also what keeps fp32 master weights under half-precision
compute, so that one device in bf16 and a cluster take the same path. One device in fp32 needs neither, and trains the
plain modules.

What is divided is the stage of ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054), `compute.zero`. With P parameters
over N ranks, fp32 masters, weights gathered in a type of c bytes, and M micro-batches a step, a rank keeps and sends
(each collective moves (N-1)/N of its bytes in and as many out):

| zero | masters | weights in use | gradients | AdamW | gathers of c·P | reductions of 4·P |
|---|---|---|---|---|---|---|
| 0 | 4·P | a layer's copy | 4·P | 8·P | 0 | 1 to all (costs two) |
| 1 | 4·P/N | c·P | 4·P (M = 1: 4·P/N) | 8·P/N | 1 | 1 to shards |
| 2 | 4·P/N | c·P | 4·P/N | 8·P/N | 1 | M to shards |
| 3 | 4·P/N | a few layers | 4·P/N | 8·P/N | 2·M | M to shards |

The paper's stages 1 and 2 gather after the optimizer's step; here it is the next forward pass that gathers, where it
hides behind computing. With `compute.replicate` = R, N is the ranks of one of R equal groups: shards are gathered and
reduced inside a group, and once a step the groups sum their shards, 4·P/N bytes (hybrid sharding; Zhao et al. 2023,
arXiv 2304.11277, section 3.2.2). Stage 0 is that with groups of one rank. `yalm.planning.memory` has the bytes in
numbers.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from yalm.errors import YalmError
from yalm.model.network import Yalm
from yalm.model.ops.attention import native_attention
from yalm.model.ops.fuse import fuse
from yalm.model.ops.linear import fast_linears
from yalm.model.ops.tied_table import one_table_gradient
from yalm.training.pipeline import Link, Pass, cut, order
from yalm.training.precision import HALF, apply_precision
from yalm.training.settings import ComputeSettings
from yalm.training.tensor import divide


@dataclass(frozen=True)
class World:
    """This process among all: `rank` of `size`, its device, and the mesh they form."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    tensor: int = 1
    """Ranks that divide matrices among them, and so read the same data."""
    link: Link | None = None
    """To the neighbours in a pipeline, if there is one."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and the progress."""
        return self.rank == 0

    @property
    def stages(self) -> int:
        """The ranks that divide the layers among them."""
        return self.link.count if self.link else 1

    @property
    def data_size(self) -> int:
        """How many ranks, or groups of ranks that divide the network among them, read data of their own."""
        return self.size // (self.stages * self.tensor)

    @property
    def data_rank(self) -> int:
        """Which of these this rank belongs to (the mesh is pipeline × replicate × shard × tensor)."""
        return self.rank // self.tensor % self.data_size

    def passes(self, micro_batches: int) -> Iterator[tuple[Pass, int]]:
        """The forward and backward passes of a step on this rank, in turn, by number of the micro-batch."""
        return order(self.link.stage if self.link else 0, self.stages, micro_batches)

    def sum(self, value: Tensor) -> Tensor:
        """`value` summed over the ranks that read other data: tensor-parallel ranks have the same, and of a pipeline
        all but the last must have zeros."""
        if self.size > 1:
            dist.all_reduce(value)
            value /= self.tensor
        return value

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on any rank; the same answer on all."""
        return bool(self.sum(torch.tensor(float(flag)))) if self.size > 1 else flag

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()


# glibc's names for what its `mallopt` sets, and the largest tensor that it is to keep when freed: with 32 MiB a large
# vocabulary's gradients are cleared anew each time, with 1 GiB the gaps that they leave make memory grow without need.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, LARGEST_KEPT = -1, -3, 256 << 20


def _keep_freed_memory() -> None:
    """Let the process keep what a step frees for the next one, where its allocator is glibc's.

    By itself that gives large tensors back at once, and the kernel hands them out again in cleared pages of 4 KiB: at
    110 million parameters 140,000 a step, 5 % of its time, with a vocabulary of 128,000 a third. The price: gaps
    between what is kept, up to two fifths more memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, -1)
        mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)


@contextmanager
def join_world(settings: ComputeSettings) -> Iterator[World]:
    """Join the processes that torchrun started, or be alone; leave on exit."""
    device = pick_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if device.type == "cpu":
        _keep_freed_memory()
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        size = dist.get_world_size()
        mesh = _mesh(settings, device, size)
        link = Link(mesh) if settings.pipeline > 1 else None
        yield World(dist.get_rank(), size, device, mesh, settings.tensor, link)
    finally:
        dist.destroy_process_group()


def _mesh(settings: ComputeSettings, device: torch.device, size: int) -> DeviceMesh:
    """Dimensions pipeline × replicate × shard × tensor, those of one rank left out but for shard.

    The ranks of a tensor-parallel group are neighbours, then those of a group that shards.
    """
    for fixed, name in (
        (settings.pipeline * settings.tensor, "pipeline x compute.tensor"),
        (settings.replicate, "replicate"),
    ):
        if size % fixed:
            raise YalmError(f"compute.{name} {fixed} must divide the {size} ranks; change one of them")
        size //= fixed
    replicate, shard = (size, 1) if settings.zero == 0 else (settings.replicate, size)
    sizes = {"pipeline": settings.pipeline, "replicate": replicate, "shard": shard, "tensor": settings.tensor}
    sizes = {name: ranks for name, ranks in sizes.items() if ranks > 1 or name == "shard"}
    return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def pick_device(name: str) -> torch.device:
    """The device of that name; "cuda" is this process's GPU, "auto" that if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise YalmError(f"compute.device = {name!r}: cannot be used here ({reason}); take auto or cpu") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def prepare(model: Yalm, world: World, settings: ComputeSettings) -> None:
    """Apply precision, division, fused kernels or compilation and recomputation in place; oneDNN and C++ on CPUs."""
    compiled = settings.compile == "on" or (settings.compile == "auto" and world.device.type == "cuda")
    apply_precision(model, settings.precision, world.device)
    if world.device.type == "cpu" and not compiled:
        native_attention(model)
        fast_linears(model)
    if world.link:
        cut(model, world.link, HALF.get(settings.precision, torch.float32), world.tensor)
    if world.tensor > 1:
        divide(model, world.mesh["tensor"])
    # A fused layer does not call the modules between which tensor-parallel ranks exchange.
    if settings.fused and world.device.type == "cuda" and not compiled and world.tensor == 1:
        fuse(model)
    for layer in model.model.layers:
        if settings.recompute != "none":
            _recompute(layer, settings)
        if compiled:
            layer.compile()


def parallelize(model: Yalm, world: World, settings: ComputeSettings) -> Yalm:
    """`prepare` the model and shard it, in place.

    A model too large for one rank comes on "meta", and gets its memory after (`weights.materialize`).
    """
    prepare(model, world, settings)
    if world.link is None and world.tensor == 1:  # else the table is not one parameter on one rank
        one_table_gradient(model)
    half = HALF.get(settings.precision)
    if world.size > 1 or half is not None or settings.offload:
        # Inputs are not cast: the weights of the loss, which carry the loss scale, must arrive in fp32.
        policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, cast_forward_inputs=False)
        offload = CPUOffloadPolicy(pin_memory=world.device.type == "cuda") if settings.offload else OffloadPolicy()
        # Stage 0 frees its layers as stage 3 does: where the shard is the whole, gathering is a copy.
        names = tuple(name for name in world.mesh.mesh_dim_names or () if name in ("replicate", "shard"))
        shard = partial(fully_shard, mesh=world.mesh[names], mp_policy=policy, offload_policy=offload)
        layers = [shard(layer, reshard_after_forward=settings.zero in (0, 3)) for layer in model.model.layers]
        # The rest is the first and the last to be used, and stays gathered in between.
        root = shard(model)
        _prefetch([root, *layers], settings.prefetch)
        # Without this a gather that is asked for ahead is waited for at once where there are no streams: on CPUs.
        root._set_unshard_async_op(True)
    return model


def _prefetch(parts: list[FSDPModule], count: int) -> None:
    """Before a part is computed, have the gathers of the `count` that follow it under way, in both directions."""
    for index, part in enumerate(parts):
        part.set_modules_to_forward_prefetch(parts[index + 1 : index + 1 + count])
        # The part that the backward pass begins with is the model itself, which also comes first in the forward pass.
        before = parts[1:] if index == 0 else parts[1:index]
        # An empty list would mean FSDP2's own choice, which is one; a part that waits for itself waits for nothing.
        part.set_modules_to_backward_prefetch(before[::-1][:count] or [part])


def _recompute(layer: nn.Module, settings: ComputeSettings) -> None:
    """Let the layer keep its input alone, or that and `KEPT`, and compute its insides again in the backward pass."""
    contexts = partial(create_selective_checkpoint_contexts, _keep)
    options: dict[str, Any] = {"context_fn": contexts} if settings.recompute == "selective" else {}
    layer.forward = partial(_checkpointed, layer.forward, options)


def _checkpointed(forward: Callable[..., Any], options: dict[str, Any], *arguments: Any) -> Any:
    # A function of ours: the compiler sees `checkpoint` called and compiles into it, where it would skip torch's own
    # code. Nothing in a layer is random, so no generator's state is put away.
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


# What costs most to compute and least to keep: matrix products and attention, on CPUs and GPUs. Not attention's inner
# products: where it has no kernel of its own, those are square in the length.
KEPT = {
    "aten::mm",
    "aten::addmm",
    "mkldnn::_linear_pointwise",
    "yalm::rotary_attention",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
}


def _keep(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = operation.name().split(".")[0] in KEPT
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def plan_communication(model: Yalm, settings: ComputeSettings, last: bool) -> None:
    """Say before a backward pass whether it is the `last` of its step, so that no stage communicates needlessly.

    Before the last, stages 0 and 1 add up gradients where they are, groups that replicate each other do not meet, and
    stages 1 and 2 keep the weights gathered. A plain model on one device has nothing to plan.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or settings.zero >= 2)
        model.set_requires_all_reduce(last)
        model.set_reshard_after_backward(last or settings.zero in (0, 3))
