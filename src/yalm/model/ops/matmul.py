"""Matrix products of generation on CPUs without AVX-512, in C++ (`matmul.cpp`), whose weights are laid in panels once.

oneDNN's read fp32 weights at some two thirds of the rate that this does and none in bf16; MKL's products of few rows
leave most of the processor unused, and torch's in bf16 are many times slower. With AVX-512 oneDNN's were measured near
the machine's limits (docs/benchmarks.md), so there they are taken, as in fp32 where no compiler is found. Training has
MKL's: it lays out both sides anew in each product, and this was up to a tenth slower at it.

The price: a room of 6 MB for every thread that calls; and weights in panels are opaque, as oneDNN's are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from yalm.model.ops.native import Name, library

SOURCE: Name = "matmul"
DTYPES = (torch.float32, torch.bfloat16)


def has_avx512() -> bool:
    """Whether torch's kernels use AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def has_matmul(tensor: Tensor) -> bool:
    """Whether products with `tensor`, fp32 or, as a weight in panels, bf16, should be those of this module."""
    if tensor.dtype not in DTYPES or tensor.device.type != "cpu" or has_avx512():
        return False
    return library(SOURCE) is not None


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
    if not functions.packed_linear(*pointers, *counts, is_bf16, is_gelu, torch.get_num_threads()):
        raise MemoryError("no memory for the room of a matrix product")
    return output.to(x.dtype)
