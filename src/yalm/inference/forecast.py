"""How long a token will take, before anything runs: from a data sheet, or from one layer read and run on this machine.

A pass over the model is a sweep over its layers, which serves a token of every text under way. Layers that are not
with the device are read while others compute, so the longer of reading and computing counts. Only on a CPU that finds
them in the system's cache does their sum count, for reading is copying then, by the cores that compute. A token costs
that over the number of texts. A pipeline's stages take turns: their times add up. Sums over tensor-parallel ranks, the
attention and the output are not counted.
"""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from yalm.config import nearest
from yalm.errors import YalmError
from yalm.inference.loading import TEXTS, TOKENS, Plan, budget_of, find_device, plan, prefix, refuse_host_memory
from yalm.inference.parallel import Seat, Shard
from yalm.inference.placement import Budget, parse_bytes
from yalm.inference.streamed import Reader, buffer_bytes, laid_out
from yalm.model.config import ModelConfig
from yalm.model.convert import padded_width
from yalm.model.network import Rotary, causal_attention
from yalm.model.presets import PRESETS, preset
from yalm.model.quantize import Quantization
from yalm.model.weights import Weights, open_weights


@dataclass(frozen=True)
class Hardware:
    """What a device can do, as its maker says: bytes, bytes a second, and FLOP/s in 16 bits."""

    memory: float
    bandwidth: float
    link: float
    flops: float


# Memory and its bandwidth, the practical rate of the link to the host's memory, dense 16-bit FLOP/s.
HARDWARE = {
    "h100-80gb": Hardware(80e9, 3350e9, 50e9, 989e12),
    "a100-80gb": Hardware(80e9, 2039e9, 25e9, 312e12),
    "a100-40gb": Hardware(40e9, 1555e9, 25e9, 312e12),
    "v100-32gb": Hardware(32e9, 900e9, 12e9, 125e12),
    "rtx-4090": Hardware(24e9, 1008e9, 25e9, 165e12),
    "rtx-3090": Hardware(24e9, 936e9, 25e9, 71e12),
    "cpu-12-channels": Hardware(384e9, 400e9, 400e9, 4e12),
    "cpu-2-channels": Hardware(32e9, 60e9, 60e9, 0.8e12),
}
# A solid-state disk where none is measured, bytes a second.
DISK = 3e9
# The shares of bandwidth and FLOP/s that products of real shapes reach.
BANDWIDTH_SHARE, FLOPS_SHARE = 0.8, 0.5


@dataclass(frozen=True)
class LayerSeconds:
    """Of one layer: to `compute` a token of every text, and to bring its weights from the `host` or the `disk`."""

    compute: float
    host: float
    disk: float


def forecast(
    model: str | Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    heads: int | None = None,
    positions: int | None = None,
    memory: str | int | None = None,
    host_memory: str | int | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    texts: int = TEXTS,
    tokens: int = TOKENS,
    hardware: str | None = None,
) -> dict[str, Any]:
    """Where the layers of a model would lie and what a token would take, as plain values.

    The arguments are those of `load`; the ranks' part shown is the first one's. With `hardware`, a name of `HARDWARE`,
    the times are computed, `model` may be a preset and `dtype` "int8" or "int4"; without it they are measured with a
    layer of the model. YalmError as from `load`.
    """
    seat = Seat(0, tensor, 0, pipeline)
    if hardware is None:
        weights, where = open_weights(model, heads, positions), find_device(device)
        budget = budget_of(where, memory, host_memory)
        chosen = plan(
            weights.config,
            weights.dtype,
            weights.quantization,
            dtype=dtype,
            device=where,
            budget=budget,
            texts=texts,
            tokens=tokens,
            seat=seat,
        )
        seconds = measure(chosen, weights, texts)
    else:
        data_sheet, where = _hardware(hardware), torch.device("cpu" if hardware.startswith("cpu") else "cuda")
        usable = int(0.95 * data_sheet.memory)
        if where.type == "cpu":
            refuse_host_memory(host_memory)
            budget = Budget(parse_bytes(memory, usable), machine=usable)
        else:
            host = parse_bytes(host_memory)
            budget = Budget(parse_bytes(memory, usable), host, host)
        is_folder = Path(model).exists() or str(model) not in PRESETS
        source = open_weights(model, heads, positions) if is_folder else None
        quantization = source.quantization if source is not None else None
        if dtype in ("int8", "int4"):
            quantization, dtype = Quantization.named(dtype), "auto"
        chosen = plan(
            source.config if source is not None else _converted(str(model)),
            torch.bfloat16,
            quantization,
            dtype="bf16" if dtype == "auto" else dtype,
            device=where,
            budget=budget,
            texts=texts,
            tokens=tokens,
            seat=seat,
        )
        seconds = _computed(chosen, data_sheet, texts)
    return _facts(chosen, seconds, texts)


