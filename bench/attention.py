"""Attention of training on a CPU: ours in C++ beside PyTorch's, forward and backward, in fp32.

    python bench/attention.py [--threads 1] [--quick] [--json FILE]

Both begin with queries, keys and values as the projection gives them and end with the context as the next one takes it
(`network.SelfAttention` without its projections); the way back ends with the projection's gradient. They take turns,
and each has the best of some calls. FLOPs are those of half the square, or of each document's, and 2.5 times as many
backward, where both compute the scores again.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measure import Spent, matmul_peaks, report, spent
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import DocumentAttention, Rotary, causal_attention
from yalm.model.ops.attention import rotary_attention
from yalm.model.ops.native import library
from yalm.planning.time import ATTENTION_BACKWARD
from yalm.training.parallel import join_world
from yalm.training.settings import ComputeSettings

#         batch, length, heads, head size, length of a document
SHAPES = [
    (8, 128, 8, 64, None),
    (2, 512, 12, 64, None),
    (2, 512, 12, 64, 100),
    (1, 1_024, 16, 128, None),
    (1, 2_048, 12, 64, None),
]
ROUNDS = 15


def plain(qkv: Tensor, rotary: Rotary, documents: DocumentAttention | None) -> Tensor:
    """As `network.SelfAttention` between its projections."""
    attention = documents or causal_attention
    query_key, value = qkv.split((2, 1), dim=-2)
    query, key = rotary(query_key).unbind(-2)
    context = attention(query.transpose(1, 2), key.transpose(1, 2), value.squeeze(-2).transpose(1, 2), 0)
    return context.transpose(1, 2).flatten(2)


def ours(qkv: Tensor, rotary: Rotary, documents: DocumentAttention | None) -> Tensor:
    """The same by `yalm.model.ops.attention`."""
    return rotary_attention(qkv, rotary.cos, rotary.sin, documents.starts if documents else None)[0].flatten(2)


def measure(batch: int, length: int, heads: int, size: int, document: int | None, rounds: int) -> list[dict[str, Any]]:
    """Two rows, PyTorch's and ours."""
    width = heads * size
    config = ModelConfig(
        vocab_size=1, embedding_size=1, hidden_size=width, num_layers=1, num_heads=heads, intermediate_size=1
    )
    rotary = Rotary(torch.arange(length), config, torch.float32)
    qkv = torch.randn(batch, length, heads, 3, size, requires_grad=True)
    upstream = torch.randn(batch, length, width)
    documents = DocumentAttention((torch.arange(length) // document).repeat(batch, 1)) if document else None
    runs: list[int] = [min(document or length, length - start) for start in range(0, length, document or length)]
    flops = 4.0 * batch * width * sum(run * (run + 1) / 2 for run in runs)
    sides: dict[str, Callable[..., Tensor]] = {"PyTorch": plain, "ours": ours}
    spans: dict[str, list[tuple[Spent, Spent]]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, attend in sides.items():
            kept: list[Tensor] = []
            forward = spent(lambda: kept.append(attend(qkv, rotary, documents)))  # noqa: B023  called at once
            backward = spent(partial(torch.autograd.grad, kept[0], qkv, upstream))
            if turn:
                spans[name].append((forward, backward))
    rows = []
    for name, taken in spans.items():
        forward, backward = (min(span[way].cpu for span in taken) for way in (0, 1))
        rows.append(
            {
                "batch x length, heads x size": f"{batch} x {length}, {heads} x {size}"
                + (f", documents of {document}" if document else ""),
                "side": name,
                "forward, CPU-ms": 1e3 * forward,
                "backward, CPU-ms": 1e3 * backward,
                "GFLOP/CPU-s": (1 + ATTENTION_BACKWARD) * flops / (forward + backward) / 1e9,
            }
        )
    return rows


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one small shape, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if library("attention") is None:
        raise YalmError("our attention cannot be compiled here; see the warning above")
    rows: list[dict[str, Any]] = []
    shapes, rounds = ([(2, 64, 2, 32, 20)], 2) if options.quick else (SHAPES, ROUNDS)
    # In a world freed memory is kept, as in training.
    with join_world(ComputeSettings(device="cpu", threads=options.threads)):
        for shape in shapes:
            found = measure(*shape, rounds)
            peak = matmul_peaks()["oneDNN"].cpu / 1e9
            rows += [row | {"of oneDNN's peak": f"{row['GFLOP/CPU-s'] / peak:.0%}"} for row in found]
    report("Attention, forward and backward, fp32", rows, options.json, threads=options.threads, rounds=rounds)


if __name__ == "__main__":
    main()
