"""Bytes that each rank holds, by kind.

Weights, gradients and optimizer follow ZeRO (Rajbhandari et al. 2020, arXiv 1910.02054, section 5) with what our
training keeps: fp32 master weights, fp32 sums of gradients, AdamW's two fp32 moments: 16 bytes a parameter, and beside
them a copy in the type of computation. Activations follow the count of Korthikanti et al. 2022 (arXiv 2205.05198,
section 4) applied to this network: no dropout, GeGLU, sequence parallelism wherever tensors are split.

The rank described is the fullest: FSDP deals out whole rows, so that of 10,240 rows on 800 ranks some hold 13.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from yalm.config import Settings
from yalm.model.costs import DTYPE_BYTES, Tensors, shapes
from yalm.model.network import ModelConfig

Recompute = Literal["none", "selective", "full"]
Precision = Literal["bf16", "fp16", "tf32", "fp32"]
COPY_BYTES = {"bf16": DTYPE_BYTES["bf16"], "fp16": DTYPE_BYTES["fp16"], "tf32": 4, "fp32": 4}
MASTER_BYTES, GRADIENT_BYTES, MOMENTS_BYTES = 4, 4, 8
# Two fp32 copies of a chunk of logits (model/ops/cross_entropy.py), and CUDA's own memory with NCCL's buffers.
LOSS_BYTES, RESERVED_BYTES = 2 * (512 << 20), 2e9


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
    recompute: Recompute = "none"
    precision: Precision = "bf16"
    flash: bool = True
    """Attention without its square in memory (Dao et al. 2022, arXiv 2205.14135); runs before 2022 had none."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.zero == 3 and self.pipeline > 1:
            raise ValueError("zero 3 gathers every layer for every micro-batch of a pipeline; take zero 0, 1 or 2")
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
    """Bytes of what lives from step to step, on the fullest rank: `parameters`, `gradients`, `optimizer`."""
    tensors = stage(config, layout.pipeline)
    whole = parameters_of(tensors, layout.tensor, 1)
    sharded = parameters_of(tensors, layout.tensor, layout.data)
    held = sharded if layout.zero >= 1 else whole
    return {
        "parameters": MASTER_BYTES * held,
        "gradients": GRADIENT_BYTES * (sharded if layout.zero >= 2 else whole),
        "optimizer": MOMENTS_BYTES * held,
    }


def activation_bytes_per_token(config: ModelConfig, layout: Layout) -> float:
    """Bytes that one token leaves in one layer for the backward pass, on one tensor-parallel rank.

    With n bytes a number, H hidden, I feed-forward, S sequence, A heads:
    none: 10·n·H (two residuals, two norms, q|k|v of which v is a view, q and k turned, context) + 4·n·I (gate, up,
    GELU, product) [+ 2·n·A·S unless flash];
    selective: 5·n·H + 2·n·I (norms, GELU, product and the attention core are computed again, no matrix product is);
    full: n·H, the layer's input.
    """
    size, hidden, wide = COPY_BYTES[layout.precision], config.hidden_size, config.intermediate_size
    scores = 0 if layout.flash else 2 * config.num_heads * layout.sequence
    numbers = {"none": 10 * hidden + 4 * wide + scores, "selective": 5 * hidden + 2 * wide, "full": hidden}
    return size * numbers[layout.recompute] / layout.tensor


def bytes_per_rank(config: ModelConfig, layout: Layout) -> dict[str, float]:
    """Bytes by kind on the fullest rank, with their `total`.

    `gathered` is the copy that is computed with: whole below stage 3 (kept through the step), two layers at stage 3
    (one computes, one is on its way), with a third in fp32 for its gradients. `activations` are those of as many
    micro-batches as a pipeline's first stage has under way (Narayanan et al. 2021, section 2.2), and with
    recomputation one layer's insides at a time.
    """
    size = COPY_BYTES[layout.precision]
    layers = -(-config.num_layers // layout.pipeline)
    layer = layer_parameters(config) / layout.tensor
    if layout.zero == 3:
        ends = parameters_of([*shapes(config)["embedding"], *shapes(config)["output"]], layout.tensor, 1)
        gathered = size * (2 * layer + ends) + GRADIENT_BYTES * layer
    elif size == MASTER_BYTES and layout.zero == 0:
        gathered = 0
    else:
        gathered = size * parameters_of(stage(config, layout.pipeline), layout.tensor, 1)
    under_way = min(layout.pipeline, layout.accumulation)
    kept = activation_bytes_per_token(config, layout) * layers * under_way
    if layout.recompute != "none":
        kept += activation_bytes_per_token(config, layout.model_copy(update={"recompute": "none"}))
    kinds: dict[str, float] = {
        **state_bytes(config, layout),
        "gathered": gathered,
        "activations": layout.micro_tokens * kept,
        "loss": min(LOSS_BYTES, 8 * layout.micro_tokens * config.vocab_size) / layout.tensor,
        "reserved": RESERVED_BYTES,
    }
    return kinds | {"total": sum(kinds.values())}
