"""Every Triton kernel of ours compiled ahead of time for A100 and H100, which needs no GPU, in each form it takes."""

from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(triton.knobs.runtime.interpret, reason="Triton interprets kernels")]

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from yalm.model.ops import geglu, layer_norm, rotary, softmax_loss  # noqa: E402

MODULES = (geglu, layer_norm, rotary, softmax_loss)
TILE = {"ROWS": geglu.ROWS, "COLUMNS": geglu.COLUMNS}
# Kernels with the compile-time arguments of each form, and the warps.
FORMS: list[tuple[Any, dict[str, Any], int]] = [
    (geglu.geglu_forward, TILE, 4),
    (geglu.geglu_backward, TILE, 4),
    (layer_norm.layer_norm_forward, {"ADDS": True, "BLOCK": 16_384}, 32),
    (layer_norm.layer_norm_forward, {"ADDS": False, "BLOCK": 2048}, 4),
    (layer_norm.layer_norm_slopes, {"BLOCK": layer_norm.MOST}, 4),
    (layer_norm.layer_norm_backward, TILE | {"ADDS": True}, 4),
    (layer_norm.layer_norm_backward, TILE | {"ADDS": False}, 4),
    (rotary.turn, {"BACK": False, "HEADS": rotary.HEADS, "BLOCK": 64}, 4),
    (rotary.turn, {"BACK": True, "HEADS": rotary.HEADS, "BLOCK": 64}, 4),
    (softmax_loss.softmax_loss, {"GRADIENT": True, "BLOCK": softmax_loss.MOST}, 8),
    (softmax_loss.softmax_loss, {"GRADIENT": False, "BLOCK": softmax_loss.MOST}, 8),
]
# The types of arguments that are not pointers to activations, by their names in all kernels.
TYPES = {"eps": "fp32", "targets": "*i64"}
TYPES |= dict.fromkeys(("height", "width", "tiles", "angles", "heads", "half"), "i32")
TYPES |= dict.fromkeys(("means", "inverses", "slopes", "sums", "losses", "weights"), "*fp32")
# What is None at a launch without ADDS or GRADIENT.
ABSENT = {"ADDS": ("branch", "branch_bias", "grad_total"), "GRADIENT": ("weights",)}


def test_no_kernel_is_left_out() -> None:
    kernels = {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, triton.runtime.KernelInterface)
    }
    assert kernels == {kernel for kernel, _, _ in FORMS}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("kernel", "constants", "warps"), FORMS, ids=lambda value: getattr(value, "__name__", None))
def test_compiles(
    kernel: Any,
    constants: dict[str, Any],
    warps: int,
    dtype: str,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    absent = {name for flag, names in ABSENT.items() if constants.get(flag) is False for name in names}
    constexprs = constants | dict.fromkeys(absent & set(kernel.arg_names))
    signature = {name: "constexpr" if name in constexprs else TYPES.get(name, f"*{dtype}") for name in kernel.arg_names}
    # Tensors are aligned, as at a launch.
    attributes = {
        (index,): [["tt.divisibility", 16]] for index, type_ in enumerate(signature.values()) if type_[0] == "*"
    }
    source = ASTSource(kernel, signature, constexprs=constexprs, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    assert f".target sm_{capability}" in compiled.asm["ptx"]
