"""What a network costs, on paper: parameters, FLOPs and bytes. The one place for these numbers.

FLOPs are those of matrix products, a multiply-add counted as two; norms, activations and softmax are left out, as is
usual (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Chowdhery et al. 2022, arXiv 2204.02311, appendix B), but
causal attention is counted at the half of its square that is needed.
"""

from typing import Any

from yalm.model.network import ModelConfig

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int4": 0.5}
# Bytes of a matrix row's multiple that tensor cores run fastest on, and the bytes of a number that they read.
TENSOR_CORE_BYTES = 128
TENSOR_CORE_TYPES = {"tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


def parameters(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, with their `total`; the tied table is counted once, under `embedding`."""
    hidden, intermediate = config.hidden_size, config.intermediate_size
    norm = 2 * hidden
    attention = config.num_layers * (4 * hidden * hidden + 4 * hidden)
    feed_forward = config.num_layers * (3 * hidden * intermediate + 2 * intermediate + hidden)
    counts = {
        "embedding": config.vocab_size * config.embedding_size + 2 * config.embedding_size,
        "attention": attention,
        "feed_forward": feed_forward,
        "layer_norms": (2 * config.num_layers - 1) * norm,
        "output": norm + (hidden + 1) * config.embedding_size + 2 * config.embedding_size + config.vocab_size,
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


def alignment(dtype: str) -> int:
    """Numbers of that type (`TENSOR_CORE_TYPES`) whose multiples tensor cores run fastest on: 64 in bf16, 128 in fp8.

    A matrix is cut into tiles, and a tile is read in rows of 128 bytes. A size that is no multiple fills its last tile
    in part and shifts the rows after the first off their 128 bytes; below a multiple of 16 bytes the loads themselves
    become narrow. From A100 on 128 bytes are the most efficient (NVIDIA, "Matrix Multiplication Background User's
    Guide", section "Requirements to use tensor cores").
    """
    return TENSOR_CORE_BYTES // TENSOR_CORE_TYPES[dtype]


def unaligned(config: ModelConfig, dtype: str) -> dict[str, tuple[int, int]]:
    """The sizes of matrices that are no multiple of `alignment`, each with the next size that is one.

    A wider feed-forward can be had for a trained model too (`intermediate_padding`); a vocabulary is padded before.
    """
    step = alignment(dtype)
    names = ("vocab_size", "embedding_size", "hidden_size", "intermediate_size")
    sizes = {name: getattr(config, name) for name in names}
    return {name: (size, size + -size % step) for name, size in sizes.items() if size % step}


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
        "unaligned_bf16": unaligned(config, "bf16"),
        "cache_bytes_per_token": {dtype: cache_bytes_per_token(config, dtype) for dtype in DTYPE_BYTES},
    }
