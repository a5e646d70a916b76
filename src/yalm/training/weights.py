"""Where a run's weights begin: a rank makes and reads only what it holds, so a model may be larger than any rank.

The network is built on "meta", divided there by `parallelize`, given memory by `materialize`, and then filled, weight
by weight: drawn from the seed, or read from a checkpoint. Beside its own part a rank then has one whole weight when it
draws, and when it reads, nothing but the pages of the file. The values are the same on any number of ranks.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from yalm.model.folder import ModelFolder
from yalm.model.network import Yalm, initial_weights

Copy = Callable[[str, Any], Any]
"""Takes a key, unique and the same at every save, and a value; returns what a checkpoint is to keep of it."""


def materialize(model: Yalm, device: torch.device, offload: bool = False) -> None:
    """Give a parallelized model on "meta" memory for what this rank holds, uninitialised; `offload`ed, the CPU's."""
    model.to_empty(device="cpu" if offload else device)
    model.tie_weights()


@torch.no_grad()
def draw_weights(model: Yalm, seed: int, device: torch.device) -> None:
    """Fill a parallelized model with its `initial_weights`, drawn on `device`."""
    parameters = dict(model.named_parameters())
    for name, values in initial_weights(model.config, seed, device):
        if name in parameters:
            local, part = held(parameters[name])
            local.copy_(values[part])


@torch.no_grad()
def read_weights(model: Yalm, folder: ModelFolder) -> None:
    """Fill a parallelized model from a folder of the same sizes."""
    for name, parameter in model.named_parameters():
        local, part = held(parameter)
        if local.numel():
            local.copy_(folder.read(name, part))


def held(tensor: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """What this rank holds of a tensor, and the part of the whole that this is."""
    if not isinstance(tensor, DTensor):
        return tensor, tuple(slice(0, size) for size in tensor.shape)
    shape, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tensor.to_local(), tuple(slice(start, start + size) for start, size in zip(offsets, shape, strict=True))
