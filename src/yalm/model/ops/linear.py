"""Matrix products in training on a CPU, by what multiplies fastest there.

torch multiplies fp32 matrices with MKL, which on AMD's processors leaves AVX-512 unused: half of what the core can do
(120 against 270 GFLOP/s, docs/benchmarks.md). oneDNN, which torch ships as well, uses it. 16-bit matrices are oneDNN's
too, but on a CPU without instructions for them torch multiplies number by number, 45 times as slowly as in fp32; as
products of 16-bit numbers are exact in fp32 and their sums are fp32 anyway, they are cast and MKL multiplies.

`fast_linears` puts both under the linear layers of a network from outside; the network's definition stays plain
PyTorch, and so does every other device, and fp32 on every CPU without AVX-512.

The price: oneDNN's operation has no place in torch's public interface, so its absence is provided for; and a cast copy
of a weight, while it multiplies.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yalm.model.ops.matmul import has_avx512


def has_onednn(tensor: Tensor) -> bool:
    """Whether products with `tensor` are oneDNN's: fp32 on a CPU with AVX-512 whose torch has it."""
    return (
        has_avx512()
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for products of that type; for fp32 every one has."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return True


def must_cast(tensor: Tensor) -> bool:
    """Whether products with `tensor` are computed in fp32, for its CPU has no instructions for its type."""
    return tensor.device.type == "cpu" and not cpu_multiplies(tensor.dtype)


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K) · bᵀ, b (N, K), plus `bias` (N): (M, N). Not differentiable by itself; any strides."""
    if has_onednn(a):
        output: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
        return output
    if must_cast(a):
        return F.linear(a.float(), b.float(), None if bias is None else bias.float()).to(a.dtype)
    return F.linear(a, b, bias)


def add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total (M, N) += a (M, K) · bᵀ, b (N, K); within the product where its library can and the types are one."""
    if a.dtype != total.dtype or has_onednn(a):
        total += product(a, b)
    else:
        torch.addmm(total, a, b.T, out=total)  # not addmm_, which counters of FLOPs do not know


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (…, K) · weightᵀ (K, N) + bias (N): (…, N), differentiable; by oneDNN or cast where that is faster.

    The compiler is given the plain layer: it cannot lower the other.
    """
    if torch.compiler.is_compiling() or not (has_onednn(weight) or must_cast(weight)):
        return F.linear(x, weight, bias)
    output: Tensor = _Linear.apply(x.flatten(0, -2), weight, bias)  # type: ignore[no-untyped-call]
    return output.view(*x.shape[:-1], -1)


class _Linear(torch.autograd.Function):
    """x (M, K) · weightᵀ + bias, with all three products of forward and backward by `product`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = product(grad, weight.T) if ctx.needs_input_grad[0] else None
        return grad_x, product(grad.T, x.T), grad.sum(0) if ctx.needs_input_grad[2] else None


def fast_linears(model: nn.Module) -> None:
    """Let `linear` compute the linear layers (with bias) of a model that is on a CPU, or will be; in place."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.Linear, x: Tensor) -> Tensor:
    return linear(x, module.weight, module.bias)
