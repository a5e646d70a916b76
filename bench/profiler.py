"""Whether the profiler finds the output product that is too wide, and what it promises for a narrower embedding.

    python bench/profiler.py [--quick] [--json FILE]

A network with an embedding as wide as its layers, 10,240 as YaLM 100B's, and a vocabulary of 128,000, one layer deep,
is profiled by `yalm profile`; what it recommends is done, and profiled too. The gain predicted stands beside the one
measured, on steps without the profiler. Runs take turns, each in a process of its own. 24 GB of memory hold it with a
feed-forward of 2,048 and AdamW's moments in bf16. The texts are this repository's files, the vocabulary is only said
to be so large: ids above the tokenizer's do not occur.
"""

import argparse
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measure import median, ranged, report
from train_vs_transformers import quick_corpus
from yalm.profiling.profile import profile
from yalm.tokens.folder import MANIFEST, Manifest, read_record, write_record
from yalm.training.settings import TrainSettings

ADVICE = "embedding too wide"


def pretend_vocabulary(folder: Path, size: int) -> None:
    """Let a token folder say that its ids are from a vocabulary of `size`."""
    manifest = read_record(folder / MANIFEST, Manifest)
    write_record(folder / MANIFEST, manifest.model_copy(update={"vocab_size": size}))


def profiled(overrides: Sequence[str], steps: int) -> dict[str, Any]:
    """The facts of a profile of these settings."""
    facts = profile(TrainSettings.load(None, overrides), steps)
    assert facts is not None
    return facts


def advice_of(facts: dict[str, Any]) -> dict[str, Any]:
    """What the profile says of the embedding."""
    found = [advice for advice in facts["advice"] if advice["rule"] == ADVICE]
    if not found:
        raise SystemExit(f"no advice of the rule {ADVICE!r}: {[advice['rule'] for advice in facts['advice']]}")
    return dict(found[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that all of it runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append the table to FILE, a JSON object a line")
    options = parser.parse_args()
    vocabulary, rounds, steps = (32_000, 1, 2) if options.quick else (128_000, 2, 2)
    sizes = ["preset=25m", "num_layers=1"] if options.quick else ["preset=yalm-100b", "num_layers=1"]
    sizes += ["embedding_size=512"] if options.quick else ["embedding_size=10240", "intermediate_size=2048"]
    with TemporaryDirectory() as folder:
        tokens = quick_corpus(Path(folder)) / "en" / "train"
        pretend_vocabulary(tokens, vocabulary)
        wide = [
            f"output={folder}/run",
            f'data.parts=[{{ name = "files", path = "{tokens}", weight = 1 }}]',
            "data.sequence_length=128" if options.quick else "data.sequence_length=512",
            "batch.sequences=1",
            "batch.micro_sequences=1",
            "optimizer.moments=bf16",
            *(f"model.{size}" for size in sizes),
        ]
        runs: dict[str, list[dict[str, Any]]] = {"wide": [], "as recommended": []}
        change: list[str] = []
        for _ in range(rounds):
            for name, found in runs.items():
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                    found.append(process.submit(profiled, [*wide, *(change if name != "wide" else [])], steps).result())
                change = advice_of(runs["wide"][0])["change"]
    seconds = {name: median([facts["step_seconds"] for facts in found]) for name, found in runs.items()}
    predicted = median([advice_of(facts)["gain"] for facts in runs["wide"]])
    gained = 1 - seconds["as recommended"] / seconds["wide"]
    rows = []
    for name, found in runs.items():
        output = [
            sum(op["seconds"] for op in facts["operations"] if op["module"] == "lm_head" and op["kind"] == "matmul")
            / facts["profiled_seconds"]
            for facts in found
        ]
        rows.append(
            {
                "embedding": f"{name}: {found[0]['config']['embedding_size']:,}",
                "s a step": ranged([facts["step_seconds"] for facts in found], 2),
                "products of the output": f"{median(output):.0%}",
                "first in the list of advice": found[0]["advice"][0]["rule"] if found[0]["advice"] else "",
                "gain predicted": f"{predicted:.1%}" if name == "wide" else "",
                "gain measured": "" if name == "wide" else f"{gained:.1%}",
                "predicted / measured": "" if name == "wide" else f"{predicted / gained:.2f}",
            }
        )
    report(
        f"A vocabulary of {vocabulary:,}: the profiler's advice, and what it gives", rows, options.json, rounds=rounds
    )


if __name__ == "__main__":
    main()
