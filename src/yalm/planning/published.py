"""Runs whose speed was published, against the formulas.

Models of other shapes are stated as the network here of the same depth, width, vocabulary and weights of a layer: the
feed-forward width takes up what they do otherwise. Reported TFLOP/s are turned into tokens a second by the source's own
count of FLOPs, so that what is compared is time and no convention.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from yalm.model.config import ModelConfig
from yalm.model.presets import PRESETS
from yalm.planning.hardware import gpu as gpu_named
from yalm.planning.memory import Layout
from yalm.planning.time import step

# The share of peak on Ampere, on Hopper, the interference of hidden communication, the width of half speed; in order.
FITTED = ("llm-foundry 7B, 8 A100", "llm-foundry 7B, 8 H100", "llm-foundry 13B, 64 H100", "Megatron-LM 145.6B")


@dataclass(frozen=True)
class Run:
    """One published run: the model, the layout, and tokens a second that each GPU was reported to do."""

    name: str
    config: ModelConfig
    gpu: str
    layout: Layout
    tokens_per_second: float
    """Per GPU."""
    source: str
    kind: Literal["step", "calendar"] = "step"
    """`calendar` counts restarts, ramps and short sequences as well, so the prediction is a lower bound of its time."""


def like(hidden: int, layers: int, heads: int, vocab: int, layer_weights: float = 12.0) -> ModelConfig:
    """The network of that depth and width whose layer has `layer_weights` x hidden² weights (12: GPT)."""
    return ModelConfig(
        vocab_size=vocab,
        embedding_size=hidden,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=round((layer_weights - 4) * hidden / 3),
    )


def megatron_flops(hidden: int, layers: int, vocab: int, sequence: int, passes: int) -> float:
    """FLOPs of a token as Narayanan et al. 2021 (arXiv 2104.04473, section 5.1) count: the whole square of attention.

    `passes` is 4 with recomputation, 3 without; the output is never recomputed.
    """
    return 24 * passes * layers * hidden**2 * (1 + sequence / (6 * hidden)) + 6 * hidden * vocab


def _megatron(
    name: str, hidden: int, layers: int, heads: int, tensor: int, pipeline: int, gpus: int, batch: int, teraflops: float
) -> Run:
    """A row of Narayanan et al. 2021, table 1: sequences of 2,048, full recomputation, attention with its square."""
    data = gpus // tensor // pipeline
    layout = Layout(
        data=data,
        tensor=tensor,
        pipeline=pipeline,
        zero=0,
        sequence=2048,
        accumulation=batch // data,
        recompute="full",
        precision="fp16",
        flash=False,
    )
    speed = teraflops * 1e12 / megatron_flops(hidden, layers, 51200, 2048, passes=4)
    config = like(hidden, layers, heads, 51200)
    return Run(f"Megatron-LM {name}", config, "a100-80gb", layout, speed, "arXiv 2104.04473, table 1")


def _selective(data: int, pipeline: int, interleave: int, micro: int, accumulation: int) -> Layout:
    """Korthikanti et al. 2022: tensors over 8, selective recomputation, sequences of 2,048."""
    return Layout(
        data=data,
        tensor=8,
        pipeline=pipeline,
        interleave=interleave,
        zero=0,
        sequence=2048,
        micro_batch=micro,
        accumulation=accumulation,
        recompute="selective",
        precision="fp16",
        flash=False,
    )


def _korthikanti(
    name: str, hidden: int, layers: int, heads: int, pipeline: int, interleave: int, batch: int, seconds: float
) -> Run:
    """A row of Korthikanti et al. 2022, table 5, without data parallelism."""
    micro = 4 if pipeline == 1 else 1
    layout = _selective(1, pipeline, interleave, micro, batch // micro)
    config = like(hidden, layers, heads, 51200)
    speed = batch * 2048 / seconds / (8 * pipeline)
    return Run(f"Megatron-LM {name}, selective", config, "a100-80gb", layout, speed, "arXiv 2205.05198, table 5")


# Depth, width and heads of llm-foundry's models (scripts/train/yamls/pretrain); the vocabulary is 50,368.
_MPT = {
    "125M": (768, 12, 12),
    "1B": (2048, 24, 16),
    "3B": (2560, 32, 20),
    "7B": (4096, 32, 32),
    "13B": (5120, 40, 40),
    "30B": (7168, 48, 56),
    "70B": (8192, 80, 64),
}


def _foundry(
    size: str, gpu: str, gpus: int, micro: int, accumulation: int, recompute: bool, speed: float, sequence: int = 2048
) -> Run:
    """A row of llm-foundry's tables: ZeRO 3, flash attention, bf16."""
    layout = Layout(
        data=gpus,
        sequence=sequence,
        micro_batch=micro,
        accumulation=accumulation,
        recompute="full" if recompute else "none",
    )
    name = f"llm-foundry {size}, {gpus} {gpu.split('-')[0].upper()}" + (f", {sequence}" if sequence != 2048 else "")
    source = "llm-foundry, scripts/train/benchmarking/README.md"
    return Run(name, like(*_MPT[size], 50368), gpu, layout, speed, source)


