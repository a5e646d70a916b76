"""Attention in training on a CPU: from queries, keys and values as the projection gives them to the context, in C++.

torch's kernel for CPUs reaches a sixth of the speed of its matrix products, and turning queries and keys, splitting and
transposing move more memory around it than it reads. Ours (`attention.cpp`) does all of that in one pass each way,
keeps the projection's output and nothing turned, and takes the borders of documents as numbers, not as a mask.
`native_attention` puts it under the layers of a network from outside; the definition stays `network.SelfAttention`.

The price: fp32 on x86 CPUs only, a compiler at first use (`native`), and other attentions than the two of
`network` take the plain way.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from yalm.model.network import Attention, DocumentAttention, Rotary, SelfAttention, causal_attention
from yalm.model.ops.native import library


def native_attention(model: nn.Module) -> None:
    """Let C++ compute the attention of a model that is or will be fp32 on a CPU; in place, if it can be compiled."""
    if library("attention") is not None:
        for module in model.modules():
            if isinstance(module, SelfAttention):
                module.forward = partial(_forward, module, module.forward)  # type: ignore[method-assign]


def _forward(module: SelfAttention, plain: Any, x: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
    """See `network.SelfAttention`: (B, S, H) to (B, S, H)."""
    if attention is causal_attention:
        starts = None
    elif isinstance(attention, DocumentAttention):
        starts = attention.starts
    else:
        output: Tensor = plain(x, rotary, attention)
        return output
    batch, seq, _ = x.shape
    qkv = module.qkv_proj(x).view(batch, seq, -1, 3, module.head_size)
    context, _ = rotary_attention(qkv, rotary.cos, rotary.sin, starts)
    output = module.o_proj(context.flatten(2))
    return output


@torch.library.custom_op("yalm::rotary_attention", mutates_args=(), device_types="cpu")
def rotary_attention(qkv: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """q | k | v (B, S, A, 3, D) in fp32 to the context (B, S, A, D) and log-sums (B, A, S) to base 2.

    softmax(q·kᵀ/√D)·v of turned queries and keys, where position i sees those from starts[i] (or 0) to itself. `cos`
    and `sin` are those of a `network.Rotary`; `starts` (B, S) int64 never falls within a sequence. Differentiable in
    qkv.
    """
    batch, seq, heads, _, size = qkv.shape
    context, log_sums = qkv.new_empty(batch, seq, heads, size), qkv.new_empty(batch, heads, seq)
    _call("forward", qkv.shape, cos, sin, starts, [qkv], [context, log_sums])
    return context, log_sums


@torch.library.custom_op("yalm::rotary_attention_backward", mutates_args=(), device_types="cpu")
def rotary_attention_backward(
    qkv: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, context: Tensor, log_sums: Tensor, grad: Tensor
) -> Tensor:
    """The gradient of qkv, given that of the context (B, S, A, D)."""
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    _call("backward", qkv.shape, cos, sin, starts, [qkv, context, log_sums, grad], [grad_qkv])
    return grad_qkv


def _call(
    way: str,
    shape: torch.Size,
    cos: Tensor,
    sin: Tensor,
    starts: Tensor | None,
    inputs: list[Tensor],
    outputs: list[Tensor],
) -> None:
    batch, seq, heads, _, size = shape
    functions, threads = library("attention"), torch.get_num_threads()
    assert functions is not None, "native_attention asked for it"
    room = torch.empty(threads, functions.attention_room(seq, size, way == "backward"))
    angle_step = seq * size // 2 if cos.dim() == 5 else 0
    qkv, *others = [tensor.contiguous() for tensor in inputs]
    angles = [cos.contiguous(), sin.contiguous()]
    borders = starts.contiguous() if starts is not None else None
    pointers = [tensor.data_ptr() if tensor is not None else None for tensor in (qkv, *angles, borders, *others)]
    pointers += [tensor.data_ptr() for tensor in (*outputs, room)]
    getattr(functions, f"attention_{way}")(*pointers, batch, seq, heads, size, angle_step, threads)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return rotary_attention_backward(*ctx.saved_tensors, grad), None, None, None


rotary_attention.register_autograd(_backward, setup_context=_save)
