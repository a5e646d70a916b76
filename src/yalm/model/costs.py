"""What a network costs, on paper: parameters, FLOPs and bytes. The one place for these numbers.

FLOPs are those of matrix products, a multiply-add counted as two; norms, activations and softmax are left out, as is
usual (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Chowdhery et al. 2022, arXiv 2204.02311, appendix B), but
causal attention is counted at the half of its square that is needed.
"""

from typing import Any, Literal

from yalm.model.network import ModelConfig

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int4": 0.5}


Split = Literal["rows", "columns", "none"]
Tensors = list[tuple[int, int, int, Split]]
"""Tensors of one shape each: how many, rows, columns (1 for vectors), and what tensor parallelism cuts."""


def shapes(config: ModelConfig) -> dict[str, Tensors]:
    """All tensors by part, as `model/network.py` has them; the tied table stands once, under `embedding`.

    Cut as Megatron does (Shoeybi et al. 2019, arXiv 1909.08053): heads, feed-forward width and vocabulary.
    """
    hidden, wide, narrow, layers = (
        config.hidden_size,
        config.intermediate_size,
        config.embedding_size,
        config.num_layers,
    )
    return {
        "embedding": [(1, config.vocab_size, narrow, "rows"), (2, narrow, 1, "none")],
        "attention": [
            (layers, 3 * hidden, hidden, "rows"),
            (layers, 3 * hidden, 1, "rows"),
            (layers, hidden, hidden, "columns"),
            (layers, hidden, 1, "none"),
        ],
        "feed_forward": [
            (2 * layers, wide, hidden, "rows"),
            (2 * layers, wide, 1, "rows"),
            (layers, hidden, wide, "columns"),
            (layers, hidden, 1, "none"),
        ],
        "layer_norms": [(2 * (2 * layers - 1), hidden, 1, "none")],
        "output": [
            (2, hidden, 1, "none"),
            (1, narrow, hidden, "none"),
            (3, narrow, 1, "none"),
            (1, config.vocab_size, 1, "rows"),
        ],
    }


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, with their `total`; the tied table is counted once, under `embedding`."""
    counts = {
        part: sum(count * rows * columns for count, rows, columns, _ in tensors)
        for part, tensors in shapes(config).items()
    }
    return counts | {"total": sum(counts.values())}


def matmul_parameters(config: ModelConfig) -> dict[str, int]:
    """Weights that take part in a matrix product, by part: the embedding's look-up does not, its use as output does."""
    hidden = config.hidden_size
    return {
        "attention": config.num_layers * 4 * hidden * hidden,
        "feed_forward": config.num_layers * 3 * hidden * config.intermediate_size,
        "output": hidden * config.embedding_size + config.embedding_size * config.vocab_size,
    }


def forward_flops(config: ModelConfig, context: float) -> dict[str, float]:
    """FLOPs of one token's forward pass by part, with their `total`.

    2 per matmul weight; the attention core (q·k and the sum over v) takes 4·H per layer and position seen, of which
    a token sees `context` (a sequence of S averages (S+1)/2).
    """
    flops = {part: 2.0 * count for part, count in matmul_parameters(config).items()}
    flops["attention_core"] = 4.0 * config.hidden_size * config.num_layers * context
    return flops | {"total": sum(flops.values())}


def training_flops(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of one trained token: the forward pass and twice as much backward (6·N + 6·L·H·S, nearly)."""
    return 3 * forward_flops(config, (sequence_length + 1) / 2)["total"]


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """Bytes of all weights at that type (`DTYPE_BYTES`); scales of quantized types are not counted."""
    return int(parameters(config)["total"] * DTYPE_BYTES[dtype])


def cache_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Bytes of keys and values that one token leaves in the cache."""
    return int(2 * config.num_layers * config.hidden_size * DTYPE_BYTES[dtype])


def describe(config: ModelConfig, sequence_length: int | None = None) -> dict[str, Any]:
    """All of the above as one nested dict of plain numbers; `sequence_length` is all positions by default."""
    length = sequence_length or config.max_positions
    return {
        "config": config.model_dump(),
        "parameters": parameters(config),
        "sequence_length": length,
        "flops_per_token": {
            "forward": forward_flops(config, (length + 1) / 2),
            "training": training_flops(config, length),
        },
        "weight_bytes": {dtype: weight_bytes(config, dtype) for dtype in DTYPE_BYTES},
        "cache_bytes_per_token": {dtype: cache_bytes_per_token(config, dtype) for dtype in DTYPE_BYTES},
    }
