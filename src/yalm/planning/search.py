"""The fastest layout of a run that fits in memory, and all that is to be said of it."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from yalm.config import Settings
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.costs import parameters, training_flops
from yalm.planning.hardware import gpu as gpu_named
from yalm.planning.hardware import peak
from yalm.planning.memory import MOMENTS_BYTES, Layout, Moments, Precision, Recompute, bytes_per_rank
from yalm.planning.reliability import DAY, reliability
from yalm.planning.time import seconds_at, step, traffic, utilization

# The share of memory that may be planned: the rest is lost between blocks of the allocator.
USABLE = 0.92
# The batch is met as nearly as whole sequences on every rank allow, within this.
BATCH_TOLERANCE = 0.25
MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)
# How many other layouts stand beside the best.
CANDIDATES = 8


class Question(Settings):
    """What is to be planned; what is None is searched."""

    gpus: int = Field(gt=0)
    gpu: str
    tokens: float = Field(gt=0, allow_inf_nan=False)
    sequence: int = Field(gt=0)
    batch: float = Field(default=2**21, gt=0, allow_inf_nan=False)
    """Tokens of a step; 2 million, about what models of 10 to 200 billion weights were trained with."""
    zero: Literal[0, 1, 2, 3] | None = None
    tensor: int | None = Field(default=None, ge=1)
    pipeline: int | None = Field(default=None, ge=1)
    recompute: Recompute | None = None
    precision: Precision = "bf16"
    moments: Moments = "fp32"
    mfu: float | None = Field(default=None, gt=0, le=1)
    """Instead of the predicted utilization."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        ways = (self.tensor or 1) * (self.pipeline or 1)
        if self.gpus % ways:
            raise ValueError(f"gpus {self.gpus} is not a multiple of tensor x pipeline ({ways})")
        if self.zero == 3 and (self.pipeline or 1) > 1:
            raise ValueError("zero 3 gathers every layer for every micro-batch of a pipeline; take zero 0, 1 or 2")
        if self.moments == "bf16" and (self.tensor or 1) > 1:
            raise ValueError("moments bf16 and tensor above 1 do not go together; take fp32, or tensor 1")
        return self


def layouts(config: ModelConfig, question: Question) -> Iterator[Layout]:
    """Every layout that answers the question, whether it fits in memory or not.

    Tensors are cut within a node and by whole heads; a pipeline has whole layers on each stage, and its stages at least
    as many micro-batches as there are of them.
    """
    per_node = gpu_named(question.gpu).per_node
    tensors = [question.tensor] if question.tensor else [n for n in (1, 2, 4, 8) if n <= per_node]
    if question.moments == "bf16":  # which training does not take with others
        tensors = [1]
    divisors = [n for n in range(1, config.num_layers + 1) if config.num_layers % n == 0]
    pipelines = [question.pipeline] if question.pipeline else divisors
    for tensor in tensors:
        for pipeline in pipelines:
            if question.gpus % (tensor * pipeline) or config.num_heads % tensor or pipeline > config.num_layers:
                continue
            data = question.gpus // tensor // pipeline
            possible = range(4) if pipeline == 1 else range(3)
            stages = [zero for zero in possible if question.zero in (None, zero)]
            for micro in MICRO_BATCHES:
                accumulation = max(1, round(question.batch / (data * micro * question.sequence)))
                met = data * micro * accumulation * question.sequence
                if abs(met / question.batch - 1) > BATCH_TOLERANCE or accumulation < pipeline:
                    continue
                for zero in stages:
                    for recompute in [question.recompute] if question.recompute else get_args(Recompute):
                        yield Layout(
                            data=data,
                            tensor=tensor,
                            pipeline=pipeline,
                            zero=zero,
                            sequence=question.sequence,
                            micro_batch=micro,
                            accumulation=accumulation,
                            recompute=recompute,
                            precision=question.precision,
                            moments=question.moments,
                        )


