"""Everything a training run can be told, with defaults that run.

Lengths are in tokens, batches in sequences, cadences in steps. `yalm train FILE section.key=value …` reads these from
TOML; the whole of them is saved with the run and is enough to repeat it.
"""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from yalm.config import Settings
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.presets import preset
from yalm.tokens.mixture import PartSettings

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8"]
WeightType = Literal["fp32", "bf16"]
# What DeepSpeed can be asked for of the settings of `compute` that not every engine takes.
DEEPSPEED_TAKES: dict[str, tuple[Any, ...]] = {
    "zero": (1, 2, 3),
    "replicate": (1,),
    "tensor": (1,),
    "pipeline": (1,),
    "precision": ("fp32", "tf32", "bf16", "fp16"),
    "compile": ("auto", "off"),
}


class ModelSettings(Settings):
    """A preset, and sizes that replace its own; the vocabulary follows the tokenizer of the data."""

    preset: str = "demo"
    embedding_size: int | None = None
    hidden_size: int | None = None
    num_layers: int | None = None
    num_heads: int | None = None
    intermediate_size: int | None = None
    max_positions: int | None = None

    @field_validator("preset")
    @classmethod
    def _exists(cls, name: str) -> str:
        try:
            preset(name)
        except YalmError as error:
            raise ValueError(str(error)) from None
        return name

    def config(self, vocab_size: int) -> ModelConfig:
        """The sizes of the network; YalmError if they do not fit each other."""
        changes: dict[str, Any] = self.model_dump(exclude={"preset"}, exclude_none=True)
        values = preset(self.preset).model_dump() | changes | {"vocab_size": vocab_size}
        return ModelConfig.parse(values, source="model")


class DataSettings(Settings):
    """Token folders to train on by weight, and to validate on."""

    parts: tuple[PartSettings, ...] = Field(min_length=1)
    validation: tuple[PartSettings, ...] = ()
    sequence_length: int = Field(default=512, gt=1)
    cross_documents: bool = True
    """Whether attention may look from one document into those packed before it (as GPT-3 and Megatron do)."""


class BatchSettings(Settings):
    """Sequences of one optimizer step, over all ranks, and of one forward pass on one rank."""

    sequences: int = Field(default=16, gt=0)
    micro_sequences: int = Field(default=4, gt=0)


class OptimizerSettings(Settings):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); matrices decay, norms and biases do not."""

    lr: float = Field(default=1e-3, gt=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    weights: WeightType = "fp32"
    """`bf16` keeps no fp32 copy: each update is rounded to bfloat16 at random, without bias on average."""
    moments: WeightType = "fp32"
    """`bf16` halves AdamW's two moments, a quarter of all that is kept; rounded likewise."""


class ScheduleSettings(Settings):
    """Linear warm-up, then a cosine down to a share of the peak; all in tokens."""

    tokens: int = Field(default=10_000_000, gt=0)
    warmup_tokens: int = Field(default=500_000, ge=0)
    final_lr_ratio: float = Field(default=0.1, ge=0, le=1)


