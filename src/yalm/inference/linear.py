"""Linear layers that read their weights at the speed of the CPU's memory.

Generation is bound by reading every weight once a step. torch multiplies fp32 matrices with MKL, whose product of one
row uses one thread and half the bandwidth, and whose product of 2 … 32 rows is slower still. Where a processor has
AVX-512, oneDNN, which torch ships as well, reaches the memory's speed at all of these, and twice MKL's at long prompts
on AMD, once the weights are in its own blocked layout; elsewhere our own C++ does (measurements: docs/benchmarks.md).
So weights are re-laid once, at loading.

The price: the re-laid copy is opaque. It replaces the plain weight, so a packed model generates and scores but can no
longer be saved, trained or moved; the tied token table, which is also read row by row, is kept twice.
"""

import torch
from torch import Tensor, nn

from yalm.model.network import GeGLU, Layer, Yalm
from yalm.model.ops.attention import native_attention
from yalm.model.ops.matmul import has_matmul, packed_linear, panels


class PackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU: (…, in) to (…, out), the same numbers up to the order of summation."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, self.bias = linear.weight.detach(), linear.bias
        self.native = has_matmul(weight)
        self.weight = panels(weight) if self.native else torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.native:
            return packed_linear(x, self.weight, self.bias)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return output

    def gelu(self, x: Tensor) -> Tensor:
        """The exact GELU of the output, (…, out)."""
        if self.native:
            return packed_linear(x, self.weight, self.bias, is_gelu=True)
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "gelu", [], "none")
        return output

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The output times `other` (…, out)."""
        if self.native:
            return packed_linear(x, self.weight, self.bias, times=other)
        output: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")
        return output


class PackedGeGLU(nn.Module):
    """`network.GeGLU` of packed linears, whose products apply the GELU and multiply with it while they write."""

    def __init__(self, mlp: GeGLU) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = PackedLinear(mlp.gate_proj), PackedLinear(mlp.up_proj)
        self.down_proj = PackedLinear(mlp.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """(…, H) to (…, H)."""
        output: Tensor = self.down_proj(self.up_proj.times(x, self.gate_proj.gelu(x)))
        return output


def pack(model: Yalm) -> Yalm:
    """Replace all linear layers of a CPU model by packed ones, in place, one at a time, and attention by C++.

    Elsewhere do nothing.
    """
    native_attention(model)
    for module in list(model.modules()):
        if isinstance(module, Layer) and _can_pack(module.mlp.gate_proj):
            module.mlp = PackedGeGLU(module.mlp)  # type: ignore[assignment]
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and _can_pack(child):
                setattr(module, name, PackedLinear(child))
    return model


def _can_pack(linear: nn.Linear) -> bool:
    weight = linear.weight
    if has_matmul(weight):
        return True
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    bf16: bool = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bf16 or weight.dtype == torch.float32
