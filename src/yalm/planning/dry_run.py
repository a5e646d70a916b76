"""The real network sharded over as many pretended ranks, to hold the memory formula against.

Nothing is allocated and nothing sent: parameters are on the meta device, and the process group is PyTorch's fake one,
in which this process is rank 0, the fullest. FSDP2 deals out the rows as it does in training, and AdamW makes its
moments.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import build
from yalm.planning.memory import Layout, state_bytes


def dry_run(config: ModelConfig, layout: Layout) -> dict[str, dict[str, float]]:
    """By kind (`parameters`, `gradients`, `optimizer`): `formula` and `sharded` bytes, and `error` between them.

    Only a mesh that ZeRO alone divides is built, at stage 2 or 3, which shard all three; YalmError for others.
    """
    if layout.tensor * layout.pipeline > 1 or layout.zero < 2:
        raise YalmError("--dry-run shards by ZeRO 2 or 3 alone; add --tensor 1 --pipeline 1 --zero 3")
    expected, found = state_bytes(config, layout), sharded_bytes(config, layout)
    return {
        kind: {"formula": expected[kind], "sharded": size, "error": expected[kind] / size - 1}
        for kind, size in found.items()
    }


def sharded_bytes(config: ModelConfig, layout: Layout) -> dict[str, int]:
    """Bytes on rank 0 of `layout.data`, by kind."""
    dist.init_process_group("fake", rank=0, world_size=layout.data, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (layout.data,), mesh_dim_names=("shard",))
        model = build(config, "meta")
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=layout.zero == 3)
        fully_shard(model, mesh=mesh)
        weights = list(model.parameters())
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer = torch.optim.AdamW(weights, foreach=False)
        optimizer.step()
        kept = {"fp32": torch.float32, "bf16": torch.bfloat16}[layout.moments]
        moments = [state[name].to(kept) for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        return {
            "parameters": _bytes(weights),
            "gradients": _bytes(gradients),
            "optimizer": _bytes(moments),
        }
    finally:
        dist.destroy_process_group()


def _bytes(tensors: Iterable[Tensor]) -> int:
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in local)
