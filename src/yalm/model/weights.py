"""The weights of a model wherever they are: a model folder or released files, read alike."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.folder import CONFIG_FILE, ModelFolder
from yalm.model.quantize import Quantization
from yalm.model.release import Release, layer_files, rank_files
from yalm.model.shards import Span


class Weights(Protocol):
    """What `ModelFolder` and `Release` have in common: sizes, types, and the tensors by our names."""

    @property
    def config(self) -> ModelConfig:
        """The sizes."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of all tensors, of quantized matrices apart."""

    @property
    def quantization(self) -> Quantization | None:
        """How matrices are stored; None is in `dtype`."""

    def read(self, name: str) -> Tensor:
        """A tensor on the CPU, as it is stored."""

    def span(self, name: str) -> Span | None:
        """Where its bytes lie on the disk; None where they do not lie in one piece."""


def open_weights(path: str | Path, heads: int | None = None, positions: int | None = None) -> ModelFolder | Release:
    """The weights in the folder `path`, of whichever kind it holds.

    `heads` and `positions` complete released files whose sizes no preset has. YalmError if the folder holds neither
    kind, for what `ModelFolder` and `Release` refuse, and for heads or positions that a model folder contradicts.
    """
    folder = Path(path)
    if (folder / CONFIG_FILE).is_file():
        weights = ModelFolder(folder)
        known = {"heads": (heads, weights.config.num_heads), "positions": (positions, weights.config.max_positions)}
        for what, (asked, has) in known.items():
            if asked not in (None, has):
                raise YalmError(f"{folder / CONFIG_FILE}: the model has {has} {what}, not {asked}; leave that out")
        return weights
    if layer_files(folder) or rank_files(folder):
        return Release(folder, heads, positions)
    raise YalmError(
        f"{folder}: no weights here; expected a model folder (config.json, *.safetensors) or released files "
        "(layer_00-model_00-model_states.pt and on, or mp_rank_00…)"
    )
