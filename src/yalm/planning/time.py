"""How long a step takes: arithmetic, memory traffic, communication, the pipeline's bubble.

A roofline of the layer: its matrix products at a share of the peak, its other operations at a share of the memory's
bandwidth, one after the other, as kernels run. Tensor-parallel sums stand in the way; what ZeRO moves hides behind
computation, and what is left over shows. Shares are customary or from the papers named, but for four (two here, two in
`hardware`) that were fitted on the four runs that `published` names; the other runs there are their test.
"""

from dataclasses import dataclass

from yalm.config import Settings
from yalm.model.config import ModelConfig
from yalm.model.costs import forward_flops, training_flops
from yalm.planning.hardware import Gpu, group_bandwidth
from yalm.planning.memory import COPY_BYTES, GRADIENT_BYTES, Layout, parameters_of, stage

# Shares of data-sheet bandwidth that long transfers reach, in memory and on links; customary, not fitted.
MEMORY_SHARE, LINK_SHARE = 0.8, 0.8
# Flash attention's own share of peak: 35 % on Hopper by Shah et al. 2024 (arXiv 2407.08608), about that on Ampere for
# the first version; its backward pass computes the scores again: 2.5 times the forward (Dao 2023, arXiv 2307.08691).
ATTENTION_SHARE, ATTENTION_BACKWARD = 0.35, 2.5
# Fitted: communication that is hidden still takes this share of its time, for it uses the same memory and processors.
INTERFERENCE = 0.6
# Fitted: products whose narrowest side on a rank is this wide run at half of that.
HALF_SPEED_WIDTH = 250
# Numbers read and written by all but the products, per token and layer, forward: H times two norms (4), two residual
# sums (6), rotary (4); I times GeGLU (3). Without flash attention: six passes over the scores.
HIDDEN_PASSES, WIDE_PASSES, SCORE_PASSES = 14, 3, 6
# AdamW reads weights, gradients, two moments and writes all but gradients: bytes a parameter, by the moments' type.
OPTIMIZER_TRAFFIC = {"fp32": 28, "bf16": 20}


@dataclass(frozen=True)
class Step:
    """One optimizer step, in seconds; the parts add up to `seconds`."""

    compute: float
    """Products, element-wise work and recomputation."""
    bubble: float
    """Waiting for the pipeline to fill and drain."""
    tensor: float
    pipeline: float
    data: float
    """Communication that computation does not hide."""
    optimizer: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.bubble + self.tensor + self.pipeline + self.data + self.optimizer


class Traffic(Settings):
    """Bytes that a rank receives in a step, by kind, and the bandwidth it does so at."""

    tensor: float
    pipeline: float
    data: float
    tensor_bandwidth: float
    pipeline_bandwidth: float
    data_bandwidth: float

    def seconds(self, kind: str) -> float:
        """If nothing is hidden."""
        return float(getattr(self, kind) / (LINK_SHARE * getattr(self, f"{kind}_bandwidth")))


