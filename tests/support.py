"""What tests of several rooms share: the golden set, made-up texts, a tiny run and how to read it."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from yalm.model.folder import load_folder
from yalm.model.network import Yalm
from yalm.model.release import load_release
from yalm.training.metrics import read_metrics
from yalm.training.settings import TrainSettings

MakeSettings = Callable[..., TrainSettings]
GOLDEN = Path(__file__).parent / "golden" / "yalm-tiny"
GOLDEN_CONFIG = json.loads((GOLDEN / "config.json").read_text())


def load_golden_model(dtype: torch.dtype = torch.float32) -> Yalm:
    """The reference's weights as a network of ours."""
    heads, positions = GOLDEN_CONFIG["num_attention_heads"], GOLDEN_CONFIG["max_position_embeddings"]
    return load_release(GOLDEN / "weights", heads, positions, dtype)


def write_texts(folder: Path, seed: int, documents: int = 60) -> Path:
    """A JSON-lines file of made-up sentences with some regularity, so that a model has something to learn."""
    draw = random.Random(seed)
    words = ["дом", "река", "the river", "старый", "bridge", "over", "и", "лес", "тихо", "stands", "у воды", "a stone"]
    lines = []
    for _ in range(documents):
        sentences = [" ".join(draw.choices(words[: 4 + draw.randrange(8)], k=8)) + "." for _ in range(6)]
        lines.append(json.dumps({"text": "\n".join(sentences)}, ensure_ascii=False))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"texts-{seed}.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def settings_values(folders: dict[str, Path], output: Path) -> dict[str, Any]:
    """Plain values of a run that takes a second: 12 steps of 2 micro-batches."""
    return {
        "output": str(output),
        "model": {
            "preset": "demo",
            "embedding_size": 16,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 48,
            "max_positions": 32,
        },
        "data": {
            "sequence_length": 24,
            "parts": [
                {"name": "first", "path": str(folders["first"]), "weight": 0.5},
                {"name": "second", "path": str(folders["second"]), "weight": 0.5},
            ],
            "validation": [{"name": "held_out", "path": str(folders["held_out"]), "weight": 1}],
        },
        "batch": {"sequences": 8, "micro_sequences": 4},
        "optimizer": {"lr": 0.01},
        "schedule": {"tokens": 12 * 8 * 24, "warmup_tokens": 2 * 8 * 24},
        "compute": {"device": "cpu", "threads": 1},
        "validation": {"every_steps": 6, "sequences": 5},
        "checkpoint": {"every_steps": 4},
        "metrics": {"every_steps": 1, "tensorboard": False},
    }


def losses(settings: TrainSettings) -> list[float]:
    """The training losses of a run, step by step."""
    return [record["loss"] for record in read_metrics(settings.output) if "loss" in record]


def validations(settings: TrainSettings) -> dict[int, dict[str, Any]]:
    """The validation results of a run by step."""
    return {record["step"]: record["validation"] for record in read_metrics(settings.output) if "validation" in record}


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The parameters in a model folder."""
    return dict(load_folder(checkpoint).named_parameters())
