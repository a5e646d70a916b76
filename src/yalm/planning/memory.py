"""Bytes that each rank holds, by kind: the one place for this sum, of counts by `model.costs`.

Weights, gradients and optimizer follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 5) with what our
training keeps: fp32 master weights, fp32 sums of gradients, AdamW's two moments in fp32 or bf16: 16 or 12 bytes a
parameter, and beside them a copy in the type of computation. Activations are what the network was counted to keep
(`costs.saved_bytes`), in the terms of Korthikanti et al. 2022 (arXiv 2205.05198, section 4): no dropout, sequence
parallelism wherever tensors are split. Tests hold all of it against training on 2 and 4 ranks.

The rank described is the fullest: FSDP deals out whole rows, so that of 10,240 rows on 800 ranks some hold 13.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from yalm.config import Settings
from yalm.model.config import ModelConfig
from yalm.model.costs import DTYPE_BYTES, Tensors, saved_bytes, shapes

Recompute = Literal["none", "selective", "full"]
Precision = Literal["bf16", "fp16", "tf32", "fp32"]
Moments = Literal["fp32", "bf16"]
COPY_BYTES = {"bf16": DTYPE_BYTES["bf16"], "fp16": DTYPE_BYTES["fp16"], "tf32": 4, "fp32": 4}
MASTER_BYTES, GRADIENT_BYTES = 4, 4
MOMENTS_BYTES = {"fp32": 8, "bf16": 4}
# Logits of a chunk on a rank (model/ops/cross_entropy.py): a kernel has them once, in the type of computing; where
# words are divided, PyTorch's operations have them twice, in fp32.
CHUNK_LOGITS, DIVIDED_LOGIT_BYTES = (512 << 20) // 4, 8
# CUDA's own memory with NCCL's buffers.
RESERVED_BYTES = 2e9


class Layout(Settings):
    """How a step is laid over ranks: `data` x `tensor` x `pipeline` of them, and what each keeps."""

    data: int = Field(ge=1)
    tensor: int = Field(default=1, ge=1)
    pipeline: int = Field(default=1, ge=1)
    interleave: int = Field(default=1, ge=1)
    """Pieces of the model on each pipeline stage (Narayanan et al. 2021)."""
    zero: int = Field(default=3, ge=0, le=3)
    sequence: int = Field(ge=1)
    micro_batch: int = Field(default=1, ge=1)
    """Sequences that a rank computes at a time."""
    accumulation: int = Field(default=1, ge=1)
    """Micro-batches of a step, one after the other."""
    prefetch: int = Field(default=1, ge=0)
    """Layers that are gathered ahead of their use."""
    recompute: Recompute = "none"
    precision: Precision = "bf16"
    moments: Moments = "fp32"
    """Of AdamW, both."""
    flash: bool = True
    """Attention without its square in memory (Dao et al. 2022, arXiv 2205.14135); runs before 2022 had none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.zero == 3 and self.pipeline > 1:
            raise ValueError("zero 3 gathers every layer for every micro-batch of a pipeline; take zero 0, 1 or 2")
        if self.moments == "bf16" and self.tensor > 1:
            raise ValueError("moments bf16 and tensor above 1 do not go together; take fp32, or tensor 1")
        return self

    @property
    def ranks(self) -> int:
        """Of the whole mesh."""
        return self.data * self.tensor * self.pipeline

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step."""
        return self.data * self.micro_batch * self.accumulation * self.sequence

    @property
    def micro_tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_batch * self.sequence


def parameters_of(tensors: Tensors, tensor: int, shards: int) -> int:
    """Numbers that the fullest of `shards` ranks holds of these, each cut by `tensor` and then by rows."""
    total = 0
    for count, rows, columns, split in tensors:
        rows = -(-rows // tensor) if split == "rows" else rows
        columns = -(-columns // tensor) if split == "columns" else columns
        total += count * -(-rows // shards) * columns
    return total


def stage(config: ModelConfig, pipeline: int) -> Tensors:
    """The tensors of the fullest pipeline stage: the last, with the output, or the first, with the embedding.

    Both need the table; what is left of the layers goes to the first stages.
    """
    parts = shapes(config)
    if pipeline == 1:
        return [tensor for part in parts.values() for tensor in part]
    layers = -(-config.num_layers // pipeline)
    inner = [
        (layers * (count // config.num_layers), rows, columns, split)
        for part in ("attention", "feed_forward")
        for count, rows, columns, split in parts[part]
    ]
    inner.append((4 * layers, config.hidden_size, 1, "none"))
    return inner + parts["embedding"] + parts["output"]


def layer_parameters(config: ModelConfig) -> int:
    """Numbers of one layer."""
    parts = shapes(config)
    layers = [*parts["attention"], *parts["feed_forward"]]
    return parameters_of(layers, 1, 1) // config.num_layers + 4 * config.hidden_size


def state_bytes(config: ModelConfig, layout: Layout) -> dict[str, int]:
    """Bytes of what lives from step to step, on the fullest rank: `parameters`, `gradients`, `optimizer`.

    At stage 1 gradients are added up whole where a step has several micro-batches, and else reduced at once.
    """
    tensors = stage(config, layout.pipeline)
    whole = parameters_of(tensors, layout.tensor, 1)
    sharded = parameters_of(tensors, layout.tensor, layout.data)
    held = sharded if layout.zero >= 1 else whole
    added_up = whole if layout.zero == 1 and layout.accumulation > 1 else held
    return {
        "parameters": MASTER_BYTES * held,
        "gradients": GRADIENT_BYTES * added_up,
        "optimizer": MOMENTS_BYTES[layout.moments] * held,
    }


def gathered_bytes(config: ModelConfig, layout: Layout) -> float:
    """The copy that is computed with: the ends, and all layers at stages 1 and 2, or at 0 and 3 those in use.

    One is in use and `prefetch` are on their way; a layer is unpacked from its gather's buffer, so that both are there
    for a moment. One rank in fp32 computes with its masters; several copy them, even where none is gathered.
    """
    size, layers = COPY_BYTES[layout.precision], -(-config.num_layers // layout.pipeline)
    if layout.ranks == 1 and size == MASTER_BYTES:
        return 0
    ends = parameters_of([*shapes(config)["embedding"], *shapes(config)["output"]], layout.tensor, 1)
    in_use = layers if layout.zero in (1, 2) else 1
    if layout.zero and layout.data > 1:
        in_use = min(in_use + max(1, layout.prefetch), layers + 1)
    return size * (ends + in_use * layer_parameters(config) / layout.tensor)


def activation_bytes(config: ModelConfig, layout: Layout) -> float:
    """What the forward passes under way leave for the backward pass, and what is computed again at a time.

    A pipeline's first stage has as many micro-batches under way as there are stages (Narayanan et al. 2021, section
    2.2), its last stage one, and the output, whose table's gradient is there until the last layer is done. Without
    flash attention a layer keeps 2·A·S numbers a token more, which recomputation does not keep.
    """
    dtype = "fp32" if layout.precision == "tf32" else layout.precision
    width, tokens = DTYPE_BYTES[dtype], layout.micro_tokens
    saved = saved_bytes(config, layout.micro_batch, layout.sequence, dtype, layout.tensor)
    scores = 0 if layout.flash else 2 * config.num_heads * layout.sequence * tokens * width / layout.tensor
    layer = saved["layer"] + scores
    kept = {
        "none": layer,
        "selective": saved["layer_input"] + saved["layer_results"],
        "full": saved["layer_input"],
    }[layout.recompute]
    layers, under_way = -(-config.num_layers // layout.pipeline), min(layout.pipeline, layout.accumulation)
    # A layer that runs has its insides, those that were not kept too, and at its end the last product.
    running = layer - kept + width * tokens * config.hidden_size
    last_stage = layers * kept + max(saved["rest"], running + saved["table"])
    return max(under_way * layers * kept + running, last_stage)


def bytes_per_rank(config: ModelConfig, layout: Layout) -> dict[str, float]:
    """Bytes by kind on the fullest rank, each at its highest, with their `total`.

    Beside `state_bytes`: `gathered` and `activations`; `reducing` is a layer's gradients on their way into a reduction,
    in the type of computing and in fp32; `loss` the chunk of logits; `reserved` what CUDA and NCCL take. What an
    operation needs while it runs is not counted.
    """
    layer = layer_parameters(config) / layout.tensor
    logit_bytes = COPY_BYTES[layout.precision] if layout.tensor == 1 else DIVIDED_LOGIT_BYTES
    kinds: dict[str, float] = {
        **state_bytes(config, layout),
        "gathered": gathered_bytes(config, layout),
        "reducing": (COPY_BYTES[layout.precision] + GRADIENT_BYTES) * layer if layout.data > 1 else 0,
        "activations": activation_bytes(config, layout),
        "loss": logit_bytes * min(CHUNK_LOGITS, layout.micro_tokens * config.vocab_size / layout.tensor),
        "reserved": RESERVED_BYTES,
    }
    return kinds | {"total": sum(kinds.values())}
