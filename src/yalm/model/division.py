"""How a network is divided over processes: which of a layer's matrices along which dimension, and which layers.

Training and generation divide alike (Shoeybi et al. 2019, arXiv 1909.08053): what comes before attention and the
gated product by its outputs, what follows by its inputs, so that a layer needs two sums over processes.
"""

from itertools import pairwise

from yalm.errors import YalmError

# The linears of a layer that are divided by output (dim 0), and those behind them, divided by input (dim 1).
SPLIT_DIMS = dict.fromkeys(("self_attn.qkv_proj", "mlp.gate_proj", "mlp.up_proj"), 0)
SPLIT_DIMS |= dict.fromkeys(("self_attn.o_proj", "mlp.down_proj"), 1)


def stages(num_layers: int, ranks: int) -> list[range]:
    """The layers of each pipeline rank: contiguous, as equal in number as can be; YalmError if one would have none."""
    if ranks > num_layers:
        raise YalmError(f"pipeline={ranks}: the model has only {num_layers} layers; choose at most {num_layers} stages")
    bounds = [rank * num_layers // ranks for rank in range(ranks + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]
