"""Matrix products on CPUs without AVX-512, in C++ (`matmul.cpp`).

Training there has MKL's products to beat, which are as fast where matrices are square, and slower where a bias is
added or one side is the table of a vocabulary. Generation has oneDNN's, which read fp32 weights at some two thirds of
the rate that this does and none in bf16; MKL's products of few rows leave most of the processor unused, and torch's in
bf16 are many times slower. With AVX-512 oneDNN's were measured near the machine's limits (docs/benchmarks.md), so there
they are taken, as in fp32 where no compiler is found.

The price: a room of 13 MB for every thread that calls; and weights in panels are opaque, as oneDNN's are.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yalm.model.ops.native import Name, library

SOURCE: Name = "matmul"
DTYPES = (torch.float32, torch.bfloat16)

# Operations of torch's, so that what looks on sees them: profilers, counters of FLOPs, recomputation.
_operations: Any = torch.library.Library("yalm", "FRAGMENT")  # type: ignore[no-untyped-call]
_operations.define("matmul(Tensor a, Tensor b, Tensor? bias) -> Tensor")
_operations.define("add_matmul_(Tensor a, Tensor b, Tensor(a!) total) -> ()")


def has_avx512() -> bool:
    """Whether torch's kernels use AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def has_matmul(tensor: Tensor) -> bool:
    """Whether products with `tensor`, fp32 or, as a weight in panels, bf16, should be those of this module."""
    if tensor.dtype not in DTYPES or tensor.device.type != "cpu" or has_avx512():
        return False
    return library(SOURCE) is not None


def matmul(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a (M, K) · bᵀ, b (N, K), plus `bias` (N): (M, N). All fp32, any strides. Not differentiable by itself."""
    output: Tensor = torch.ops.yalm.matmul(a, b, bias)
    return output


def add_matmul_(a: Tensor, b: Tensor, total: Tensor) -> None:
    """total (M, N), contiguous, += a (M, K) · bᵀ, b (N, K). All fp32."""
    torch.ops.yalm.add_matmul_(a, b, total)


def _matmul(a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
    output = a.new_empty(len(a), len(b))
    _call_matmul(a, b, bias, output, adds=False)
    return output


def _add_matmul_(a: Tensor, b: Tensor, total: Tensor) -> None:
    _call_matmul(a, b, None, total, adds=True)


def _call_matmul(a: Tensor, b: Tensor, bias: Tensor | None, output: Tensor, adds: bool) -> None:
    functions = library(SOURCE)
    assert functions is not None, "has_matmul said so"
    assert output.is_contiguous()
    assert a.shape[1] == b.shape[1]
    (rows, inner), columns = a.shape, len(b)
    first = bias.contiguous().data_ptr() if bias is not None else None
    matrices = (a.data_ptr(), *a.stride(), b.data_ptr(), *b.stride(), first, output.data_ptr())
    _check(functions.matmul(*matrices, rows, columns, inner, adds, torch.get_num_threads()))


_operations.impl("matmul", _matmul, "CPU")
_operations.impl("add_matmul_", _add_matmul_, "CPU")


def panels(weight: Tensor) -> Tensor:
    """(N, K) in fp32 or bf16 to (⌈N/P⌉, K, P), with zeros in place of rows that are missing."""
    functions = library(SOURCE)
    assert functions is not None, "has_matmul said so"
    width: int = functions.matmul_panel()
    padded = F.pad(weight, (0, 0, 0, -len(weight) % width))
    return padded.view(-1, width, weight.shape[1]).transpose(1, 2).contiguous()


def packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, is_gelu: bool = False, times: Tensor | None = None
) -> Tensor:
    """x (…, K) · Wᵀ + bias, then GELU (exact), then times `times` (…, N): (…, N) in the type of x, computed in fp32.

    `weight` is W (N, K) by `panels`, `bias` (N). Not differentiable.
    """
    functions, rows, columns = library(SOURCE), len(bias), x.shape[-1]
    assert functions is not None, "has_matmul said so"
    given = (x, weight, bias, times)
    kept = [tensor if tensor is None or tensor is weight else tensor.float().contiguous() for tensor in given]
    output = torch.empty(*x.shape[:-1], rows)
    pointers = [tensor.data_ptr() if tensor is not None else None for tensor in (*kept, output)]
    counts, is_bf16 = (x.numel() // columns, rows, columns), weight.dtype == torch.bfloat16
    _check(functions.packed_linear(*pointers, *counts, is_bf16, is_gelu, torch.get_num_threads()))
    return output.to(x.dtype)


def _check(done: int) -> None:
    if not done:
        raise MemoryError("no memory for the room of a matrix product")
