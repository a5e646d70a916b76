"""Accelerators as their data sheets describe them. All but `matmul_share` is NVIDIA's.

Rates are dense (without sparsity). Links count one direction, which is half of what data sheets print for NVLink and
PCIe. The network is that of the maker's reference system: one adapter for each accelerator. Where a card has no NVLink,
its PCIe takes that place. Power is the accelerator's share of the whole reference system at its maximum.
"""

from dataclasses import dataclass

from yalm.config import nearest
from yalm.errors import YalmError


@dataclass(frozen=True)
class Gpu:
    """One accelerator in its usual node: FLOP/s by precision, bytes, bytes a second, watts."""

    flops: dict[str, float]
    """Dense peak by precision: fp32, tf32, fp16, bf16; absent where the hardware has none."""
    memory: float
    bandwidth: float
    """Of its memory, bytes a second."""
    link: float
    """To the others of its node, bytes a second in one direction."""
    network: float
    """To other nodes, bytes a second in one direction, for each accelerator."""
    watts: float
    per_node: int
    matmul_share: float
    """Of the peak, what wide 16-bit products reach: the power limit takes more from newer ones (see `published`)."""
    source: str


def _rates(fp32: float, tf32: float | None, half: float, bf16: bool = True) -> dict[str, float]:
    rates = {"fp32": fp32, "tf32": tf32, "fp16": half, "bf16": half if bf16 else None}
    return {name: rate * 1e12 for name, rate in rates.items() if rate is not None}


# AMPERE and HOPPER are fitted (`published` says on what); VOLTA is taken as Ampere, Blackwell as Hopper.
AMPERE, HOPPER = 0.77, 0.57
VOLTA, BLACKWELL = AMPERE, HOPPER
_A100, _H100, _B200 = _rates(19.5, 156, 312), _rates(67, 495, 989), _rates(75, 1125, 2250)
# DGX-1: 3.5 kW, 4 adapters of 100 Gbit/s for 8; DGX A100: 6.5 kW, 8 of 200; DGX H100 and H200: 10.2 kW, 8 of 400;
# DGX B200: 14.3 kW, 8 of 400. The RTX cards stand in a workstation: 150 W for each card's share of it, 25 Gbit/s.
GPUS: dict[str, Gpu] = {
    "v100-32gb": Gpu(_rates(15.7, None, 125, bf16=False), 32e9, 900e9, 150e9, 6.25e9, 438, 8, VOLTA, "V100, DGX-1"),
    "a100-40gb": Gpu(_A100, 40e9, 1555e9, 300e9, 25e9, 813, 8, AMPERE, "A100 and DGX A100 data sheets"),
    "a100-80gb": Gpu(_A100, 80e9, 2039e9, 300e9, 25e9, 813, 8, AMPERE, "A100 and DGX A100 data sheets"),
    "h100-80gb": Gpu(_H100, 80e9, 3350e9, 450e9, 50e9, 1275, 8, HOPPER, "H100 and DGX H100 data sheets"),
    "h200-141gb": Gpu(_H100, 141e9, 4800e9, 450e9, 50e9, 1275, 8, HOPPER, "H200 and DGX H200 data sheets"),
    "b200-180gb": Gpu(_B200, 180e9, 8000e9, 900e9, 50e9, 1788, 8, BLACKWELL, "DGX B200 data sheet"),
    "rtx-4090": Gpu(_rates(82.6, 82.6, 165), 24e9, 1008e9, 32e9, 3.1e9, 600, 8, AMPERE, "Ada whitepaper"),
    "rtx-3090": Gpu(_rates(35.6, 35.6, 71), 24e9, 936e9, 32e9, 3.1e9, 500, 8, AMPERE, "GA102 whitepaper"),
}


def gpu(name: str) -> Gpu:
    """The accelerator of that name; YalmError with the nearest name if there is none."""
    if name not in GPUS:
        raise YalmError(f"gpu {name!r} is not known{nearest(name, list(GPUS))}; known: {', '.join(GPUS)}")
    return GPUS[name]


def peak(name: str, precision: str) -> float:
    """FLOP/s of that GPU at that precision; YalmError if it has none."""
    rates = gpu(name).flops
    if precision not in rates:
        raise YalmError(f"{name} has no {precision}; take --precision {', '.join(rates)}")
    return rates[precision]


def group_bandwidth(gpu: Gpu, members: int, stride: int) -> float:
    """Bytes a second that a ring over `members` ranks `stride` apart moves past each of them, at best.

    Ranks are numbered tensor first, then data, then pipeline, and fill nodes in order. Within a node it is the link.
    Across nodes a ring enters each node once for every adapter its members there own, and no faster than the link.
    """
    if members * stride <= gpu.per_node:
        return gpu.link
    beside = max(1, gpu.per_node // stride)
    return min(gpu.link, gpu.network * min(beside, members))
