"""A small corpus with trouble planted in it, built by the real pipeline, for what looks into a corpus."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from made_up import text
from support import GOLDEN
from yalm.corpus.engine import Engine
from yalm.corpus.pipeline import build
from yalm.corpus.rules.quality import Features, Header, QualityModel
from yalm.corpus.settings import CorpusSettings

EVIL = "<script>alert(1)</script>"


def documents(draw: random.Random) -> Iterator[dict[str, Any]]:
    """Good texts of two languages, and what the rules are for."""
    for number in range(40):
        address = f"https://a{number}.example/"
        yield {"id": f"good-{number}", "text": text(number, ("en", "ru")[number % 2]), "url": address}
    copied = f"{EVIL} {text(1000, 'en')}"
    for number in range(6):
        yield {"id": f"copy-{number}{EVIL}", "text": copied + " Indeed." * (number == 0)}
    words = copied.split(" ")
    yield {"id": "near", "text": " ".join([*words[:40], "otherwise", *words[41:]])}
    for number in range(3):
        yield {"id": f"short-{number}", "text": "Too short."}
        yield {"id": f"random-{number}", "text": "".join(chr(draw.randrange(33, 127)) for _ in range(2000))}
        yield {"id": f"spam-{number}", "text": "buy cheap flights online " * 100}
    for number in range(12):
        lines = [f"Thing number {number} of the shop.", text(3000, "en"), text(2000 + number, "en", sentences=3)]
        yield {"id": f"shop-{number}", "text": "\n".join(lines), "url": f"https://shop.example/{number}"}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a corpus of two parts: `web` with trouble of all kinds, `books` with ids of `web` again."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(1)
    lines = [json.dumps(row, ensure_ascii=False) for row in documents(draw)]
    (folder / "web.jsonl").write_text("\n".join([*lines, f"{EVIL} is no JSON", "[]"]))
    rows = [{"id": f"good-{number}", "text": text(100 + number), "language": "ru"} for number in range(10)]
    rows += [{"id": f"twin-{number}", "text": rows[0]["text"], "language": "ru"} for number in range(2)]
    (folder / "books.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    weights = np.random.default_rng(1).normal(size=1 << 12).astype(np.float32)
    header = Header(features=Features(bits=12), bias=0.5, slope=1.0, intercept=0.0)
    QualityModel(header, weights).save(folder / "quality.safetensors")
    sources = {name: {"kind": "jsonl", "paths": [str(folder / f"{name}.jsonl")]} for name in ("web", "books")}
    values = {
        "output": str(folder / "out"),
        "parts": [
            {"name": "web", "source": sources["web"], "weight": 3},
            {"name": "books", "source": sources["books"], "skip": ["duplicates"], "language": "ru"},
        ],
        "domains": {"min_documents": 5, "template_documents": 4},
        "quality": {"model": str(folder / "quality.safetensors"), "threshold": 0.4},
        "tokens": {"tokenizer": str(GOLDEN / "vocab.sp")},
        "shard_bytes": 60_000,
        "max_reject_share": 0.5,
        "validation_share": 0.2,
    }
    build(CorpusSettings.parse(values, "settings"), Engine(workers=1))
    return folder / "out"