class ComputeSettings(Settings):
    """Where and in what types to compute."""

    device: str = "auto"
    engine: Literal["native", "deepspeed"] = "native"
    """What computes a step: PyTorch's own FSDP2, or DeepSpeed from the extra of that name."""
    precision: Precision = "fp32"
    """The type of matrix products (see `training/precision.py`); weights, sums and optimizer stay fp32."""
    zero: Literal[0, 1, 2, 3] = 3
    """What ranks divide: 0 nothing, 1 the optimizer, 2 gradients too, 3 weights too (docs/parallelism.md)."""
    replicate: int = Field(default=1, gt=0)
    """Groups of ranks that divide the model each among themselves; only sums of gradients cross between groups."""
    tensor: int = Field(default=1, gt=0)
    """Ranks that divide every layer's matrices among them, and the positions in between (`training/tensor.py`)."""
    pipeline: int = Field(default=1, gt=0)
    """Ranks that have a run of layers each, through which micro-batches pass (`training/pipeline.py`)."""
    prefetch: int = Field(default=1, ge=0)
    """Layers whose weights are gathered ahead of their use, forward and backward."""
    offload: bool = False
    """Keep fp32 weights, gradients and optimizer in the CPU's memory, and let the CPU take the optimizer's step."""
    offload_folder: Path | None = None
    """With DeepSpeed, `zero` 3 and `offload`: fp32 weights and the optimizer go to files in this folder instead."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What layers compute again in the backward pass rather than keep: `full` keeps their inputs alone, for a third
    more work; `selective` also the results of matrix products and attention, for hardly any."""
    compile: Literal["auto", "on", "off"] = "auto"
    """`auto` compiles each layer on GPUs; on CPUs it costs half a minute and gains nothing."""
    fused: bool = True
    """On GPUs, compute layers that are not compiled by Triton kernels of ours (docs/fused-operations.md)."""
    threads: int = Field(default=0, ge=0)
    """CPU threads; 0 takes PyTorch's choice."""

    @model_validator(mode="after")
    def _engine_takes_the_rest(self) -> Self:
        for key, taken in DEEPSPEED_TAKES.items():
            value = getattr(self, key)
            if self.engine == "deepspeed" and value not in taken:
                choice = ", ".join(str(each) for each in taken)
                raise ValueError(f"engine deepspeed does not take {key} {value}; take {choice}, or engine native")
        return self

    @model_validator(mode="after")
    def _offloads_to_files(self) -> Self:
        if self.offload_folder and (self.engine, self.zero, self.offload) != ("deepspeed", 3, True):
            raise ValueError("offload_folder is for engine deepspeed, zero 3, offload true; set these, or leave it out")
        return self

    @model_validator(mode="after")
    def _replicates_shards(self) -> Self:
        if self.zero == 0 and self.replicate > 1:
            raise ValueError("replicate is for zero 1, 2 or 3: zero 0 replicates over all ranks; leave it at 1")
        return self

    @model_validator(mode="after")
    def _divides_what_it_can(self) -> Self:
        if self.tensor > 1 and self.precision == "fp8":
            raise ValueError("precision fp8 and tensor above 1 do not go together; take bf16, or tensor 1")
        return self


class ValidationSettings(Settings):
    """How often, and on how much of each validation part."""

    every_steps: int = Field(default=100, gt=0)
    sequences: int = Field(default=64, gt=0)


class CheckpointSettings(Settings):
    """How often to save, and how many to keep."""

    every_steps: int = Field(default=200, gt=0)
    keep: int = Field(default=2, gt=0)


class MetricsSettings(Settings):
    """How often a step is written to metrics.jsonl and TensorBoard."""

    every_steps: int = Field(default=10, gt=0)
    tensorboard: bool = True


class TrainSettings(Settings):
    """A training run."""

    output: Path = Path("runs/train")
    seed: int = Field(default=0, ge=0)
    model: ModelSettings = ModelSettings()
    data: DataSettings
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    compute: ComputeSettings = ComputeSettings()
    validation: ValidationSettings = ValidationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch.sequences % self.batch.micro_sequences:
            raise ValueError(
                f"batch.sequences {self.batch.sequences} must be a multiple of "
                f"batch.micro_sequences {self.batch.micro_sequences}"
            )
        return self

    @model_validator(mode="after")
    def _takes_bf16(self) -> Self:
        compute = self.compute
        if self.optimizer.weights == "bf16" and compute.precision not in ("bf16", "fp8"):
            raise ValueError(
                f"optimizer.weights bf16 cannot be computed with in {compute.precision}; "
                "set compute.precision to bf16 or fp8, or optimizer.weights to fp32"
            )
        for name, kept in (("weights", self.optimizer.weights), ("moments", self.optimizer.moments)):
            if kept == "bf16" and compute.tensor > 1:
                raise ValueError(f"optimizer.{name} bf16 and compute.tensor above 1 do not go together; take fp32")
            if kept == "bf16" and compute.engine == "deepspeed":
                raise ValueError(f"engine deepspeed does not take optimizer.{name} bf16; take fp32, or engine native")
        return self

    @model_validator(mode="after")
    def _positions_divide(self) -> Self:
        if self.data.sequence_length % self.compute.tensor:
            raise ValueError(
                f"data.sequence_length {self.data.sequence_length} must be a multiple of compute.tensor "
                f"{self.compute.tensor}, whose ranks divide it"
            )
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step learns from, over all ranks."""
        return self.batch.sequences * self.data.sequence_length

    @property
    def total_steps(self) -> int:
        """Steps until at least `schedule.tokens` are seen."""
        return -(-self.schedule.tokens // self.tokens_per_step)
