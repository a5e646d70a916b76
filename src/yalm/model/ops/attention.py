"""Attention on a CPU: from queries, keys and values as the projection gives them to the context, in C++.

torch's kernel for CPUs reaches a sixth of the speed of its matrix products, and turning queries and keys, splitting and
transposing move more memory around it than it reads. Ours (`attention.cpp`) does all of that in one pass each way,
keeps the projection's output and nothing turned, and takes documents or packed prompts as numbers, not as masks.
`native_attention` puts it under the layers of a network from outside; the definition stays `network.SelfAttention`.

It computes in fp32; tensors in 16 bits are cast on the way, which is still faster than torch's kernel for them.

Decoding, a position more of each text, has a function of its own, `attend_cached`: torch's kernel goes as far as the
longest text in all, its batched products multiply a head at a time, and both want the new keys and values in place.

The price: x86 CPUs only, and a compiler at first use (`native`). Attentions that are neither take the plain way.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from yalm.model.network import Attention, CausalRuns, Rotary, SelfAttention, causal_attention
from yalm.model.ops.native import library

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def native_attention(model: nn.Module) -> None:
    """Let C++ compute the attention of a model where it is on a CPU; in place, if it can be compiled."""
    if library("attention") is not None:
        for module in model.modules():
            if isinstance(module, SelfAttention):
                module.forward = partial(_forward, module, module.forward)  # type: ignore[method-assign]


def _forward(
    module: SelfAttention, plain: Callable[..., Tensor], x: Tensor, rotary: Rotary, attention: Attention
) -> Tensor:
    """See `network.SelfAttention`: (B, S, H) to (B, S, H)."""
    runs = attention if isinstance(attention, CausalRuns) else None
    starts = runs.starts if runs else None
    known = attention is causal_attention or starts is not None
    if not known or x.dtype not in DTYPES or x.device.type != "cpu":
        return plain(x, rotary, attention)
    batch, seq, _ = x.shape
    qkv = module.qkv_proj(x).view(batch, seq, -1, 3, module.head_size)
    if runs and runs.keeps:
        key = torch.empty(batch, seq, qkv.shape[2], module.head_size)
        context, _ = _attend(qkv, rotary.cos, rotary.sin, starts, key)
        runs.keep(key.transpose(1, 2), qkv[..., 2, :].transpose(1, 2), module.layer)
    else:
        context, _ = rotary_attention(qkv, rotary.cos, rotary.sin, starts)
    output: Tensor = module.o_proj(context.flatten(2))
    return output


@torch.library.custom_op("yalm::rotary_attention", mutates_args=(), device_types="cpu")
def rotary_attention(qkv: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """q | k | v (B, S, A, 3, D) to the context (B, S, A, D), of its type, and fp32 log-sums (B, A, S) to base 2.

    softmax(q·kᵀ/√D)·v of turned queries and keys, where position i sees those from starts[i] (or 0) to itself. `cos`
    and `sin` are those of a `network.Rotary`; `starts` (B, S) int64 never falls within a sequence. Differentiable in
    qkv.
    """
    return _attend(qkv, cos, sin, starts)


@torch.library.custom_op("yalm::rotary_attention_backward", mutates_args=(), device_types="cpu")
def rotary_attention_backward(
    qkv: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, context: Tensor, log_sums: Tensor, grad: Tensor
) -> Tensor:
    """The gradient of qkv, given that of the context (B, S, A, D)."""
    grad_qkv = torch.empty(qkv.shape)
    _call("backward", qkv, cos, sin, starts, context.float(), log_sums, grad.float(), grad_qkv)
    return grad_qkv.to(qkv.dtype)


def _attend(
    qkv: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, key: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """See `rotary_attention`; the turned keys go to `key` (B, S, A, D) in fp32."""
    batch, seq, heads, _, size = qkv.shape
    context, log_sums = torch.empty(batch, seq, heads, size), torch.empty(batch, heads, seq)
    _call("forward", qkv, cos, sin, starts, context, log_sums, key)
    return context.to(qkv.dtype), log_sums


def _call(way: str, qkv: Tensor, cos: Tensor, sin: Tensor, starts: Tensor | None, *others: Tensor | None) -> None:
    """Call the C++ function for that way; all others are fp32, and what it writes to contiguous."""
    functions, threads = library("attention"), torch.get_num_threads()
    assert functions is not None, "native_attention asked for it"
    batch, seq, heads, _, size = qkv.shape
    angle_step = seq * size // 2 if cos.dim() == 5 else 0
    room = torch.empty(threads, functions.attention_room(seq, size, way == "backward"))
    given = (qkv.float(), cos.float(), sin.float(), starts, *others, room)
    tensors = [tensor.contiguous() if tensor is not None else None for tensor in given]
    pointers = [tensor.data_ptr() if tensor is not None else None for tensor in tensors]
    getattr(functions, f"attention_{way}")(*pointers, batch, seq, heads, size, angle_step, threads)


def has_attend_cached(cache: Tensor) -> bool:
    """Whether `attend_cached` takes keys or values like these: fp32 on a CPU for which it can be compiled."""
    return cache.device.type == "cpu" and cache.dtype == torch.float32 and library("attention") is not None


def attend_cached(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """A position more of each text: softmax(q·kᵀ/√D)·v over the first lengths[b] slots of its row, (B, A, 1, D).

    Turned `query` and `key` and `value` are (B, A, 1, D); key and value are put into slot lengths[b] - 1 first. `keys`
    and `values` (B, A, capacity, D) are contiguous, `lengths` (B) int64; all others fp32.
    """
    functions, threads = library("attention"), torch.get_num_threads()
    assert functions is not None, "has_attend_cached said so"
    assert keys.is_contiguous()
    assert values.is_contiguous()
    batch, heads, capacity, size = keys.shape
    context = torch.empty(batch, heads, 1, size)
    room = torch.empty(threads, capacity + 15)  # whole vectors
    given: list[int] = []
    for tensor in (query, key, value):
        assert tensor.stride(3) == 1
        given += tensor.data_ptr(), tensor.stride(0), tensor.stride(1)
    others = (tensor.data_ptr() for tensor in (keys, values, lengths, context, room))
    functions.attention_step(*given, *others, batch, heads, size, capacity, threads)
    return context


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return rotary_attention_backward(*ctx.saved_tensors, grad), None, None, None


rotary_attention.register_autograd(_backward, setup_context=_save)
