"""Where each layer of a model lives while it runs, and what that will take, decided before a weight is read.

A layer lies in the memory of the device that computes; or, for a GPU, in the host's memory; or on the disk, from where
it comes into a buffer when its turn has come (see `streamed`). As many as fit lie with the device, then with the host,
and they are spread evenly between those that are read, so that reading never waits for a buffer for long. The token
table, the output and the cache of keys and values always lie with the device.

All sizes are those of the network as it will be held (cut for its rank, quantized, in its type), taken from a copy of
it on "meta"."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
import torch

from yalm.errors import YalmError
from yalm.inference.engine import PREFILL_TOKENS
from yalm.inference.streamed import buffer_bytes
from yalm.model.network import Yalm

Tier = Literal["device", "host", "disk"]
# What the process itself needs, PyTorch's libraries and the readers' blocks above all, in bytes; measured 0.35 GB.
OVERHEAD = 512 * 2**20
# The part of what is free that is used when nobody says how much.
CAUTION = 0.9


@dataclass(frozen=True)
class Budget:
    """Bytes that may be used: `device` where the model computes, `host` beside a GPU for layers that do not fit it.

    `machine` is what the host has free, whose rest the system can fill with files.
    """

    device: int
    host: int = 0
    machine: int = 0

    @classmethod
    def of_machine(cls, device: torch.device) -> "Budget":
        """Nine tenths of what is free now; of the host, the share of each process that torchrun started on it."""
        host = int(CAUTION * _free_memory()) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if device.type == "cuda":
            return cls(int(CAUTION * torch.cuda.mem_get_info(device)[0]), host, host)
        return cls(host, machine=host)


@dataclass(frozen=True)
class Sizes:
    """Bytes of a rank's part of a model: every `layer`, what is `fixed`, and a token's keys and values and activations.

    `parameters` of one layer count as FLOPs, two for each and token.
    """

    layers: int
    layer: int
    fixed: int
    cache_token: int
    work_token: int
    parameters: int

    @classmethod
    def of(cls, model: Yalm, packed: bool = False) -> "Sizes":
        """Of a rank's network on "meta"; linears `packed` for a CPU hold the output's table a second time."""
        config, layers, heads = model.config, list(model.model.layers), model.local_heads
        table = model.model.embed_tokens.tokens.weight
        output = sum(tensor.nbytes for tensor in model.model.norm.state_dict().values())
        width, context = config.intermediate_size * heads // config.num_heads, heads * config.head_size
        return cls(
            layers=len(layers),
            layer=max(buffer_bytes(layer) for layer in layers),
            fixed=(2 if packed else 1) * table.nbytes + output + model.lm_head.bias.nbytes,
            cache_token=2 * len(layers) * context * table.dtype.itemsize,
            # The residual, its norm and the block's output, with q, k, v and the context or three of the width.
            work_token=(3 * config.hidden_size + max(5 * context, 3 * width)) * table.dtype.itemsize,
            parameters=(4 * context + 3 * width) * config.hidden_size,
        )


@dataclass(frozen=True)
class Placement:
    """The tier of every layer of a rank, and bytes by purpose; `cache` is what keys and values may take."""

    tiers: tuple[Tier, ...]
    sizes: Sizes
    buffers: int
    cache: int
    work: int

    def layers_in(self, tier: Tier) -> list[int]:
        """The layers of that tier, by number."""
        return [number for number, where in enumerate(self.tiers) if where == tier]

    @property
    def resident(self) -> bool:
        """Whether nothing is read while the model runs."""
        return set(self.tiers) == {"device"}

    @property
    def device_bytes(self) -> int:
        """The memory of the device that is taken at most."""
        held = self.sizes.fixed + len(self.layers_in("device")) * self.sizes.layer
        return OVERHEAD + held + self.buffers + self.cache + self.work

    @property
    def host_bytes(self) -> int:
        """The host memory that layers take beside a GPU."""
        return len(self.layers_in("host")) * self.sizes.layer


def place(sizes: Sizes, budget: Budget, texts: int, tokens: int) -> Placement:
    """Find a tier for every layer, keeping memory for a cache of `texts` of `tokens` each, or of at least one.

    All layers with the device and fewer texts at a time go before reading layers. YalmError says the least memory with
    which it would go.
    """
    for held, buffers in ((sizes.layers, 0), (0, 2 * sizes.layer)):
        for together in range(texts, 0, -1):
            work = min(together * tokens, PREFILL_TOKENS) * sizes.work_token
            left = budget.device - OVERHEAD - sizes.fixed - held * sizes.layer - buffers - work
            left -= together * tokens * sizes.cache_token
            if left < 0:
                continue
            device = held or left // sizes.layer
            host = min(budget.host // sizes.layer, sizes.layers - device)
            tiers = _spread(sizes.layers, {"device": device, "host": host})
            cache = together * tokens * sizes.cache_token + left - (device - held) * sizes.layer
            return Placement(tiers, sizes, buffers, cache, work)
    need = OVERHEAD + sizes.fixed + 2 * sizes.layer + tokens * (sizes.cache_token + sizes.work_token)
    raise YalmError(
        f"{human(budget.device)} of memory are too little: the token table, two layers and a cache for {tokens:,} "
        f"tokens take {human(need)}; give more with --memory, or use a model quantized to fewer bits"
    )


def _spread(count: int, places: Mapping[Tier, int]) -> tuple[Tier, ...]:
    """So many layers of each kind, the rest on the disk, each kind spread evenly over what the kinds before it left."""
    tiers: list[Tier] = ["disk"] * count
    for tier, number in places.items():
        free = [index for index, where in enumerate(tiers) if where == "disk"]
        for place in range(number):
            tiers[free[place * len(free) // number]] = tier
    return tuple(tiers)


UNITS = {"": 1, "b": 1} | {
    unit + suffix: base**power
    for power, unit in enumerate("kmgt", start=1)
    for suffix, base in (("", 1024), ("ib", 1024), ("b", 1000))
}


def parse_bytes(text: str | int | None, default: int = 0) -> int:
    """ "8GiB", "80GB", "500M" in bytes, numbers as they are, nothing as `default`; YalmError for anything else."""
    if text is None or isinstance(text, int):
        return default if text is None else text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].lower() not in UNITS:
        raise YalmError(f"{text!r} is no amount of memory; write it as 8GiB, 80GB or 500MB")
    return int(float(match[1]) * UNITS[match[2].lower()])


def human(size: float) -> str:
    """Bytes for people: 8.0 GiB."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    power = min(int(math.log(size, 1024)) if size >= 1 else 0, len(units) - 1)
    return f"{size / 1024**power:,.1f} {units[power]}"


def _free_memory() -> int:
    """Bytes of memory that this process can still get: the machine's, or its container's if that is less."""
    free = int(psutil.virtual_memory().available)
    for limit_file, used_file in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            limit, used = (int(Path(file).read_text()) for file in (limit_file, used_file))
        except (OSError, ValueError):  # none, or "max"
            continue
        free = min(free, max(0, limit - used))
    return free
