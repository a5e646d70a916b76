"""fp32 linear layers for inference on CPUs without AVX-512, in C++ (`packed_linear.cpp`).

There oneDNN reads memory at two thirds of the rate that it can be read at, and MKL's products of 2 … 32 rows use a
fifth of the processor (docs/benchmarks.md). With AVX-512 oneDNN's products were measured near the machine's limits, so
there they are taken, as they are where no compiler is found.

The price: the weight in panels is opaque, as oneDNN's is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from yalm.model.ops.linear import has_avx512
from yalm.model.ops.native import Name, library

SOURCE: Name = "packed_linear"


def has_packed_linear(weight: Tensor) -> bool:
    """Whether `weight` should be multiplied with by this module."""
    if weight.dtype != torch.float32 or weight.device.type != "cpu" or has_avx512():
        return False
    return library(SOURCE) is not None


def panels(weight: Tensor) -> Tensor:
    """(N, K) in fp32 to (⌈N/P⌉, K, P), with zeros in place of rows that are missing."""
    functions = library(SOURCE)
    assert functions is not None, "has_packed_linear said so"
    width: int = functions.packed_panel()
    padded = F.pad(weight, (0, 0, 0, -len(weight) % width))
    return padded.view(-1, width, weight.shape[1]).transpose(1, 2).contiguous()


def packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, is_gelu: bool = False, times: Tensor | None = None
) -> Tensor:
    """x (…, K) · Wᵀ + bias, then GELU (exact), then times `times` (…, N): (…, N), all in fp32.

    `weight` is W (N, K) by `panels`, `bias` (N). Not differentiable.
    """
    functions, rows, columns = library(SOURCE), len(bias), x.shape[-1]
    assert functions is not None, "has_packed_linear said so"
    x, times = x.contiguous(), times.contiguous() if times is not None else None
    output = torch.empty(*x.shape[:-1], rows)
    others = (weight.data_ptr(), bias.data_ptr(), times.data_ptr() if times is not None else None, output.data_ptr())
    count = x.numel() // columns
    functions.packed_linear(x.data_ptr(), *others, count, rows, columns, is_gelu, torch.get_num_threads())
    return output
