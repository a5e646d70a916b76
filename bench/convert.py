"""Conversion of real-size layers beside a plain copy of the same files, in turns on the same disk.

    python bench/convert.py --folder /disk/with/room           # two layers of the 100B: 5.6 GB, 17 GB of disk in use
    python bench/convert.py --quick                             # small layers, seconds

Every round copies the source files (and waits until they are on the disk), converts them to a model folder, verifies
that, and converts it back. All begin with their source out of the system's cache, and all of ours wait for the disk
too. Speeds are of the source's bytes, over the command's own seconds (starting Python takes 2 more); a command's
memory is the largest its process had, mapped pages of files included.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from standin import make_standin
from yalm.model.presets import preset
from yalm.model.shards import DTYPES

VOCAB = Path(__file__).parents[1] / "tests" / "golden" / "yalm-tiny" / "vocab.sp"


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())


def drop_from_cache(folder: Path) -> None:
    """Make the next read of these files come from the disk."""
    os.sync()
    for path in folder.iterdir():
        with open(path, "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: Path, target: Path) -> tuple[float, int]:
    """Seconds and memory (not measured) of a plain copy that has reached the disk."""
    start = perf_counter()
    target.mkdir()
    for path in source.iterdir():
        shutil.copyfile(path, target / path.name)
        with open(target / path.name, "rb") as stream:
            os.fsync(stream.fileno())
    return perf_counter() - start, 0


def yalm(*arguments: str | Path) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a command of ours."""
    command = [sys.executable, "-m", "yalm", *map(str, arguments), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return json.loads(text)["seconds"], usage.ru_maxrss * 1024


def measure(weights: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Every job in every round; medians of seconds, the largest memory."""
    copied, model, back = folder / "copy", folder / "model", folder / "back"
    jobs: dict[str, tuple[Path, Callable[[], tuple[float, int]], list[Path]]] = {
        "plain copy": (weights, lambda: copy(weights, copied), [copied]),
        "yalm convert": (weights, lambda: yalm("convert", weights, model, "--vocab", VOCAB), []),
        "yalm verify": (model, lambda: yalm("verify", model), []),
        "yalm convert --to release": (
            model,
            lambda: yalm("convert", model, back, "--to", "release"),
            [model, back],
        ),
    }
    results: dict[str, list[tuple[float, int]]] = {name: [] for name in jobs}
    for number in range(rounds):
        for name, (source, job, finished) in jobs.items():
            drop_from_cache(source)
            results[name].append(job())
            print(f"round {number + 1}: {name} took {results[name][-1][0]:.1f} s", file=sys.stderr)
            for path in finished:
                shutil.rmtree(path)
    source_bytes = size_of(weights)
    copy_seconds = statistics.median(seconds for seconds, _ in results["plain copy"])
    return {
        "source_bytes": source_bytes,
        "largest_file_bytes": max(path.stat().st_size for path in weights.iterdir()),
        "rounds": rounds,
        "jobs": {
            name: {
                "seconds": statistics.median(seconds for seconds, _ in measured),
                "all_seconds": [round(seconds, 2) for seconds, _ in measured],
                "gigabytes_per_second": source_bytes / statistics.median(s for s, _ in measured) / 1e9,
                "of_copy": copy_seconds / statistics.median(s for s, _ in measured),
                "peak_bytes": max(peak for _, peak in measured),
            }
            for name, measured in results.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, help="released files; a stand-in is made if not given")
    parser.add_argument("--preset", default="yalm-100b", help="sizes of the stand-in")
    parser.add_argument("--layers", type=int, default=2, help="layers of the stand-in")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16", help="type of the stand-in")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder if not given)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small layers, one round")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    arguments = parser.parse_args()
    name, layers, rounds = arguments.preset, arguments.layers, arguments.rounds
    if arguments.quick:
        name, layers, rounds = "25m", 7, 1
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        weights = arguments.weights
        if weights is None:
            weights = folder / "weights"
            config = preset(name).model_copy(update={"num_layers": layers})
            make_standin(weights, config, layers, DTYPES[arguments.dtype])
        result = measure(weights, folder, rounds)
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(
        f"{result['source_bytes'] / 1e9:.2f} GB in, {arguments.dtype}, largest file "
        f"{result['largest_file_bytes'] / 1e9:.2f} GB, {rounds} rounds\n"
    )
    print("| job | seconds | GB/s | of the copy | peak memory |\n| --- | ---: | ---: | ---: | ---: |")
    for job, facts in result["jobs"].items():
        peak = f"{facts['peak_bytes'] / 1e9:.2f} GB" if facts["peak_bytes"] else "–"
        speeds = f"{facts['gigabytes_per_second']:.2f} | {facts['of_copy']:.2f}"
        print(f"| {job} | {facts['seconds']:.1f} | {speeds} | {peak} |")


if __name__ == "__main__":
    main()
