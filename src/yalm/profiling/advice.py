"""What to do about a profile: rules, each a fault that the profile shows and what its cure would save.

A rule is a function from a profile to an `Advice` or nothing. Gains are estimates, from the seconds of the very
operations that the cure would change and from the same formulas that `yalm plan` uses; they are shares of the time that
a token takes now, and do not add up. Two kinds of cure are told apart: those that compute the same, and those that
change the model or what a step learns, whose worth in loss a profile cannot know.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import log

import torch

from yalm.model.config import ModelConfig
from yalm.model.costs import DTYPE_BYTES, TENSOR_CORE_TYPES, parameters, saved_bytes, unaligned
from yalm.model.presets import PRESETS
from yalm.planning.search import USABLE
from yalm.planning.time import HIDDEN_PASSES, MEMORY_SHARE, WIDE_PASSES
from yalm.profiling.classify import Operation, Timeline
from yalm.profiling.roofline import Machine, flops_and_bytes
from yalm.training.precision import HALF
from yalm.training.settings import TrainSettings

# Below this a gain is lost among the differences of two runs.
LEAST_GAIN = 0.02
# How much more sequences a rule proposes.
MORE = 4


@dataclass(frozen=True)
class Profile:
    """All that rules look at."""

    settings: TrainSettings
    config: ModelConfig
    device: torch.device
    ranks: int
    seconds: float
    """Of a step, without the profiler."""
    timeline: Timeline
    machine: Machine
    peak_bytes: int
    """The most memory at any moment of a step."""
    memory: float
    """Bytes that the run may take on this rank."""
    product_rates: tuple[float, float]
    """FLOP/s of the feed-forward's product at the rows of a micro-batch, and of one of `more_sequences`."""
    half_rate: float
    """FLOP/s of products in bf16."""

    @property
    def idle(self) -> float:
        """Seconds of a step in which the device has nothing to do, without those that the profiler adds."""
        kinds = self.timeline.kinds
        return max(0.0, min(kinds["idle"], self.seconds - (self.timeline.seconds - kinds["idle"])))


@dataclass(frozen=True)
class Advice:
    """`change` are overrides for the command line; `gain` is the share of a step's time that it would save."""

    rule: str
    change: tuple[str, ...]
    why: str
    gain: float
    same_result: bool
    """Whether the run computes the same as before."""


def advise(profile: Profile) -> list[Advice]:
    """What every rule has to say of the profile, the largest gain first."""
    found = (rule(profile) for rule in RULES)
    return sorted((one for one in found if one and one.gain >= LEAST_GAIN), key=lambda one: -one.gain)


def narrow_embedding(profile: Profile) -> Advice | None:
    """The embedding, and so the output product, is wider than that of the preset of about this hidden size.

    What is proportional to the width: the output's products, passes over the table and its gradient, and the
    optimizer's part for it.
    """
    config, timeline = profile.config, profile.timeline
    alike = min(PRESETS.values(), key=lambda preset: abs(log(preset.hidden_size / config.hidden_size)))
    width, narrow = config.embedding_size, alike.embedding_size
    if width <= narrow:
        return None
    table = (config.vocab_size, width)
    proportional = [
        op
        for op in timeline.operations
        if op.module in ("lm_head", "model.norm.dense", "model.embed_tokens.tokens")
        and (op.kind == "matmul" or table in op.shapes or op.module == "model.embed_tokens.tokens")
    ]
    less = config.model_copy(update={"embedding_size": narrow})
    dropped = 1 - parameters(less)["total"] / parameters(config)["total"]
    saved = _seconds(proportional, timeline) * (1 - narrow / width) + timeline.total(kind="optimizer") * dropped
    output = timeline.total(kind="matmul", module="lm_head") / timeline.seconds
    return Advice(
        "embedding too wide",
        (f"model.embedding_size={narrow}",),
        f"products of the output take {output:.0%} of the step; an embedding of {narrow:,} instead of {width:,} is "
        "what a preset of this hidden size has",
        saved / timeline.seconds,
        same_result=False,
    )


