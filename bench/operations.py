"""Each operation of ours beside PyTorch's plain one: how far both are from fp32, and the time of both.

An operation that a build does not have is left out. The error is that of the worst of outputs and gradients,
‖x - exact‖ / ‖exact‖, where exact is the plain operation in fp32 on the same numbers. What ours may have is twice
the plain one's error in the same type, and what fp32 itself has.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import device_seconds, median
from yalm.model.config import ModelConfig
from yalm.model.network import DocumentAttention, Rotary, causal_attention
from yalm.model.ops.cross_entropy import linear_cross_entropy

EPS = 1e-5
# Sums of some thousand numbers in fp32.
FP32_ERROR = 1e-4
Operation = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """An operation on random tensors of these `shapes`; `needs_gpu` where ours has no other form."""

    name: str
    shapes: Sequence[tuple[int, ...]]
    ours: Operation
    plain: Operation
    needs_gpu: bool = False


class Outcome(NamedTuple):
    """Relative errors, and seconds of a forward and a backward pass, of ours and of the plain operation."""

    error: float
    plain_error: float
    seconds: float
    plain_seconds: float

    @property
    def correct(self) -> bool:
        """Whether our error is one that the type explains."""
        return self.error <= 2 * self.plain_error + FP32_ERROR


def cases(config: ModelConfig, sequences: int, length: int, device: torch.device) -> list[Case]:
    """The operations of a network of these sizes on as many sequences."""
    generator = torch.Generator().manual_seed(1)
    tokens, vocab, narrow = sequences * length, config.vocab_size, config.embedding_size
    targets = torch.randint(vocab, (tokens,), generator=generator).to(device)
    attended = [(sequences, config.num_heads, length, config.head_size)] * 3
    borders = torch.randint(2, (sequences, length), generator=generator).to(device).cumsum(1) // 64
    documents, lower = DocumentAttention(borders), torch.ones(length, length, device=device).tril()
    found = [
        Case(
            "linear + cross entropy",
            [(tokens, narrow), (vocab, narrow), (vocab,)],
            lambda x, weight, bias: linear_cross_entropy(x, weight, bias, targets)[0],
            lambda x, weight, bias: F.cross_entropy(F.linear(x, weight, bias).float(), targets, reduction="sum"),
        ),
        Case(
            "attention, causal",
            attended,
            lambda query, key, value: causal_attention(query, key, value, 0),
            lambda query, key, value: _attention(query, key, value, lower),
        ),
        Case(
            "attention within documents",
            attended,
            lambda query, key, value: documents(query, key, value, 0),
            lambda query, key, value: _attention(query, key, value, documents.mask),
        ),
    ]
    return found + _fused(config, sequences, length, device)


def _fused(config: ModelConfig, sequences: int, length: int, device: torch.device) -> list[Case]:
    """The Triton kernels that this build has."""
    rows, wide = (sequences * length, config.hidden_size), (sequences * length, config.intermediate_size)
    found = []
    if has("geglu"):
        from yalm.model.ops.geglu import geglu

        found.append(Case("GeGLU", [wide, wide, wide[1:], wide[1:]], geglu, _geglu, needs_gpu=True))
    if has("layer_norm"):
        from yalm.model.ops.layer_norm import add_layer_norm, layer_norm

        def norm(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
            return layer_norm(x, weight, shift, EPS)

        def add_norm(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            return add_layer_norm(*inputs, EPS)

        width = rows[1:]
        found.append(Case("LayerNorm", [rows, width, width], norm, _norm, needs_gpu=True))
        found.append(Case("residual + LayerNorm", [rows, rows, *[width] * 3], add_norm, _add_norm, needs_gpu=True))
    if has("rotary"):
        from yalm.model.ops.rotary import split_rotary

        positions = torch.arange(length, device=device)

        def split(qkv: Tensor) -> tuple[Tensor, ...]:
            rotary = Rotary(positions, config, qkv.dtype)
            return split_rotary(qkv, rotary.cos, rotary.sin)

        def plain_split(qkv: Tensor) -> tuple[Tensor, ...]:
            query, key = Rotary(positions, config, qkv.dtype)(qkv[..., :2, :]).unbind(-2)
            return query, key, qkv[..., 2, :]

        found.append(
            Case(
                "rotary",
                [(sequences, length, config.num_heads, 3, config.head_size)],
                split,
                plain_split,
                needs_gpu=True,
            )
        )
    return found


def has(operation: str) -> bool:
    """Whether this build has that fused operation, and Triton for it."""
    return find_spec("triton") is not None and find_spec(f"yalm.model.ops.{operation}") is not None


def _geglu(gate: Tensor, up: Tensor, gate_bias: Tensor, up_bias: Tensor) -> Tensor:
    return F.gelu(gate + gate_bias) * (up + up_bias)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """softmax(q·kᵀ/√D)·v, with its square in memory."""
    scores = (query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
    weights = scores.masked_fill(mask == 0, float("-inf")).softmax(-1)
    return weights.to(value.dtype) @ value


def _norm(x: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    return F.layer_norm(x.float(), (x.shape[-1],), weight.float(), shift.float(), EPS).to(x.dtype)


def _add_norm(x: Tensor, branch: Tensor, bias: Tensor, weight: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    total = x + branch + bias
    return total, _norm(total, weight, shift)


def compare(case: Case, dtype: torch.dtype, device: torch.device, repetitions: int) -> Outcome:
    """Run a case in `dtype`, and its plain operation in that and in fp32."""
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(shape, generator=generator).to(device, dtype) for shape in case.shapes]
    exact = _results(case.plain, drawn, torch.float32)
    errors = [_error(_results(operation, drawn, dtype), exact) for operation in (case.ours, case.plain)]
    del exact
    inputs = [tensor.clone().requires_grad_() for tensor in drawn]
    seconds = [
        median(device_seconds(lambda operation=operation: _pass(operation, inputs), device, repetitions))  # type: ignore[misc]
        for operation in (case.ours, case.plain)
    ]
    return Outcome(*errors, *seconds)


def _pass(operation: Operation, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs, and the inputs' gradients for upstream gradients that differ from place to place."""
    made = operation(*inputs)
    outputs = made if isinstance(made, tuple) else (made,)
    upstream = [
        torch.linspace(-1, 2, output.numel(), device=output.device).view_as(output).to(output.dtype)
        for output in outputs
    ]
    return [*outputs, *torch.autograd.grad(outputs, inputs, upstream)]


def _results(operation: Operation, drawn: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    inputs = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in drawn]
    return [tensor.detach().float() for tensor in _pass(operation, inputs)]


def _error(found: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