def best(config: ModelConfig, question: Question) -> Layout:
    """The layout of most tokens a second among those that fit; YalmError if none does, or none exists."""
    gpu = gpu_named(question.gpu)
    peak(question.gpu, question.precision)
    usable = USABLE * gpu.memory
    possible = [(layout, bytes_per_rank(config, layout)["total"]) for layout in layouts(config, question)]
    if not possible:
        raise YalmError(
            f"no layout of {question.gpus} GPUs gives whole layers, heads and sequences at a batch of "
            f"{question.batch:,.0f} tokens; change --batch (at least {question.gpus * question.sequence:,} without "
            "--tensor and --pipeline), --gpus, --tensor or --pipeline"
        )
    fitting = [layout for layout, size in possible if size <= usable]
    if not fitting:
        least = min(size for _, size in possible)
        raise YalmError(
            f"does not fit: the leanest layout needs {least / 1e9:,.1f} GB a rank and {question.gpu} has "
            f"{usable / 1e9:,.1f} GB to plan with; take more GPUs, --zero 3, --recompute full, --tensor or "
            "--moments bf16"
        )
    return max(fitting, key=lambda layout: layout.batch_tokens / step(config, layout, gpu).seconds)


def candidates(config: ModelConfig, question: Question) -> list[dict[str, Any]]:
    """The best layout of each mesh and stage, fastest first, those that do not fit at the end; `CANDIDATES` at most.

    A mesh is shown by its fastest layout among those that fit, or, if none does, by its leanest.
    """
    gpu = gpu_named(question.gpu)
    found: dict[tuple[int, int, int], dict[str, Any]] = {}

    def rank(candidate: dict[str, Any]) -> tuple[bool, float]:
        size = candidate["bytes_per_rank"]["total"]
        return candidate["fits"], candidate["tokens_per_second"] if candidate["fits"] else -size

    for layout in layouts(config, question):
        sizes, parts = bytes_per_rank(config, layout), step(config, layout, gpu)
        candidate = {
            "layout": layout.model_dump(),
            "fits": sizes["total"] <= USABLE * gpu.memory,
            "tokens_per_second": layout.batch_tokens / parts.seconds,
            "step_seconds": parts.seconds,
            "step_parts": asdict(parts),
            "bytes_per_rank": sizes,
        }
        mesh = layout.tensor, layout.pipeline, layout.zero
        found[mesh] = max(found.get(mesh, candidate), candidate, key=rank)
    return sorted(found.values(), key=rank, reverse=True)[:CANDIDATES]


def plan(config: ModelConfig, question: Question) -> dict[str, Any]:
    """The answer as plain values: seconds, bytes, days, tokens a second, MWh. YalmError as from `best`.

    `days` is the time of the steps; `calendar_days` adds saves and failures. Energy is that of whole nodes at their
    maximum for the calendar days; cooling is not counted. `candidates` are other layouts beside the best, all at the
    predicted utilization.
    """
    gpu, layout = gpu_named(question.gpu), best(config, question)
    parts = step(config, layout, gpu)
    if question.mfu is None:
        seconds, mfu = parts.seconds, utilization(config, layout, gpu, parts.seconds)
    else:
        seconds, mfu = seconds_at(config, layout, gpu, question.mfu), question.mfu
    moved, trouble = (
        traffic(config, layout, gpu),
        reliability(config, question.gpus, gpu.per_node, MOMENTS_BYTES[question.moments]),
    )
    days = question.tokens / layout.batch_tokens * seconds / DAY
    calendar = days * (1 + trouble.lost_share)
    return {
        "question": question.model_dump(),
        "layout": layout.model_dump(),
        "parameters": parameters(config)["total"],
        "flops": training_flops(config, question.sequence) * question.tokens,
        "batch_tokens": layout.batch_tokens,
        "steps": round(question.tokens / layout.batch_tokens),
        "days": days,
        "calendar_days": calendar,
        "step_seconds": seconds,
        "step_parts": asdict(parts),
        "mfu": mfu,
        "mfu_is": "predicted" if question.mfu is None else "given",
        "tokens_per_second": layout.batch_tokens / seconds,
        "energy_mwh": gpu.watts * question.gpus * calendar * 24 / 1e6,
        "bytes_per_rank": bytes_per_rank(config, layout),
        "gpu_memory": gpu.memory,
        "communication": {
            kind: {"bytes": getattr(moved, kind), "seconds": moved.seconds(kind)}
            for kind in ("data", "tensor", "pipeline")
        },
        "reliability": asdict(trouble),
        "candidates": candidates(config, question),
    }
