"""Whether gathers hide: ZeRO-3 on a slow link, with and without prefetch, beside weights that are never gathered.

    torchrun --nproc-per-node 2 bench/parallel.py

The link is made: a gather is done when gloo has done it and its bytes would have passed a line of a given rate, one
gather after another. The rate is chosen so that a layer's weights take as long as its forward pass, which is the
slowest that can hide; it is chosen anew in every round. Gradients are reduced at gloo's own speed in every row, since
on CPUs FSDP2 does not overlap that. Rows take turns, so that what else the machine does falls on all of them. Exposed
is the time spent waiting for gathers.
"""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule

from yalm.model.config import ModelConfig
from yalm.model.network import Yalm, build, initialize
from yalm.training.parallel import World, join_world, parallelize
from yalm.training.settings import ComputeSettings

CONFIG = ModelConfig(
    vocab_size=2_048, embedding_size=128, hidden_size=512, num_layers=12, num_heads=8, intermediate_size=1_376
)
SEQUENCES, LENGTH, ROUNDS = 4, 256, 5


@dataclass
class Link:
    """A line that passes so many bytes a second, and how long its users have waited for it."""

    rate: float
    free_at: float = 0.0
    waited: float = field(default=0.0)

    def send(self, size: int) -> float:
        """When `size` bytes asked for now will have passed."""
        self.free_at = max(self.free_at, time.perf_counter()) + size / self.rate
        return self.free_at

    def wait(self, work: Any, until: float) -> None:
        """Wait for the work and for the time."""
        start = time.perf_counter()
        work.wait()
        time.sleep(max(0.0, until - time.perf_counter()))
        self.waited += time.perf_counter() - start


class SlowWork(dist.Work):
    """A gather under way."""

    def __init__(self, link: Link, work: Any, until: float) -> None:
        super().__init__()
        self.link, self.work, self.until = link, work, until

    def wait(self, *_: Any) -> bool:
        self.link.wait(self.work, self.until)
        return True


class SlowGather:
    """What FSDP2 calls to gather (its `AllGather`)."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> SlowWork:
        until = self.link.send(output_tensor.nbytes - input_tensor.nbytes)
        work = dist.all_gather_into_tensor(output_tensor, input_tensor, group=group, async_op=True)
        return SlowWork(self.link, work, until)


def contender(world: World, link: Link, **settings: Any) -> Yalm:
    """A network laid out by these settings, its gathers on the link."""
    compute = ComputeSettings(device="cpu", threads=1, **settings)
    model = parallelize(initialize(build(CONFIG), seed=0), world, compute)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_all_gather(SlowGather(link))
    return model


def step(model: Yalm, ids: Tensor) -> float:
    """Seconds of a forward and a backward pass."""
    dist.barrier()
    start = time.perf_counter()
    model(ids, ids).backward()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print a table, from rank 0."""
    ids = torch.randint(CONFIG.vocab_size, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    with join_world(ComputeSettings(device="cpu", threads=1, zero=0)) as everywhere:
        mesh = init_device_mesh("cpu", (everywhere.size,), mesh_dim_names=("shard",))
        flat = World(everywhere.rank, everywhere.size, everywhere.device, mesh)
        link = Link(rate=1e12)
        rows = {
            "no sharding (zero 0)": contender(everywhere, link, zero=0),
            "zero 3, prefetch 0": contender(flat, link, zero=3, prefetch=0),
            "zero 3, prefetch 1": contender(flat, link, zero=3, prefetch=1),
            "zero 3, prefetch 2": contender(flat, link, zero=3, prefetch=2),
        }
        for model in rows.values():
            step(model, ids)
        layer = sum(weight.numel() * 4 for weight in build(CONFIG, "meta").model.layers[1].parameters())
        sent = layer * (1 - 1 / everywhere.size)
        seconds: list[list[float]] = []
        exposed: list[list[float]] = []
        for _ in range(ROUNDS):
            seconds.append([])
            exposed.append([])
            for model in rows.values():
                link.waited = 0.0
                seconds[-1].append(step(model, ids))
                exposed[-1].append(link.waited)
                if len(seconds[-1]) == 1:
                    # A third of a step is forward; the link is to be as slow for all as the slower rank computes.
                    forward = torch.tensor(seconds[-1][0] / 3 / CONFIG.num_layers)
                    dist.all_reduce(forward, dist.ReduceOp.MAX)
                    link.rate = sent / float(forward)
        if everywhere.is_main:
            print(f"link: {link.rate / 1e6:.0f} MB/s in the last round; medians of {ROUNDS} rounds")
            for name, took, waited in zip(rows, zip(*seconds, strict=True), zip(*exposed, strict=True), strict=True):
                speed = statistics.median(whole[0] / one for whole, one in zip(seconds, took, strict=True))
                print(
                    f"{name:22} {statistics.median(took):6.3f} s  {speed:5.0%} of its speed  "
                    f"{statistics.median(waited):6.3f} s exposed"
                )


if __name__ == "__main__":
    main()
