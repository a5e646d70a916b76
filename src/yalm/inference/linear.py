"""Linear layers that read their weights at the speed of the CPU's memory.

Generation is bound by reading every weight once a step. torch multiplies fp32 matrices with MKL, whose product of one
row uses one thread and half the bandwidth, and whose product of 2 … 32 rows is slower still. oneDNN, which torch ships
as well, reaches the memory's speed at all of these, and twice MKL's at long prompts on AMD, once the weights are in
its own blocked layout (measurements: docs/benchmarks.md). So weights are re-laid once, at loading.

The price: the blocked copy is opaque. It replaces the plain weight, so a packed model generates and scores but can no
longer be saved, trained or moved; the tied token table, which is also read row by row, is kept twice.
"""

import torch
from torch import Tensor, nn

from yalm.model.network import Yalm

PACKED_DTYPES = (torch.float32, torch.bfloat16)


class PackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU: (…, in) to (…, out), the same numbers up to the order of summation."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        output: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return output


def pack(model: Yalm) -> Yalm:
    """Replace all linear layers of a CPU model by packed ones, in place, one at a time; elsewhere do nothing."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and _can_pack(child):
                setattr(module, name, PackedLinear(child))
    return model


def _can_pack(linear: nn.Linear) -> bool:
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and linear.weight.device.type == "cpu" and linear.weight.dtype in PACKED_DTYPES
