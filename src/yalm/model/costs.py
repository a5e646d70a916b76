"""What a network costs, on paper: parameters, FLOPs and bytes. The one place for these numbers.

FLOPs are those of matrix products, a multiply-add counted as two; norms, activations and softmax are left out, as is
usual (Kaplan et al. 2020, arXiv 2001.08361, section 2.1; Chowdhery et al. 2022, arXiv 2204.02311, appendix B), but
causal attention is counted at the half of its square that is needed.
"""

from typing import Any, Literal

from yalm.model.config import ModelConfig

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "int4": 0.5}
# Bytes of a matrix row's multiple that tensor cores run fastest on, and the bytes of a number that they read.
TENSOR_CORE_BYTES = 128
TENSOR_CORE_TYPES = {"tf32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


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


def saved_bytes(
    config: ModelConfig,
    sequences: int,
    sequence_length: int,
    dtype: str = "fp32",
    tensor: int = 1,
    native_attention: bool = False,
) -> dict[str, int]:
    """Bytes that the forward pass of one micro-batch leaves for the backward pass on one of `tensor` ranks, by part.

    `layer` is the insides of one layer, its input among them; `layer_input` that alone, all that is kept where the
    layer is recomputed, and `layer_results` what selective recomputation keeps besides; `rest` is embedding, output
    and loss, of which `table` stays to the end of the backward pass: the gradient of the loss's table and bias, made in
    the forward pass. With T tokens, widths H, I, E, a vocabulary V and A heads, in numbers: a layer keeps 10·T·H
    (input; normed; q, k, v once as the product gives them and q and k once turned; the context; the sum; normed again)
    + 4·T·I (gate, its GELU, up, their product), and in fp32 T·(A + 4) for attention's log-sums and the statistics of
    two norms. Tensor ranks divide all of it but for 2·T·H, the normed inputs, which are gathered, or of the results the
    products that are yet to be summed; and of the rest the output's 2·T·E. A mask of documents is not counted. The
    attention of CPUs (`ops/attention.py`) keeps nothing turned, 2·T·H less.
    """
    tokens, hidden, intermediate = sequences * sequence_length, config.hidden_size, config.intermediate_size
    narrow, width = config.embedding_size, DTYPE_BYTES[dtype]
    log_sums = 4 * tokens * config.num_heads
    table = width * config.vocab_size * (narrow + 1)
    divided = {
        "layer": width * tokens * ((6 if native_attention else 8) * hidden + 4 * intermediate) + log_sums + 16 * tokens,
        "layer_input": width * tokens * hidden,
        "layer_results": width * tokens * (4 * hidden + 2 * intermediate) + log_sums,
        "rest": width * tokens * (2 * hidden + 2 * narrow) + table,
        "table": table,
    }
    whole = {
        "layer": width * tokens * 2 * hidden,
        "layer_input": 0,
        "layer_results": width * tokens * 2 * hidden,
        "rest": width * tokens * 2 * narrow + 24 * tokens,
        "table": 0,
    }
    return {part: int(divided[part] / tensor + whole[part]) for part in divided}
