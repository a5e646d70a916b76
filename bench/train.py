"""What makes training fast, each on and off in the same run, and our rate beside other implementations.

    python bench/train.py [pairs] [rates] [--quick] [--json FILE]

pairs   Embedding half as wide at a vocabulary of 128,000; products in bf16; the loss in one with its product; compiled
        layers; no dropout; fewer, larger micro-batches; more tokens a step; batches read ahead. Both sides of a pair
        see the same sequences in the same order, in turns of as many tokens; speeds are ratios within a turn, and a
        difference under 5 % is called a tie. Losses after the last turn stand beside them.
rates   FLOP/s of whole steps at 25 and 110 million parameters, one thread, CPU seconds: ours, GPT-NeoX from
        transformers and from litgpt where these are installed, and shares of the measured peaks of products.

Dropout is where GPT-3 has it (attention's weights, and what attention and feed-forward add), put in from outside: the
network has none. What a pair gives on a CPU says nothing of GPUs: bench/gpu.py is for those. The texts are this
repository's files.
"""

import argparse
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from contender import Contender, ours, theirs
from litgpt_model import Litgpt
from measure import median, ranged, report, spent
from neox import same_parameters
from train_vs_transformers import SIZES, quick_corpus, speed_rows
from yalm.model.config import ModelConfig
from yalm.model.network import Yalm
from yalm.model.presets import preset
from yalm.tokens.batches import Batch, Batches
from yalm.tokens.mixture import PartSettings
from yalm.training.parallel import World, join_world
from yalm.training.settings import ComputeSettings, OptimizerSettings

TIE = 0.05
DROPOUT = 0.1
LR = 3e-4


class PlainLoss(nn.Module):
    """The network with all logits at once and PyTorch's own cross entropy."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor, targets: Tensor, weights: Tensor, attention: Any) -> Tensor:
        logits = self.network(ids, attention=attention)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (losses * weights.flatten()).sum()


class Dropping(nn.Module):
    """The network with dropout on attention's weights and on what each half of a layer adds to the residual."""

    def __init__(self, network: Yalm) -> None:
        super().__init__()
        self.network = network
        for layer in network.model.layers:
            for half in (layer.self_attn, layer.mlp):
                half.register_forward_hook(lambda module, inputs, output: F.dropout(output, DROPOUT))

    def forward(self, ids: Tensor, targets: Tensor, weights: Tensor, attention: Any) -> Tensor:
        def dropping(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=DROPOUT)

        loss: Tensor = self.network(ids, targets, weights, attention=dropping)
        return loss


@dataclass
class Side:
    """One side of a pair: a contender, and how it reads and divides the sequences of a turn."""

    contender: Contender
    micro: int
    steps: int = 1
    """Optimizer steps of a turn."""
    ahead: Iterator[Batch] | None = None
    loss: float = 0.0
    """Nats per token of the last turn."""

    def turn(self, number: int, sequences: int, data: Batches) -> None:
        """Train on the sequences of turn `number`."""
        firsts = range(number * sequences, (number + 1) * sequences, self.micro)
        reads: list[Callable[[], Batch]] = [lambda n=n: self._read(data, n) for n in firsts]  # type: ignore[misc]
        share = len(reads) // self.steps
        steps = [self.contender.step(reads[start : start + share], LR) for start in range(0, len(reads), share)]
        self.loss = float(sum(steps)) / len(steps)

    def _read(self, data: Batches, first: int) -> Batch:
        return next(self.ahead) if self.ahead is not None else data.batch(first, self.micro)


def pairs(options: argparse.Namespace) -> None:
    """Every pair in turns; one row each."""
    length, sequences, turns = (64, 4, 2) if options.quick else (512, 4, options.turns)
    base, wide_vocabulary = (preset("demo"), 8_000) if options.quick else (preset("25m"), 128_000)
    rows = []
    with TemporaryDirectory() as folder, join_world(ComputeSettings(threads=options.threads)) as world:
        tokens = quick_corpus(Path(folder)) / "en" / "train"
        data = Batches([PartSettings(name="files", path=str(tokens), weight=1)], length)
        for name, make in pair_makers(base, wide_vocabulary, length, sequences, turns, world, data).items():
            sides = make()
            ratios: list[float] = []
            rates: list[list[float]] = [[], []]
            for turn in range(turns + 1):
                seconds = [spent(lambda s=side, t=turn: s.turn(t, sequences, data)).wall for side in sides]  # type: ignore[misc]
                if turn:  # the first compiles, and makes the optimizer's state
                    ratios.append(seconds[0] / seconds[1])
                    for rate, second in zip(rates, seconds, strict=True):
                        rate.append(sequences * length / second)
            times = median(ratios)
            print(f"{name}: {times:.2f} times as fast", flush=True)  # long before the table, and all that a kill leaves
            rows.append(
                {
                    "off → on": name,
                    "tokens/s, off": ranged(rates[0]),
                    "tokens/s, on": ranged(rates[1]),
                    "on is faster": f"{times:.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
                    "verdict": "tie" if abs(times - 1) < TIE else "faster" if times > 1 else "slower",
                    "loss, off": sides[0].loss,
                    "loss, on": sides[1].loss,
                }
            )
    sizes = f"{base.num_layers} x {base.hidden_size}"
    report("What makes a step fast", rows, options.json, model=sizes, turn=f"{sequences} x {length}", turns=turns)


