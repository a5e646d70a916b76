"""What failures cost: how often a cluster stops, how often to save, and how much of the calendar that takes.

Young 1974 and Daly 2006 (Future Generation Computer Systems 22:303): with a save of C seconds and M seconds between
failures, saving every √(2·C·M) seconds loses least: C/τ of the time in saves and τ/2 of work at each failure.
"""

from dataclasses import dataclass
from math import sqrt

from yalm.model.config import ModelConfig
from yalm.model.costs import parameters

DAY = 86_400.0
# Failures a GPU and day. OPT-175B: 105 restarts in 60 days of 992 GPUs, 1.8e-3; BLOOM: 1 to 2 a week on 384, 5.6e-4;
# Llama 3 (arXiv 2407.21783, section 3.3.4): 419 in 54 days of 16,384, 4.7e-4. The middle one of the three.
FAILURES_PER_GPU_DAY = 5.6e-4
# To notice, to replace the node, to load: half an hour. A node writes 2 GB/s, a shared file system 100 GB/s.
RESTART_SECONDS, NODE_WRITE, CLUSTER_WRITE = 1800.0, 2e9, 100e9


@dataclass(frozen=True)
class Reliability:
    """Rates and times of a run on a cluster that fails now and then."""

    failures_per_day: float
    checkpoint_bytes: int
    checkpoint_seconds: float
    interval_seconds: float
    lost_share: float
    """Saves, repeated work and restarts, relative to the time of the steps themselves."""


def interval(save_seconds: float, between_failures: float) -> float:
    """Young's and Daly's interval between checkpoints, in seconds, and no less than a save takes."""
    return max(save_seconds, sqrt(2 * save_seconds * between_failures))


def reliability(config: ModelConfig, gpus: int, per_node: int, moments_bytes: int) -> Reliability:
    """Of a run of that model on `gpus`; a checkpoint has fp32 weights and moments of that many bytes a parameter."""
    size = (4 + moments_bytes) * parameters(config)["total"]
    save = size / min(CLUSTER_WRITE, NODE_WRITE * max(1, gpus // per_node))
    failures = FAILURES_PER_GPU_DAY * gpus
    between = DAY / failures
    every = interval(save, between)
    lost = save / every + (every / 2 + RESTART_SECONDS) / between
    return Reliability(failures, size, save, every, lost)
