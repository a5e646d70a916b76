"""A model on disk: a Hugging Face folder, the one format that is written and read.

    config.json  generation_config.json  tokenizer.model
    model-00001-of-0000N.safetensors …  model.safetensors.index.json

One shard per part (embedding, each layer, output), so that a layer can be fetched, replaced or streamed alone. The
folder appears whole or not at all. Nothing in it is code, nothing is unpickled, and every tensor's name and shape is
checked against `config.json` before it is used. The tied output table is stored once, as the embedding's.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from yalm.atomic import atomic_folder
from yalm.errors import YalmError
from yalm.model.network import ModelConfig, Yalm, build, parts

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.model"
TIED = "lm_head.weight"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Our names to the ones that transformers and vLLM expect in config.json.
CONFIG_NAMES = {
    "vocab_size": "vocab_size",
    "embedding_size": "embedding_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "rotary_base": "rope_theta",
    "layer_norm_eps": "layer_norm_eps",
}


def save_folder(
    folder: str | Path, config: ModelConfig, state: Mapping[str, Tensor], tokenizer_file: str | Path | None = None
) -> None:
    """Write a model folder atomically, replacing an older one.

    `state` holds the tensors by name, as `Yalm.state_dict()` gives them, in the type they are to be stored in.
    """
    with atomic_folder(Path(folder)) as temporary:
        write_folder(temporary, config, state, tokenizer_file)


def write_folder(
    folder: Path, config: ModelConfig, state: Mapping[str, Tensor], tokenizer_file: str | Path | None = None
) -> None:
    """Write the files of a model into an existing folder; for callers that add files of their own before a rename."""
    groups = _shards(config)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        shard = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        save_file({name: state[name].contiguous() for name in names}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, shard)
    total_size = sum(state[name].nbytes for name in weight_map)
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    _write_json(folder / INDEX_FILE, index)
    dtype = state[next(iter(weight_map))].dtype
    _write_json(folder / CONFIG_FILE, config_json(config, dtype))
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    if tokenizer_file is not None:
        shutil.copyfile(tokenizer_file, folder / TOKENIZER_FILE)


def config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json."""
    values = config.model_dump()
    return {
        "architectures": ["YalmForCausalLM"],
        "model_type": "yalm",
        **{theirs: values[ours] for ours, theirs in CONFIG_NAMES.items()},
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_size,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": str(dtype).removeprefix("torch."),
    }


def read_config(folder: str | Path) -> ModelConfig:
    """The sizes of the model in `folder`; YalmError if it is no folder of ours."""
    path = Path(folder) / CONFIG_FILE
    values = _read_json(path)
    if values.get("model_type") != "yalm":
        raise YalmError(f"{path}: model_type is {values.get('model_type')!r}, not 'yalm'; give a folder made by yalm")
    missing = [theirs for theirs in CONFIG_NAMES.values() if theirs not in values]
    if missing:
        raise YalmError(f"{path}: key {missing[0]!r} is missing; the file is damaged, copy it again")
    return ModelConfig.parse({ours: values[theirs] for ours, theirs in CONFIG_NAMES.items()}, source=str(path))


def load_folder(folder: str | Path, dtype: str = "fp32", device: str | torch.device = "cpu") -> Yalm:
    """The model in `folder`, in memory on `device`, converted to `dtype` ("fp32", "bf16", "fp16").

    Raises YalmError for missing or damaged files, tensors that are missing, unknown or of a wrong shape.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise YalmError(f"dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    model = build(read_config(folder), device, DTYPES[dtype])
    load_weights(folder, dict(model.state_dict()))
    return model


def load_weights(folder: Path, state: dict[str, Tensor]) -> None:
    """Copy the tensors of `folder` into those of `state`, in place; every one must be there, and no other."""
    weight_map = _read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict):
        raise YalmError(f"{folder / INDEX_FILE}: has no weight_map; the file is damaged, copy it again")
    expected = set(state) - {TIED}
    for problem, names in (("missing", expected - set(weight_map)), ("unknown", set(weight_map) - expected)):
        if names:
            raise YalmError(f"{folder}: tensor {min(names)!r} is {problem}; config.json and the weights do not fit")
    for shard in sorted(set(weight_map.values())):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise YalmError(f"{folder / INDEX_FILE}: shard {shard!r} is not a plain file name; refused")
        try:
            with safe_open(folder / shard, framework="pt") as tensors, torch.no_grad():
                for name in (name for name, file in weight_map.items() if file == shard):
                    stored = tensors.get_tensor(name)
                    if stored.shape != state[name].shape:
                        raise YalmError(
                            f"{folder / shard}: tensor {name!r} is {tuple(stored.shape)}, config.json makes it "
                            f"{tuple(state[name].shape)}; the two do not fit"
                        )
                    state[name].copy_(stored)
        except (OSError, SafetensorError) as error:
            raise YalmError(f"{folder / shard}: cannot be read ({error}); copy the file again") from None


def _shards(config: ModelConfig) -> list[list[str]]:
    """Tensor names by shard: one for each part, the output's bias with the output."""
    model = build(config, "meta")
    groups = [[f"{prefix}.{name}" for name, _ in module.named_parameters()] for prefix, module in parts(model)]
    groups[-1].append("lm_head.bias")
    return groups


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise YalmError(f"{path}: not found; give a model folder (with config.json and *.safetensors)") from None
    except (OSError, ValueError) as error:
        raise YalmError(f"{path}: cannot be read as JSON ({error}); copy the file again") from None
    if not isinstance(values, dict):
        raise YalmError(f"{path}: expected a JSON object; copy the file again")
    return values