def _old(gpus: int, tensor: int, pipeline: int, zero: int, micro: int, accumulation: int, precision: str) -> Layout:
    """Runs of 2021 and 2022: full recomputation, attention with its square, sequences of 2,048."""
    values = {
        "data": gpus // tensor // pipeline,
        "tensor": tensor,
        "pipeline": pipeline,
        "zero": zero,
        "sequence": 2048,
        "micro_batch": micro,
        "accumulation": accumulation,
        "recompute": "full",
        "precision": precision,
        "flash": False,
    }
    return Layout.parse(values, "published run")


_LLAMA_8B = like(4096, 32, 32, 128256, layer_weights=13)
_TITAN = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md"

RUNS = (
    _megatron("1.7B", 2304, 24, 24, 1, 1, 32, 512, 137),
    _megatron("3.6B", 3072, 30, 32, 2, 1, 64, 512, 138),
    _megatron("7.5B", 4096, 36, 32, 4, 1, 128, 512, 142),
    _megatron("18.4B", 6144, 40, 48, 8, 1, 256, 1024, 135),
    _megatron("39.1B", 8192, 48, 64, 8, 2, 512, 1536, 138),
    _megatron("76.1B", 10240, 60, 80, 8, 4, 1024, 1792, 140),
    _megatron("145.6B", 12288, 80, 96, 8, 8, 1536, 2304, 148),
    _megatron("310.1B", 16384, 96, 128, 8, 16, 1920, 2160, 155),
    _megatron("529.6B", 20480, 105, 128, 8, 35, 2520, 2520, 163),
    _megatron("1008B", 25600, 128, 160, 8, 64, 3072, 3072, 163),
    _korthikanti("22B", 6144, 48, 64, 1, 1, 4, 1.10),
    _korthikanti("175B", 12288, 96, 96, 8, 3, 64, 13.75),
    _korthikanti("530B", 20480, 105, 128, 35, 3, 280, 37.83),
    _korthikanti("1008B", 25600, 128, 160, 64, 1, 512, 71.49),
    _foundry("125M", "a100-80gb", 8, 40, 2, False, 142830),
    _foundry("1B", "a100-80gb", 8, 14, 4, False, 20513),
    _foundry("3B", "a100-80gb", 8, 10, 2, False, 10811),
    _foundry("7B", "a100-80gb", 8, 6, 2, False, 4641),
    _foundry("7B", "a100-80gb", 8, 16, 2, True, 3684, 4096),
    _foundry("7B", "a100-40gb", 128, 18, 1, True, 3623),
    _foundry("13B", "a100-80gb", 8, 2, 3, False, 2262),
    _foundry("30B", "a100-80gb", 8, 3, 21, True, 916),
    _foundry("70B", "a100-80gb", 64, 8, 4, True, 410),
    _foundry("1B", "h100-80gb", 8, 14, 1, False, 45455),
    _foundry("3B", "h100-80gb", 64, 6, 3, False, 22525),
    _foundry("7B", "h100-80gb", 8, 6, 1, False, 10643),
    _foundry("13B", "h100-80gb", 64, 2, 1, False, 4800),
    _foundry("30B", "h100-80gb", 32, 14, 3, True, 2308),
    _foundry("70B", "h100-80gb", 64, 8, 4, True, 1039),
    Run(
        "Megatron-LM 530B, 2240 GPUs",
        like(20480, 105, 128, 51200),
        "a100-80gb",
        _selective(8, 35, 3, 1, 280),
        0.542 * 312e12 / megatron_flops(20480, 105, 51200, 2048, passes=3),
        "arXiv 2205.05198, abstract",
    ),
    Run(
        "torchtitan 8B, 8 H100",
        _LLAMA_8B,
        "h100-80gb",
        Layout(data=8, sequence=8192, recompute="selective"),
        6667,
        _TITAN,
    ),
    Run(
        "torchtitan 8B, 128 H100",
        _LLAMA_8B,
        "h100-80gb",
        Layout(data=128, sequence=8192, recompute="selective"),
        6514,
        _TITAN,
    ),
    Run(
        "lingua 7B, 8 H100",
        like(4096, 32, 32, 32000),
        "h100-80gb",
        Layout(data=8, sequence=4096, micro_batch=2),
        9080,
        "lingua, issue 56",
    ),
    Run(
        "OPT-175B",
        like(12288, 96, 96, 50272),
        "a100-80gb",
        _old(992, 8, 1, 3, 8, 1, "fp16"),
        147e12 / megatron_flops(12288, 96, 50272, 2048, passes=4),
        "arXiv 2205.01068, section 2.4",
    ),
    Run(
        "BLOOM-176B",
        like(14336, 70, 112, 250880),
        "a100-80gb",
        _old(384, 4, 12, 1, 2, 128, "bf16"),
        150e12 / megatron_flops(14336, 70, 250880, 2048, passes=4),
        "bigscience, tr11-176B-ml/chronicles-prequel.md",
    ),
    Run(
        "GLM-130B",
        like(12288, 70, 96, 150528),
        "a100-40gb",
        _old(768, 4, 8, 1, 1, 176, "fp16"),
        135e12 / megatron_flops(12288, 70, 150528, 2048, passes=4),
        "GLM-130B, logs/main-log-en.md",
    ),
    Run(
        "GPT-NeoX-20B",
        like(6144, 44, 64, 50432),
        "a100-40gb",
        _old(96, 2, 4, 1, 4, 32, "fp16"),
        150e3 * 1536 * 2048 / (1830 * 3600 * 96),
        "gpt-neox, configs/20B.yml; arXiv 2204.06745: 1,830 hours",
        "calendar",
    ),
    Run(
        "YaLM 100B",
        PRESETS["yalm-100b"],
        "a100-80gb",
        # Batch, recomputation and ZeRO stage are not published but for "ZeRO": assumed.
        Layout(data=800, sequence=1024, micro_batch=2, recompute="full", flash=False),
        300e9 / (65 * 86400 * 800),
        "YaLM-100B, README.md: 300e9 tokens, 65 days, 800 GPUs",
        "calendar",
    ),
)


