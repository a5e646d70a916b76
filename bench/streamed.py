"""All 80 layers of the 100B through two buffers: seconds a sweep, beside what reading and computing take alone.

    python bench/streamed.py WEIGHTS --vocab FILE [--memory 8GiB] [--reads direct cached] [--sweeps 2] [--json FILE]

WEIGHTS are released files of real sizes (`bench/standin.py` makes some). bf16 is read straight from them. For int8 and
int4 the first two layers are converted, and the second stands for all that follow, as the stand-in's links do: the same
bytes move. Reads "direct" come from the disk, past the system's cache, as `yalm generate` has it where the layers are
more than the cache could keep; "cached" come out of it, which the stand-in's links allow. Each row has its own process,
whose peak memory is told. A sweep gives one token to every text. Reading alone is a sweep that computes nothing;
computing alone is one layer's time, the best of three, times all layers. The limit is the longer; out of the cache,
which is copying by the cores that compute, their sum.
"""

import argparse
import resource
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from measure import report, spent
from yalm.inference.cache import KeyValueCache
from yalm.inference.engine import last_logits
from yalm.inference.forecast import measure
from yalm.inference.loading import Plan, plan, realize
from yalm.inference.placement import Budget, parse_bytes
from yalm.model.convert import convert_release
from yalm.model.folder import ModelFolder
from yalm.model.quantize import Quantization
from yalm.model.shards import Span
from yalm.model.weights import Weights, open_weights

LAYERS = 80
REPETITIONS = 3


class Repeated(ModelFolder):
    """A folder of two layers read as one of many: every layer but the first is the second."""

    def __init__(self, folder: Path, layers: int) -> None:
        super().__init__(folder)
        self.config = self.config.model_copy(update={"num_layers": layers})

    def span(self, name: str) -> Span | None:
        before, _, rest = name.partition("model.layers.")
        if rest and not before:
            number, _, rest = rest.partition(".")
            name = f"model.layers.{min(int(number), 1)}.{rest}"
        return super().span(name)


def sweeps(width: str, path: Path, texts: int, reads: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times of a width at a batch."""
    weights: Weights = open_weights(path) if width == "bf16" else Repeated(path, LAYERS)
    options_of_plan: dict[str, Any] = {
        "device": torch.device("cpu"),
        "budget": Budget(parse_bytes(options.memory), machine=0 if reads == "direct" else 2**50),
        "texts": texts,
        "tokens": 16,
    }

    def chosen() -> Plan:
        return plan(weights.config, weights.dtype, weights.quantization, **options_of_plan)

    # Of networks that are gone before the one that runs is given memory.
    compute = LAYERS * min(measure(chosen(), weights, texts).compute for _ in range(REPETITIONS))
    one = chosen()
    model, placement = realize(one, weights, None), one.placement
    cache = KeyValueCache(model, texts, 16, model.lm_head.bias.dtype, "cpu")
    for _ in range(texts):
        cache.add_row()
    last_logits(model, cache, [[1]] * texts)
    read = spent(lambda: deque(model.model.layers, maxlen=0)).wall
    times = [spent(lambda: last_logits(model, cache, [[5]] * texts)).wall for _ in range(options.sweeps)]
    streamed, sweep = len(placement.layers_in("disk")), min(times)
    return {
        "width": width,
        "reads": reads,
        "texts": texts,
        "activations": one.dtype,
        "layers in memory": LAYERS - streamed,
        "read a sweep, GB": round(streamed * placement.sizes.layer / 1e9, 1),
        "reading alone, s": round(read, 2),
        "GB/s": round(streamed * placement.sizes.layer / 1e9 / read, 1),
        "computing alone, s": round(compute, 2),
        "sweep, s": "/".join(f"{time:.2f}" for time in times),
        "of the longer": f"{sweep / max(read, compute):.2f}",
        "of the sum": f"{sweep / (read + compute):.2f}",
        "s a token": round(sweep / texts, 2),
        "peak memory, GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, metavar="WEIGHTS")
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--memory", default="8GiB")
    parser.add_argument("--widths", nargs="+", default=["bf16", "int8", "int4"])
    parser.add_argument("--texts", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--reads", nargs="+", choices=["direct", "cached"], default=["direct", "cached"])
    parser.add_argument("--sweeps", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for width in options.widths:
        with TemporaryDirectory(dir=options.weights.parent) as folder:
            path = options.weights
            if width != "bf16":
                path = Path(folder) / width
                quantization = Quantization.named(width)
                convert_release(options.weights, path, options.vocab, num_layers=2, quantization=quantization)
            for reads, texts in product(options.reads, options.texts):
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    rows.append(process.submit(sweeps, width, path, texts, reads, options).result())
                print(rows[-1], file=sys.stderr, flush=True)
    report("80 layers of the 100B, streamed", rows, options.json, memory=options.memory)


if __name__ == "__main__":
    main()