def pair_makers(
    base: ModelConfig, wide: int, length: int, sequences: int, turns: int, world: World, data: Batches
) -> dict[str, Callable[[], tuple[Side, Side]]]:
    """Each pair by name, as the function that makes both of its sides."""
    settings = OptimizerSettings(lr=LR)

    def network(config: ModelConfig = base, **compute: Any) -> Contender:
        # Dropout and plain losses need the modules' own calls, so nothing is compiled unless a pair says so.
        chosen = ComputeSettings(**({"compile": "off"} | compute))
        return ours(config, length, settings, world, compute=chosen)

    def wrapped(wrapper: Callable[[Any], nn.Module]) -> Contender:
        plain = network()
        return Contender(plain.name, plain.shape, wrapper(plain.model), settings, plain.flops_per_token, world)

    hidden = base.hidden_size
    large = base.model_copy(update={"vocab_size": wide})
    embeddings = [large.model_copy(update={"embedding_size": width}) for width in (hidden, hidden // 2)]
    ahead = data.prefetch((first, 1) for first in range(0, (turns + 1) * sequences))
    return {
        f"embedding {hidden} → {hidden // 2}, vocabulary {wide:,}": lambda: (
            Side(network(embeddings[0]), sequences),
            Side(network(embeddings[1]), sequences),
        ),
        "products in fp32 → bf16": lambda: (Side(network(), sequences), Side(network(precision="bf16"), sequences)),
        "loss of all logits → fused with its product": lambda: (
            Side(wrapped(PlainLoss), sequences),
            Side(network(), sequences),
        ),
        "layers as they are → compiled": lambda: (
            Side(network(), sequences),
            Side(network(compile="on"), sequences),
        ),
        f"dropout of {DROPOUT} → none": lambda: (Side(wrapped(Dropping), sequences), Side(network(), sequences)),
        f"micro-batches of 1 → {sequences}": lambda: (Side(network(), 1), Side(network(), sequences)),
        f"steps of 1 → {sequences} micro-batches": lambda: (
            Side(network(), 1, steps=sequences),
            Side(network(), 1),
        ),
        "batches read when needed → ahead": lambda: (Side(network(), 1), Side(network(), 1, ahead=ahead)),
    }


def rates(options: argparse.Namespace) -> None:
    """Whole steps of ours and theirs, one thread."""
    length, sequences, repetitions = (128, 2, 2) if options.quick else (512, 2, options.turns)
    with join_world(ComputeSettings(threads=1)) as world:
        for name in ["25m"] if options.quick else SIZES:
            config, settings = SIZES[name], OptimizerSettings()
            sizes = same_parameters(config)
            contenders = [ours(config, length, settings, world)]
            if importlib.util.find_spec("transformers"):
                contenders.append(theirs(sizes, length, settings, world))
            if importlib.util.find_spec("litgpt"):
                flops = sizes.training_flops(length)
                model = Litgpt(sizes, seed=0)
                contenders.append(Contender("litgpt's GPT-NeoX", "the same", model, settings, flops, world))
            rows = speed_rows(contenders, config.vocab_size, length, sequences, repetitions)
            report(f"FLOP/s of a training step, {name}", rows, options.json, batch=f"{sequences} x {length}")


def main() -> None:
    benchmarks = {"pairs": pairs, "rates": rates}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=", ".join(benchmarks))
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append every table to FILE, a JSON object a line")
    parser.add_argument("--threads", type=int, default=0, help="of pairs; PyTorch's choice by default")
    parser.add_argument("--turns", type=int, default=6, help="of each side")
    options = parser.parse_args()
    if unknown := set(options.benchmarks) - set(benchmarks):
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(benchmarks)}")
    for name, run in benchmarks.items():
        if name in (options.benchmarks or benchmarks):
            run(options)


if __name__ == "__main__":
    main()