def _converted(name: str) -> ModelConfig:
    """A preset with the feed-forward width that `yalm convert` stores."""
    config = preset(name)
    return config.model_copy(update={"intermediate_size": padded_width(config.intermediate_size)})


def _facts(chosen: Plan, seconds: LayerSeconds, texts: int) -> dict[str, Any]:
    placement, sizes, seat = chosen.placement, chosen.placement.sizes, chosen.seat
    layers = {tier: len(placement.layers_in(tier)) for tier in ("device", "host", "disk")}
    compute = sizes.layers * seconds.compute
    read = layers["host"] * seconds.host + layers["disk"] * seconds.disk
    hidden = chosen.device.type == "cuda" or chosen.direct
    sweep = seat.stages * (max(compute, read) if hidden else compute + read)
    return {
        "dtype": chosen.dtype,
        "tensor": seat.tensors,
        "pipeline": seat.stages,
        "layers": layers,
        "past_the_cache": chosen.direct,
        "reading_hidden": hidden,
        "bytes": {
            "layer": sizes.layer,
            "table_and_output": sizes.fixed,
            "buffers": placement.buffers,
            "cache": placement.cache,
            "activations": placement.work,
            "device": placement.device_bytes,
            "host": placement.host_bytes,
            "read_per_sweep": (layers["host"] + layers["disk"]) * sizes.layer,
        },
        "texts": texts,
        "layer_seconds": {"compute": seconds.compute, "host": seconds.host, "disk": seconds.disk},
        "seconds": {"compute": compute, "read": read, "sweep": sweep, "per_token": sweep / texts},
    }


def _computed(chosen: Plan, hardware: Hardware, texts: int) -> LayerSeconds:
    """By data sheet: the slower of reading every weight once and of the arithmetic."""
    sizes = chosen.placement.sizes
    arithmetic = 2 * sizes.parameters * texts / (FLOPS_SHARE * hardware.flops)
    compute = max(sizes.layer / (BANDWIDTH_SHARE * hardware.bandwidth), arithmetic)
    host = sizes.layer / hardware.link
    return LayerSeconds(compute, host, sizes.layer / min(DISK, hardware.link) if chosen.direct else host)


@torch.inference_mode()
def measure(chosen: Plan, weights: Weights, texts: int) -> LayerSeconds:
    """By the model's last layer, which takes memory for that: read as the plan says, and run.

    Unless that is past the system's cache, what the cache has is read from there.
    """
    layer = list(chosen.model.model.layers)[-1]
    seat, device, before = chosen.seat, chosen.device, prefix(layer)
    reader = Reader(weights, Shard(weights.config, seat.tensor, seat.tensors).slice, chosen.direct)
    buffer = torch.zeros(buffer_bytes(layer), dtype=torch.uint8, device=device)  # touched once, as buffers are
    tensors = laid_out(layer, before, buffer, reader)
    layer.load_state_dict({name.removeprefix(before): piece for name, piece in tensors.items()}, assign=True)
    disk = _seconds(lambda: reader.read(tensors), device)
    config, dtype = chosen.model.config, chosen.model.lm_head.bias.dtype
    x = torch.zeros(texts, 1, config.hidden_size, dtype=dtype, device=device)
    rotary = Rotary(torch.zeros(texts, 1, device=device), config, dtype)
    layer(x, rotary, causal_attention)
    compute = _seconds(lambda: layer(x, rotary, causal_attention), device)
    if device.type != "cuda":
        return LayerSeconds(compute, disk, disk)
    reader.held = {name: torch.empty(spec.shape, dtype=spec.dtype, pin_memory=True) for name, spec in tensors.items()}
    return LayerSeconds(compute, _seconds(lambda: reader.read(tensors), device), disk)


def _seconds(work: Any, device: torch.device) -> float:
    start = perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter() - start


def _hardware(name: str) -> Hardware:
    """The device of that name; YalmError with the nearest name if there is none."""
    if name not in HARDWARE:
        raise YalmError(f"hardware {name!r} is not known{nearest(name, list(HARDWARE))}")
    return HARDWARE[name]
