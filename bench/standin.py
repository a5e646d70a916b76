"""A full-size stand-in of the released weights, for machines that have neither 200 GB of disk nor the download.

    python bench/standin.py WEIGHTS                      # 80 layers in 5.6 GB of disk
    python bench/standin.py WEIGHTS --layers 2           # the same sizes, two layers
    python bench/standin.py WEIGHTS --preset demo --distinct 3

Every file has the real names, shapes and type, and random weights of the scale that training starts from, so a forward
pass gives finite, useless numbers. The first layer has no input LayerNorm and so its own file; of the others only
`--distinct` are real, and the rest are hard links to them. Whoever reads them reads real bytes, but finds them in the
system's cache sooner than 80 different files: drop or outgrow the cache before measuring.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import build
from yalm.model.presets import preset
from yalm.model.release import release_files, release_path
from yalm.model.shards import DTYPES

STD = 0.02


def make_standin(folder: Path, config: ModelConfig, distinct: int, dtype: torch.dtype, seed: int = 0) -> int:
    """Write the files of such a model into `folder`; returns the bytes they take on the disk."""
    folder.mkdir(parents=True)
    shapes = build(config, "meta").state_dict()
    generator = torch.Generator().manual_seed(seed)
    written = 0
    for number, names in release_files(config.num_layers).items():
        path = release_path(folder, number)
        is_layer = 3 < number < config.num_layers + 3
        if is_layer and number - 4 >= distinct:
            os.link(release_path(folder, 4 + (number - 4) % distinct), path)
            continue
        torch.save(draw({theirs: shapes[ours] for ours, theirs in names.items()}, config, dtype, generator), path)
        written += path.stat().st_size
        print(f"{path.name}: {path.stat().st_size / 1e9:.3f} GB", file=sys.stderr)
    return written


def draw(
    specs: Mapping[str, Tensor], config: ModelConfig, dtype: torch.dtype, generator: torch.Generator
) -> dict[str, Tensor]:
    """Tensors as training starts with them: matrices N(0, 0.02), smaller where they write to the residual."""
    tensors = {}
    for name, spec in specs.items():
        tensor = torch.empty(spec.shape, dtype=dtype)
        if tensor.dim() == 2:
            residual = name in ("attention.dense.weight", "mlp.dense_ffn_output.weight")
            tensor.normal_(0.0, STD / (2 * config.num_layers) ** 0.5 if residual else STD, generator=generator)
        else:
            tensor.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        tensors[name] = tensor
    return tensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="WEIGHTS")
    parser.add_argument("--preset", default="yalm-100b", help="sizes")
    parser.add_argument("--layers", type=int, help="number of layers, if not the preset's")
    parser.add_argument("--distinct", type=int, default=1, help="real files among the layers after the first")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    try:
        config = preset(arguments.preset)
    except YalmError as error:
        parser.error(str(error))
    if arguments.layers is not None:
        config = config.model_copy(update={"num_layers": arguments.layers})
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists already")
    try:
        size = make_standin(arguments.folder, config, arguments.distinct, DTYPES[arguments.dtype], arguments.seed)
    except BaseException:
        shutil.rmtree(arguments.folder, ignore_errors=True)
        raise
    print(f"{arguments.folder}: {config.num_layers} layers in {size / 1e9:.2f} GB of disk")


if __name__ == "__main__":
    main()