def aligned_sizes(profile: Profile) -> Advice | None:
    """Sizes that tensor cores cannot tile; products with them, against the fastest of those without."""
    precision = profile.settings.compute.precision
    if profile.device.type != "cuda" or precision not in TENSOR_CORE_TYPES:
        return None
    odd = unaligned(profile.config, precision)
    if not odd:
        return None
    products = [op for op in profile.timeline.operations if op.kind == "matmul"]
    sizes = {size for size, _ in odd.values()}
    touched = [op for op in products if sizes & {size for shape in op.shapes for size in shape}]
    rates = [flops_and_bytes(op)[0] / op.seconds for op in products if op not in touched]
    reference = max(rates, default=profile.machine.flops)
    needed = sum(flops_and_bytes(op)[0] for op in touched) / reference / profile.timeline.steps
    return Advice(
        "sizes unaligned",
        tuple(f"model.{name}={padded}" for name, (_, padded) in odd.items() if name != "vocab_size"),
        ", ".join(f"{name} {size:,} would be {padded:,}" for name, (size, padded) in odd.items())
        + f" to fill the tiles of {precision} tensor cores; a vocabulary is that of the tokenizer",
        (_seconds(touched, profile.timeline) - needed) / profile.timeline.seconds,
        same_result=False,
    )


def more_sequences(settings: TrainSettings, ranks: int) -> tuple[int, bool]:
    """Sequences of a larger micro-batch, and whether a step has them already: up to MORE times as many if it has."""
    batch = settings.batch
    micro_batches = batch.sequences // (batch.micro_sequences * ranks)
    within = max(times for times in range(1, MORE + 1) if micro_batches % times == 0)
    return batch.micro_sequences * (within if within > 1 else MORE), within > 1


def larger_micro_batches(profile: Profile) -> Advice | None:
    """Products of few rows are slow, and the interpreter costs the same for each micro-batch, whatever its size."""
    batch, length, timeline = profile.settings.batch, profile.settings.data.sequence_length, profile.timeline
    micro, within = more_sequences(profile.settings, profile.ranks)
    slow, fast = profile.product_rates
    times = micro / batch.micro_sequences
    if profile.peak_bytes + (times - 1) * (_kept(profile) + _saved(profile)["rest"]) > USABLE * profile.memory:
        return None
    saved = timeline.total(kind="matmul") * max(0.0, 1 - slow / fast)
    idle = profile.idle / profile.seconds
    more = [] if within else [f"batch.sequences={round(times * batch.sequences)}"]
    return Advice(
        "micro-batch too small",
        (f"batch.micro_sequences={micro}", *more),
        f"products of {batch.micro_sequences * length:,} rows run at {slow / fast:.0%} of the speed of those of "
        f"{micro * length:,}, and the device is idle for {idle:.0%} of the step",
        saved / timeline.seconds + idle * (1 - 1 / times),
        same_result=within,
    )


def larger_batch(profile: Profile) -> Advice | None:
    """What is done once a step, whatever its size, has too few tokens to be shared among."""
    once = profile.timeline.kinds["optimizer"] / profile.timeline.seconds
    return Advice(
        "batch too small",
        (f"batch.sequences={MORE * profile.settings.batch.sequences}",),
        f"the optimizer takes {once:.0%} of a step of {profile.settings.tokens_per_step:,} tokens; more micro-batches "
        "share it (another learning rate may be due)",
        once * (1 - 1 / MORE),
        same_result=False,
    )


def fused_operations(profile: Profile) -> Advice | None:
    """Element-wise operations, each on its own, against the passes over memory that fused ones need."""
    config, settings = profile.config, profile.settings
    # Where tensor-parallel ranks divide a layer our kernels do not apply (`parallel.prepare`).
    fused = settings.compute.compile != "off" or (settings.compute.fused and settings.compute.tensor == 1)
    if profile.device.type != "cuda" or fused:
        return None
    numbers = config.num_layers * (HIDDEN_PASSES * config.hidden_size + WIDE_PASSES * config.intermediate_size)
    tokens = settings.tokens_per_step / profile.ranks
    needed = 3 * tokens * numbers * DTYPE_BYTES[_activation_type(profile)] / (MEMORY_SHARE * profile.machine.bandwidth)
    now = profile.timeline.total(kind="element-wise")
    return Advice(
        "operations not fused",
        ("compute.compile=on",),
        f"element-wise operations take {now / profile.timeline.seconds:.0%} of the step, each with its own pass over "
        "memory",
        (now - needed) / profile.timeline.seconds,
        same_result=True,
    )