def predicted(run: Run) -> float:
    """Tokens a second for each GPU, by the formulas."""
    return run.layout.batch_tokens / step(run.config, run.layout, gpu_named(run.gpu)).seconds / run.layout.ranks


def error(run: Run) -> float:
    """Of the predicted time of a step, relative to the reported: 0.1 is predicted a tenth too long."""
    return run.tokens_per_second / predicted(run) - 1


def table() -> dict[str, Any]:
    """All runs with both speeds and the error in time; `use` is fit, test, or calendar (shown, not judged).

    `median_error` and `largest_error` are over the test, `median_error_elsewhere` over those of its runs whose project
    has no run among the fitted.
    """
    runs = [
        {
            "name": run.name,
            "gpus": run.layout.ranks,
            "gpu": run.gpu,
            "reported": run.tokens_per_second,
            "predicted": predicted(run),
            "error": error(run),
            "use": "fit" if run.name in FITTED else "test" if run.kind == "step" else "calendar",
            "source": run.source,
        }
        for run in RUNS
    ]
    known = {name.split()[0] for name in FITTED}
    tested = {run.name: abs(error(run)) for run in RUNS if run.name not in FITTED and run.kind == "step"}
    elsewhere = [size for name, size in tested.items() if name.split()[0] not in known]
    return {
        "runs": runs,
        "tested": len(tested),
        "median_error": median(tested.values()),
        "largest_error": max(tested.values()),
        "elsewhere": len(elsewhere),
        "median_error_elsewhere": median(elsewhere),
    }
