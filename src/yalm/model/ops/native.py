"""Our C++ for CPUs, compiled at first use by the machine's own compiler, for the machine's own instructions.

`library(name)` takes a few seconds once; the result is kept in the user's cache folder. Where there is no g++, no AVX2,
or no place to keep it, callers have a slower way in plain PyTorch, and a warning says what is missing. Threads are
those of the OpenMP that PyTorch has loaded: a second pool would wait in loops on the cores that the first one needs.
"""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from yalm.atomic import atomic_file

FOLDER = Path(__file__).parent
# Not -ffast-math: it would regroup the sums that are laid out for the registers.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fPIC", "-std=c++17", "-fopenmp")
_ADDRESS, _COUNT, _INT, _BITS, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_uint32, ctypes.c_float
Name = Literal["quantized_linear", "matmul", "attention", "softmax_loss", "stochastic_adamw"]
FUNCTIONS: dict[str, dict[str, list[Any]]] = {
    "quantized_linear": {
        "int8_product": [_ADDRESS] * 5 + [_COUNT] * 3 + [_INT],
        "int4_product": [_ADDRESS] * 6 + [_COUNT] * 3 + [_INT],
        "int8_values": [_ADDRESS] * 3 + [_COUNT] * 2 + [_INT],
        "int4_values": [_ADDRESS] * 4 + [_COUNT] * 2 + [_INT],
    },
    "matmul": {
        "matmul_panel": [],
        "packed_linear": [_ADDRESS] * 5 + [_COUNT] * 3 + [_INT] * 3,
    },
    "attention": {
        "attention_room": [_COUNT] * 2 + [_INT],
        "attention_forward": [_ADDRESS] * 8 + [_COUNT] * 5 + [_INT],
        "attention_backward": [_ADDRESS] * 9 + [_COUNT] * 5 + [_INT],
        "attention_step": ([_ADDRESS] + [_COUNT] * 2) * 3 + [_ADDRESS] * 5 + [_COUNT] * 4 + [_INT],
    },
    "softmax_loss": {"softmax_losses": [_ADDRESS] * 4 + [_COUNT] * 2 + [_INT]},
    "stochastic_adamw": {
        "stochastic_adamw": [_ADDRESS] * 4
        + [_INT] * 3
        + [_COUNT, _COUNT, _BITS, _COUNT]
        + [_FLOAT] * 6
        + [_BITS] * 2
        + [_INT],
    },
}
RESULTS = {"matmul_panel": _COUNT, "packed_linear": _INT, "attention_room": _COUNT}
SLOWER = {
    "quantized_linear": "quantized layers are computed several times slower than they could be",
    "matmul": "layers are computed more slowly than they could be",
    "attention": "attention is computed by PyTorch, several times slower than it could be",
    "softmax_loss": "losses are computed more slowly than they could be",
    "stochastic_adamw": "weights or moments in bf16 are updated many times more slowly than they could be",
}

logger = logging.getLogger("yalm")


@cache
def library(name: Name) -> ctypes.CDLL | None:
    """The functions of the source `name`.cpp; None, after one warning, where they cannot be had."""
    capabilities = torch.cpu.get_capabilities()
    if not capabilities.get("avx2"):
        return _without(name, "this CPU has no AVX2")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "c++"))), None)
    if compiler is None:
        return _without(name, "there is no C++ compiler; install g++")
    source = FOLDER / f"{name}.cpp"
    texts = [path.read_text() for path in (FOLDER / "vectors.h", source)]
    key = hashlib.sha256(repr((texts, FLAGS, compiler, sorted(capabilities.items()))).encode()).hexdigest()
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yalm" / f"{name}-{key[:16]}.so"
    try:
        if not path.exists():
            _compile(compiler, source, path)
        functions = ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        return _without(name, f"{compiler} failed ({(error.stderr.strip() or 'no message').splitlines()[0]})")
    except (OSError, RuntimeError) as error:
        return _without(name, f"{path} cannot be made or loaded ({error}); set XDG_CACHE_HOME to a folder for it")
    for function, types in FUNCTIONS[name].items():
        getattr(functions, function).argtypes = types
        getattr(functions, function).restype = RESULTS.get(function)
    return functions


def _compile(compiler: str, source: Path, path: Path) -> None:
    with TemporaryDirectory() as folder, atomic_file(path) as target:
        unit = f"{folder}/unit.o"
        # Linked without -fopenmp, so that PyTorch's OpenMP is found, not another one loaded.
        for arguments in ([*FLAGS, "-c", str(source), "-o", unit], ["-shared", unit, "-o", str(target)]):
            subprocess.run([compiler, *arguments], check=True, capture_output=True, text=True)


def _without(name: Name, reason: str) -> ctypes.CDLL | None:
    logger.warning("%s: %s", SLOWER[name], reason)
    return None