def half_precision(profile: Profile) -> Advice | None:
    """Products in fp32 or tf32 on a GPU whose 16-bit ones are faster."""
    if profile.device.type != "cuda" or profile.settings.compute.precision not in ("fp32", "tf32"):
        return None
    saved = profile.timeline.total(kind="matmul") * (1 - profile.machine.flops / profile.half_rate)
    return Advice(
        "products not in 16 bits",
        ("compute.precision=bf16",),
        f"products in bf16 are {profile.half_rate / profile.machine.flops:.1f} times as fast here",
        saved / profile.timeline.seconds,
        same_result=False,
    )


def prefetch_gathers(profile: Profile) -> Advice | None:
    """Layers are gathered when they are needed; asked for one layer ahead, all gathers but the first can hide."""
    timeline, layers = profile.timeline, profile.config.num_layers
    if profile.ranks == 1 or profile.settings.compute.prefetch > 0:
        return None
    waited = max((seconds for name, seconds in timeline.waits.items() if "gather" in name.lower()), default=0.0)
    hidden = min(waited * (layers - 1) / (layers + 1), timeline.total(kind="matmul"))
    return Advice(
        "prefetch off",
        ("compute.prefetch=1",),
        f"{waited / timeline.seconds:.0%} of the step is spent waiting for weights to be gathered",
        hidden / timeline.seconds,
        same_result=True,
    )


def no_recomputation(profile: Profile) -> Advice | None:
    """Layers are computed again in the backward pass though memory would hold their insides."""
    recompute = profile.settings.compute.recompute
    if recompute == "none" or profile.peak_bytes + _recomputed(profile) > USABLE * profile.memory:
        return None
    again = profile.timeline.total(recomputed=True) / profile.timeline.seconds
    return Advice(
        "recomputation not needed",
        ("compute.recompute=none",),
        f"computing again takes {again:.0%} of the step, and keeping it all would take "
        f"{(profile.peak_bytes + _recomputed(profile)) / 1e9:,.1f} GB of {profile.memory / 1e9:,.1f}",
        again,
        same_result=True,
    )


def data_in_time(profile: Profile) -> Advice | None:
    """Batches are not there when they are asked for: reading is slower than computing."""
    waited = profile.timeline.phases["batch"] / profile.timeline.seconds
    return Advice(
        "data waiting",
        (),
        f"{waited:.0%} of the step is spent waiting for batches; put the token folders on a faster or nearer disk",
        waited,
        same_result=True,
    )


RULES: tuple[Callable[[Profile], Advice | None], ...] = (
    narrow_embedding,
    aligned_sizes,
    larger_micro_batches,
    larger_batch,
    fused_operations,
    half_precision,
    prefetch_gathers,
    no_recomputation,
    data_in_time,
)


def _seconds(operations: Iterable[Operation], timeline: Timeline) -> float:
    return sum(op.seconds for op in operations) / timeline.steps


def _activation_type(profile: Profile) -> str:
    return "bf16" if profile.settings.compute.precision in HALF else "fp32"


def _saved(profile: Profile) -> dict[str, int]:
    settings = profile.settings
    length = settings.data.sequence_length
    native = any(op.name == "yalm::rotary_attention" for op in profile.timeline.operations)
    return saved_bytes(
        profile.config,
        settings.batch.micro_sequences,
        length,
        _activation_type(profile),
        settings.compute.tensor,
        native,
    )


def _kept(profile: Profile) -> int:
    """Bytes that the layers keep for the backward pass as the run is."""
    saved = _saved(profile)
    kept = {
        "none": saved["layer"],
        "selective": saved["layer_input"] + saved["layer_results"],
        "full": saved["layer_input"],
    }
    return profile.config.num_layers * kept[profile.settings.compute.recompute]


def _recomputed(profile: Profile) -> int:
    """Bytes that the layers would keep beyond that without recomputation."""
    return profile.config.num_layers * _saved(profile)["layer"] - _kept(profile)
