"""What torch.compile, and torch.jit.script before it, make of the element-wise operations of a layer on a CPU.

    OMP_NUM_THREADS=1 python bench/fused.py [--tokens 2048] [--hidden 1024] [--intermediate 2752] [--heads 16]

Each operation of `docs/fused-operations.md` as PyTorch writes it, forward and backward together, in fp32: as it is
(eager), scripted, and compiled. The ways take turns, and each has the best of some calls. Compiling is timed apart: the
first call of an operation, forward and backward, less the best; the compiler's cache makes it short in later runs.
"""

import argparse
import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from measure import report, spent

ROUNDS = 15


def bias_geglu(gate: Tensor, up: Tensor, gate_bias: Tensor, up_bias: Tensor) -> Tensor:
    return F.gelu(gate + gate_bias) * (up + up_bias)


def residual_norm(x: Tensor, branch: Tensor, bias: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    total = x + branch + bias
    # Added so that there is one output; the residual goes on beside its norm.
    return total + F.layer_norm(total, weight.shape, weight, shift)


def rotary(query_key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = query_key.chunk(2, dim=-1)
    return torch.cat((cos * a - sin * b, sin * a + cos * b), dim=-1)


def forward_backward(operation: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor) -> None:
    output = operation(*inputs)
    torch.autograd.grad(output, [tensor for tensor in inputs if tensor.requires_grad], upstream)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 2048), ("hidden", 1024), ("intermediate", 2752), ("heads", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    sizes = parser.parse_args()
    tokens, hidden, wide = sizes.tokens, sizes.hidden, sizes.intermediate
    head = hidden // sizes.heads
    shapes = {
        bias_geglu: [(tokens, wide), (tokens, wide), (wide,), (wide,)],
        residual_norm: [(tokens, hidden), (tokens, hidden), (hidden,), (hidden,), (hidden,)],
        rotary: [(tokens, sizes.heads, 2, head), (tokens, 1, 1, head // 2), (tokens, 1, 1, head // 2)],
    }
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # torch.jit.script's own, and the point
    rows = []
    for operation, dimensions in shapes.items():
        inputs = [torch.randn(*shape).requires_grad_() for shape in dimensions]
        if operation is rotary:
            inputs = [inputs[0], *(tensor.detach() for tensor in inputs[1:])]
        upstream = torch.randn_like(operation(*inputs))
        ways = {"eager": operation, "jit.script": torch.jit.script(operation), "compile": torch.compile(operation)}
        work = {name: partial(forward_backward, way, inputs, upstream) for name, way in ways.items()}
        first = {name: spent(call).wall for name, call in work.items()}
        seconds: dict[str, list[float]] = {name: [] for name in work}
        for _ in range(ROUNDS):
            for name, call in work.items():
                seconds[name].append(spent(call).cpu)
        least = {name: min(values) for name, values in seconds.items()}
        rows.append(
            {"operation": operation.__name__}
            | {f"{name}, ms": 1e3 * value for name, value in least.items()}
            | {"compiling, s": first["compile"] - least["compile"]}
        )
    report("Element-wise operations, forward and backward, fp32", rows, **vars(sizes))


if __name__ == "__main__":
    main()
