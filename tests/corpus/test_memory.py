"""What a build holds in memory does not grow with its input."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

_SHARD = 2_000_000  # bytes of text
_BUILD = """
import sys
from pathlib import Path
from yalm.corpus.engine import Engine
from yalm.corpus.pipeline import build
from yalm.corpus.settings import CorpusSettings
folder = Path(sys.argv[1])
corpus = build(CorpusSettings.load(folder / "settings.toml", []), Engine(workers=1))
[peak] = [line.split()[1] for line in Path("/proc/self/status").read_text().split("\\n") if line.startswith("VmHWM")]
print(peak, len(list(corpus.documents.rglob("*.jsonl.zst"))))
"""
_SETTINGS = """
output = "{folder}/out"
shard_bytes = {shard}
duplicates = {{ bands = 4, shingle_words = 3 }}
[[parts]]
name = "web"
skip = ["language", "length", "entropy", "repetition", "boilerplate"]
source = {{ kind = "jsonl", paths = ["{folder}/web.jsonl"] }}
"""


def pages(size: int) -> list[str]:
    """Pages of short lines, no two alike, of many domains; a fourth has a near copy too, some have a copy."""
    draw = random.Random(1)
    found = []
    while size > 0:
        lines = [f"word{draw.randrange(1 << 30):x} and {draw.randrange(1 << 30)}" for _ in range(60)]
        versions = [lines, [*lines[:30], "another line", *lines[30:]], lines][
            : 1 + (len(found) % 4 == 0) * draw.choice((1, 2))
        ]
        for version in versions:
            text = "\n".join(version)
            size -= len(text)
            url = f"https://site-{draw.randrange(10_000)}.example/{len(found)}"
            found.append(json.dumps({"id": str(len(found)), "url": url, "text": text}))
    return found


def peak(folder: Path, shards: int) -> int:
    """KiB that a process held at most which built a corpus of so many shards."""
    folder.mkdir()
    (folder / "web.jsonl").write_text("\n".join(pages(shards * _SHARD)))
    (folder / "settings.toml").write_text(_SETTINGS.format(folder=folder, shard=_SHARD))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _BUILD, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    held, files = map(int, done.stdout.split())
    assert files > 0.9 * shards
    return held


def test_eight_shards_take_the_memory_of_two(tmp_path: Path) -> None:
    two, eight = peak(tmp_path / "two", 2), peak(tmp_path / "eight", 8)
    assert eight < two + (32 << 10)  # of 12 MB more text, a slice of near copies among it: 17 MiB as measured