def traffic(config: ModelConfig, layout: Layout, gpu: Gpu) -> Traffic:
    """What has to be moved; a ring moves (n-1)/n of a tensor past each of n ranks to gather or to scatter it.

    data, ZeRO 0 to 2 (Rajbhandari et al. 2020, section 7): gradients scattered (fp32; at stage 2 for every micro-batch)
    and weights gathered (computed type; at stage 0 the gradients) once. Stage 3: for every micro-batch gathered for
    the forward and again for the backward pass, and gradients scattered.
    tensor (Korthikanti et al. 2022, section 4.2): four gathers or scatters of the layer's activations forward, four
    backward, four more if all is recomputed. pipeline (Narayanan et al. 2021, section 4.1): activations forward,
    their gradients backward, cut by tensor parallelism, once for every piece that a stage has.
    """
    size, tokens = COPY_BYTES[layout.precision], layout.micro_tokens
    layers = -(-config.num_layers // layout.pipeline)
    numbers = parameters_of(stage(config, layout.pipeline), layout.tensor, 1) * (layout.data - 1) / layout.data
    moved = {
        0: 2 * GRADIENT_BYTES,
        1: GRADIENT_BYTES + size,
        2: layout.accumulation * GRADIENT_BYTES + size,
        3: layout.accumulation * (GRADIENT_BYTES + 2 * size),
    }
    passes = 12 if layout.recompute == "full" else 8
    hidden = size * tokens * config.hidden_size
    tensor = layout.accumulation * layers * passes * hidden * (layout.tensor - 1) / layout.tensor
    hops = 2 * layout.interleave * layout.accumulation if layout.pipeline > 1 else 0
    return Traffic(
        tensor=tensor,
        pipeline=hops * hidden / layout.tensor,
        data=numbers * moved[layout.zero],
        tensor_bandwidth=group_bandwidth(gpu, layout.tensor, 1),
        pipeline_bandwidth=gpu.link if layout.ranks <= gpu.per_node else gpu.network,
        data_bandwidth=group_bandwidth(gpu, layout.data, layout.tensor),
    )


def _matmul_share(gpu: Gpu, width: float) -> float:
    return gpu.matmul_share * width / (width + HALF_SPEED_WIDTH)


def micro_batch_seconds(config: ModelConfig, layout: Layout, gpu: Gpu) -> float:
    """One micro-batch, forward and backward, on the busiest pipeline stage, without communication."""
    size, tokens = COPY_BYTES[layout.precision], layout.micro_tokens
    flops = forward_flops(config, (layout.sequence + 1) / 2)
    layers = -(-config.num_layers // layout.pipeline) / config.num_layers
    body = (flops["attention"] + flops["feed_forward"]) * layers
    peak = gpu.flops[layout.precision]
    rate = peak * _matmul_share(gpu, config.hidden_size / layout.tensor)
    output = flops["output"] / (peak * _matmul_share(gpu, config.embedding_size))
    core, backward = flops["attention_core"] * layers / (peak * ATTENTION_SHARE), ATTENTION_BACKWARD
    if not layout.flash:
        core, backward = 2 * flops["attention_core"] * layers / rate, 2
    again = {"none": 0.0, "selective": core, "full": body / rate + core}[layout.recompute]
    products = 3 * (body / rate + output) + (1 + backward) * core + again
    scores = 0 if layout.flash else SCORE_PASSES * config.num_heads * layout.sequence
    numbers = HIDDEN_PASSES * config.hidden_size + WIDE_PASSES * config.intermediate_size + scores
    passes = {"none": 3, "selective": 4, "full": 4}[layout.recompute]
    elementwise = passes * size * numbers * config.num_layers * layers
    return tokens / layout.tensor * (products + elementwise / (MEMORY_SHARE * gpu.bandwidth))


def step(config: ModelConfig, layout: Layout, gpu: Gpu) -> Step:
    """The time of a step, part by part.

    The bubble is (p-1)/v micro-batches, computation and tensor sums (Narayanan et al. 2021, section 2.2). ZeRO 3 hides
    behind all of the step's computation, stages 0 to 2 behind the last micro-batch's backward pass (two thirds of it).
    """
    moved = traffic(config, layout, gpu)
    data = moved.seconds("data")
    micro = micro_batch_seconds(config, layout, gpu)
    compute, tensor = layout.accumulation * micro, moved.seconds("tensor")
    hiding = compute if layout.zero == 3 else micro * 2 / 3 * (layout.accumulation if layout.zero == 2 else 1)
    shards = layout.data if layout.zero >= 1 else 1
    held = parameters_of(stage(config, layout.pipeline), layout.tensor, shards)
    return Step(
        compute=compute,
        bubble=(layout.pipeline - 1) / layout.interleave * (compute + tensor) / layout.accumulation,
        tensor=tensor,
        pipeline=moved.seconds("pipeline"),
        data=data - (1 - INTERFERENCE) * min(data, hiding),
        optimizer=OPTIMIZER_TRAFFIC[layout.moments] * held / (MEMORY_SHARE * gpu.bandwidth),
    )


def utilization(config: ModelConfig, layout: Layout, gpu: Gpu, seconds: float) -> float:
    """MFU: the FLOPs that the model needs (recomputation not counted) over what all ranks could do in that time."""
    needed = training_flops(config, layout.sequence) * layout.batch_tokens
    return needed / (seconds * layout.ranks * gpu.flops[layout.precision])


def seconds_at(config: ModelConfig, layout: Layout, gpu: Gpu, mfu: float) -> float:
    """The inverse of `utilization`: a step's seconds at that MFU."""
    return utilization(config, layout, gpu, mfu)
