"""The plan as settings of a run: a file for `yalm train` that wants only the token folders.

What the plan does not know it leaves to training's defaults: the learning rate, how often to validate. Keys are
written as plain values, for planning knows nothing of training; a test reads the file as training does.
"""

from pathlib import Path
from typing import Any

import tomli_w

from yalm.atomic import write_text
from yalm.model.config import ModelConfig

# Customary: a hundredth of the run warms up.
WARMUP_SHARE = 0.01


def run_settings(facts: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """Plain values of the planned run, by section; `facts` are those of `search.plan` with the preset's name."""
    layout, question = facts["layout"], facts["question"]
    model: dict[str, Any] = {"preset": facts["model"]}
    if layout["sequence"] > config.max_positions:
        model["max_positions"] = layout["sequence"]
    split = {name: layout[name] for name in ("tensor", "pipeline") if layout[name] > 1}
    return {
        "output": f"runs/{facts['model']}",
        "model": model,
        "data": {
            "sequence_length": layout["sequence"],
            "parts": [
                {"name": "russian", "path": "TOKENS/ru", "weight": 0.5},
                {"name": "english", "path": "TOKENS/en", "weight": 0.5},
            ],
        },
        "batch": {
            "sequences": layout["data"] * layout["micro_batch"] * layout["accumulation"],
            "micro_sequences": layout["micro_batch"],
        },
        "schedule": {
            "tokens": round(question["tokens"]),
            "warmup_tokens": round(WARMUP_SHARE * question["tokens"]),
        },
        **({"optimizer": {"moments": layout["moments"]}} if layout["moments"] != "fp32" else {}),
        "compute": {
            "precision": layout["precision"],
            "zero": layout["zero"],
            "recompute": layout["recompute"],
            "prefetch": layout["prefetch"],
            **split,
        },
        "checkpoint": {"every_steps": max(1, round(facts["reliability"]["interval_seconds"] / facts["step_seconds"]))},
    }


def write_settings(facts: dict[str, Any], config: ModelConfig, file: Path) -> None:
    """Write `run_settings` as TOML, with what is to be done before and how to start it."""
    question = facts["question"]
    head = (
        f"# {facts['model']} on {question['gpus']} {question['gpu']}, as planned by `yalm plan`.\n"
        "# Put in your token folders (data.parts), choose optimizer.lr, and start on every node:\n"
        f"#     torchrun --nnodes N --nproc-per-node GPUS --rdzv-endpoint HOST:PORT -m yalm train {file.name}\n\n"
    )
    write_text(file, head + tomli_w.dumps(run_settings(facts, config)))
