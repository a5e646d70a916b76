"""What tests share: the golden set, also as other programs save it, made-up texts, a tiny run and how to read it."""

import json
import random
import re
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from yalm.inference.files import complete_file
from yalm.inference.loading import load
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


def released(folder: Path) -> dict[str, dict[str, Tensor]]:
    """All tensors by file and name."""
    return {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("layer_*.pt"))}


def split(folder: Path, ranks: int) -> Path:
    """The golden weights as tensor-parallel ranks hold them."""
    folder.mkdir(parents=True)
    for file, tensors in released(GOLDEN / "weights").items():
        pieces: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
        for name, tensor in tensors.items():
            if name.startswith(("mlp.dense_ffn_hidden", "mlp.dense_ffn_gate")):
                tensor = F.pad(tensor, (*(0,) * (2 * tensor.dim() - 1), -len(tensor) % ranks))
            if name == "mlp.dense_ffn_output.weight":
                tensor = F.pad(tensor, (0, -tensor.shape[1] % ranks))
            whole = "norm" in name or name in ("attention.dense.bias", "mlp.dense_ffn_output.bias", "dense.bias")
            by_columns = name in ("attention.dense.weight", "mlp.dense_ffn_output.weight", "dense.weight")
            parts = (tensor,) * ranks if whole else tensor.chunk(ranks, dim=int(by_columns))
            for piece, part in zip(pieces, parts, strict=True):
                piece[name] = part.clone()
        for rank, piece in enumerate(pieces):
            torch.save(piece, folder / file.replace("model_00", f"model_{rank:02d}"))
    (folder / "mp_rank_00_model_states.pt").write_bytes(b"what GPT-NeoX puts beside them")
    return folder


# What stands before a tensor's name in a file of all parts; the golden model has three layers.
PREFIXES = {
    "deepspeed": {0: "language_model.embedding.", 1: "language_model.projector.", 7: "language_model.output_layer."}
    | {layer + 3: f"language_model.transformer.layers.{layer}." for layer in range(3)},
    "neox": {number: f"sequential.{number}." for number in (0, 1, 3, 4, 5, 7)},
    "pipeline": {0: "tied_modules.embed."} | {number: f"{number}." for number in (1, 3, 4, 5, 7)},
}
PREFIXES["megatron"] = PREFIXES["deepspeed"]


def write_rank_files(folder: Path, ranks: int, kind: str, **beside: Any) -> Path:
    """The golden weights as DeepSpeed, GPT-NeoX or Megatron save them: all parts in one file a rank, with its state."""
    parts: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    for file, tensors in released(split(folder / "parts", ranks)).items():
        number, rank = map(int, re.findall(r"\d+", file))
        parts[rank] |= {PREFIXES[kind][number] + name: tensor for name, tensor in tensors.items()}
    shutil.rmtree(folder / "parts")
    for rank, weights in enumerate(parts):
        state = {
            "args": Namespace(num_layers=3, params_dtype=torch.bfloat16),
            "checkpoint_version": 2.0,
            "optimizer": {"state": {"exp_avg": torch.ones(1000)}},
            "random_rng_state": random.getstate(),
            "np_rng_state": numpy.random.get_state(),
            "torch_rng_state": torch.get_rng_state(),
        } | beside
        path = folder / f"mp_rank_{rank:02d}_model_states.pt"
        if kind == "megatron":
            path = folder / f"mp_rank_{rank:02d}" / "model_optim_rng.pt"
            path.parent.mkdir()
        torch.save(state | ({"model": nested(weights)} if kind == "megatron" else {"module": weights}), path)
    return folder


def nested(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Dicts in dicts as Megatron saves them: by module, the layers' names flat."""
    tree: dict[str, Any] = {}
    for name, tensor in weights.items():
        *path, last = name.split(".") if "embedding" in name else name.split(".", 2)
        place = tree
        for step in path:
            place = place.setdefault(step, {})
        place[last] = tensor
    return tree


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


def complete(folder: Path, source: Path, output: Path, **options: Any) -> None:
    """Complete a file of prompts, by a model that is loaded for it."""
    for _ in complete_file(load(folder), source, output, **options):
        pass
