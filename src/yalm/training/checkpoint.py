"""Checkpoints: a Hugging Face folder with the training state inside, atomic, kept by count.

    RUN/checkpoints/step-00001200/
        config.json  model-*.safetensors  tokenizer.model …    the model (fp32 master weights); loads anywhere
        training_state/                                        optimizer moments, by PyTorch's distributed checkpoint
        progress.json                                          steps, sequences and tokens consumed

A folder appears by rename when all of it is on disk, so the newest one is always whole. The weights are stored once:
a resumed run reads them from the model folder. Nothing random needs saving, for all randomness comes from (seed, step).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state
from torch.distributed.checkpoint.state_dict_saver import save as save_state

from yalm.atomic import atomic_folder
from yalm.errors import YalmError
from yalm.model.folder import load_weights, read_config, write_folder
from yalm.model.network import Yalm
from yalm.training.parallel import World

STATE_FOLDER = "training_state"
PROGRESS_FILE = "progress.json"


@dataclass(frozen=True)
class Progress:
    """How far a run is: finished steps, the sequences (the position in the data) and the tokens they consumed.

    `loss_scale` and `clean_steps` are the state of `LossScale`, which only fp16 changes.
    """

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    loss_scale: float = 1.0
    clean_steps: int = 0


class Checkpoints:
    """The checkpoints of one run, newest last; all but the last `keep` are removed."""

    def __init__(self, folder: Path, keep: int, tokenizer_file: Path) -> None:
        self.folder = folder
        self.keep = keep
        self.tokenizer_file = tokenizer_file

    def latest(self) -> Path | None:
        """The newest whole checkpoint, if there is one."""
        folders = sorted(self.folder.glob("step-*")) if self.folder.is_dir() else []
        return folders[-1] if folders else None

    def save(self, model: Yalm, optimizer: torch.optim.Optimizer, progress: Progress, world: World) -> Path:
        """Write a checkpoint from all ranks together; returns its folder."""
        path = self.folder / f"step-{progress.step:08d}"
        if path.exists():
            return path
        # The model is gathered on rank 0, which writes it; the optimizer's shards are written by their owners.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(model, options=options)
        with _shared_folder(path, world) as temporary:
            if world.is_main:
                write_folder(temporary, model.config, state, self.tokenizer_file)
                (temporary / PROGRESS_FILE).write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")
            optimizer_state = get_optimizer_state_dict(model, optimizer)
            save_state(optimizer_state, checkpoint_id=temporary / STATE_FOLDER)
        if world.is_main:
            for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
                shutil.rmtree(old)
        return path


def read_progress(checkpoint: Path) -> Progress:
    """How far `checkpoint` is; YalmError if it is none of ours."""
    try:
        return Progress(**json.loads((checkpoint / PROGRESS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise YalmError(f"{checkpoint / PROGRESS_FILE}: cannot be read ({error}); remove this checkpoint") from None


def restore_model(model: Yalm, checkpoint: Path) -> None:
    """Load the weights of `checkpoint` into a plain model, before it is parallelized."""
    config = read_config(checkpoint)
    if config != model.config:
        raise YalmError(
            f"{checkpoint}: its model has other sizes than these settings; choose another output or --fresh"
        )
    load_weights(checkpoint, dict(model.state_dict()))


def restore_optimizer(model: Yalm, optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Load the optimizer's state of `checkpoint`, on this or another number of ranks."""
    state = get_optimizer_state_dict(model, optimizer)
    load_state(state, checkpoint_id=checkpoint / STATE_FOLDER)
    set_optimizer_state_dict(model, optimizer, state)


@contextmanager
def _shared_folder(path: Path, world: World) -> Iterator[Path]:
    """One atomic folder that all ranks write to: rank 0 makes and renames it, the others wait for it."""
    if world.size == 1:
        with atomic_folder(path) as temporary:
            yield temporary
        return
    if world.is_main:
        with atomic_folder(path) as temporary:
            names = [str(temporary)]
            dist.broadcast_object_list(names)
            yield temporary
            dist.barrier()
    else:
        names = [""]
        dist.broadcast_object_list(names)
        yield Path(names[0])
        dist.barrier()
    dist.barrier()
