"""A model on disk: a Hugging Face folder, the one format that is written and read.

    config.json  generation_config.json  tokenizer.model  SHA256SUMS
    model-00001-of-0000N.safetensors …  model.safetensors.index.json

One shard per part (embedding, each layer, output), so that a layer can be fetched, replaced or streamed alone. The
folder appears whole or not at all. Nothing in it is code, nothing is unpickled, and every tensor's name and shape is
checked against `config.json` before it is used. The tied output table is stored once, as the embedding's. Checksums
are of the bytes as they were handed to the disk; `yalm verify` compares them, ordinary loading does not.

A quantized folder says so in `config.json`, and holds the tensors of `QuantizedLinear` in place of each matrix; all
others are of one type, as everywhere. It is made by `yalm convert --quantize`.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from yalm.atomic import atomic_folder
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import Yalm, build, parts
from yalm.model.quantize import Quantization, quantize_modules, quantized_part
from yalm.model.shards import DTYPES, HEADER_DTYPES, Span, file_sha256, read_spans, write_checksums, write_shard

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
TOKENIZER_FILE = "tokenizer.model"
TIED = "lm_head.weight"
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
# Also in config.json, under our own name; folders of other tools may lack it.
PADDING = "intermediate_padding"
QUANTIZATION = "quantization_config"


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
    layout = shards(config)
    checksums = {
        shard: write_shard(folder / shard, {name: state[name] for name in names}, state.__getitem__)
        for shard, names in layout.items()
    }
    dtype = state[next(iter(next(iter(layout.values()))))].dtype
    write_description(folder, config, dtype, checksums, tokenizer_file)


def write_description(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    checksums: Mapping[str, str],
    tokenizer_file: str | Path | None = None,
    quantization: Quantization | None = None,
) -> None:
    """Write all but the shards, whose SHA-256 (hex) the caller has, into a folder that holds them."""
    layout = shards(config, dtype, quantization)
    index = {
        "metadata": {"total_size": sum(spec.nbytes for specs in layout.values() for spec in specs.values())},
        "weight_map": {name: shard for shard, specs in layout.items() for name in specs},
    }
    _write_json(folder / INDEX_FILE, index)
    _write_json(folder / CONFIG_FILE, config_json(config, dtype, quantization))
    _write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    names = [INDEX_FILE, CONFIG_FILE, "generation_config.json"]
    if tokenizer_file is not None:
        shutil.copyfile(tokenizer_file, folder / TOKENIZER_FILE)
        names.append(TOKENIZER_FILE)
    write_checksums(folder, {**checksums, **{name: file_sha256(folder / name) for name in names}})


def config_json(config: ModelConfig, dtype: torch.dtype, quantization: Quantization | None = None) -> dict[str, Any]:
    """The content of config.json."""
    values = config.model_dump()
    content = {
        "architectures": ["YalmForCausalLM"],
        "model_type": "yalm",
        **{theirs: values[ours] for ours, theirs in CONFIG_NAMES.items()},
        PADDING: config.intermediate_padding,
        "num_key_value_heads": config.num_heads,
        "head_dim": config.head_size,
        "hidden_act": "gelu",
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": str(dtype).removeprefix("torch."),
    }
    return content if quantization is None else content | {QUANTIZATION: quantization.model_dump()}


def read_config(folder: str | Path) -> ModelConfig:
    """The sizes of the model in `folder`; YalmError if it is no folder of ours."""
    path = Path(folder) / CONFIG_FILE
    values = _read_json(path)
    if values.get("model_type") != "yalm":
        raise YalmError(f"{path}: model_type is {values.get('model_type')!r}, not 'yalm'; give a folder made by yalm")
    missing = [theirs for theirs in CONFIG_NAMES.values() if theirs not in values]
    if missing:
        raise YalmError(f"{path}: key {missing[0]!r} is missing; the file is damaged, copy it again")
    sizes = {ours: values[theirs] for ours, theirs in CONFIG_NAMES.items()}
    return ModelConfig.parse(sizes | {PADDING: values.get(PADDING, 0)}, source=str(path))


def read_quantization(folder: str | Path) -> Quantization | None:
    """How the matrices in `folder` are quantized, if they are; YalmError if not by yalm."""
    path = Path(folder) / CONFIG_FILE
    values = _read_json(path).get(QUANTIZATION)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise YalmError(f"{path}: {QUANTIZATION} is no JSON object; the file is damaged, copy it again")
    return Quantization.parse(values, source=f"{path}: {QUANTIZATION}")


class ModelFolder:
    """The weights in a model folder, read tensor by tensor.

    Opening reads `config.json`, the index and the shards' headers, and raises YalmError for what is missing or
    damaged, and for tensors that are missing, unknown, or of another shape than `config.json` makes them.

    Attributes: `path`, `config`, `quantization` (None if there is none), `dtype` of all tensors but those that
    quantization made, `places` (tensor name to shard).
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder)
        self.config, self.quantization = read_config(folder), read_quantization(folder)
        weight_map = _read_json(self.path / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict):
            raise YalmError(f"{self.path / INDEX_FILE}: has no weight_map; the file is damaged, copy it again")
        self.places: dict[str, str] = weight_map
        layout = shards(self.config, quantization=self.quantization)
        expected = {name: spec for specs in layout.values() for name, spec in specs.items()}
        differences = {"missing": set(expected) - set(weight_map), "unknown": set(weight_map) - set(expected)}
        for problem, names in differences.items():
            if names:
                raise YalmError(f"{folder}: tensor {min(names)!r} is {problem}; config.json and the weights do not fit")
        found = {name: self._check(name, spec) for name, spec in expected.items()}
        for name in [name for name in found if self.quantization is not None and quantized_part(name)]:
            stored, right = found.pop(name), HEADER_DTYPES[expected[name].dtype]
            if stored != right:
                raise YalmError(
                    f"{self.path / self.places[name]}: tensor {name!r} is of {stored}, {QUANTIZATION} in config.json "
                    f"makes it {right}; the two do not fit"
                )
        dtypes = set(found.values())
        if len(dtypes) > 1 or not dtypes <= {HEADER_DTYPES[dtype] for dtype in DTYPES.values()}:
            raise YalmError(f"{folder}: tensors of {', '.join(sorted(dtypes))}; expected one of {', '.join(DTYPES)}")
        self.dtype = next(dtype for dtype, name in HEADER_DTYPES.items() if name in dtypes)

    def files(self, names: Iterable[str]) -> list[Path]:
        """The shards that hold these tensors."""
        return sorted({self.path / self.places[name] for name in names})

    def read(self, name: str, part: tuple[slice, ...] = (slice(None),)) -> Tensor:
        """A tensor of the model by its name, or a `part` of it, on the CPU, as it is stored. KeyError if there is none.

        A tensor in its file's pages, which the system reads when they are used: what is not in `part` is not.
        """
        shard = self.path / self.places[name]
        try:
            with safe_open(shard, framework="pt") as tensors:
                tensor: Tensor = tensors.get_slice(name)[part]
                return tensor
        except (OSError, SafetensorError) as error:
            raise YalmError(f"{shard}: cannot be read ({error}); copy the file again") from None

    def span(self, name: str) -> Span | None:
        """Where that tensor lies on the disk. KeyError if there is none."""
        return read_spans(self.path / self.places[name])[name]

    def _check(self, name: str, spec: Tensor) -> str:
        """Hold a tensor's entry in its shard's header against `spec`; returns the type written there."""
        shard = self.places[name]
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise YalmError(f"{self.path / INDEX_FILE}: shard {shard!r} is not a plain file name; refused")
        try:
            with safe_open(self.path / shard, framework="pt") as tensors:
                stored = tensors.get_slice(name)
                shape, dtype = tuple(stored.get_shape()), str(stored.get_dtype())
        except (OSError, SafetensorError) as error:
            raise YalmError(f"{self.path / shard}: cannot be read ({error}); copy the file again") from None
        if shape != spec.shape:
            raise YalmError(
                f"{self.path / shard}: tensor {name!r} is {shape}, config.json makes it {tuple(spec.shape)}; "
                "the two do not fit"
            )
        return dtype


def load_folder(folder: str | Path, dtype: str = "fp32", device: str | torch.device = "cpu") -> Yalm:
    """The model in `folder`, in memory on `device`, converted to `dtype` ("fp32", "bf16", "fp16").

    What is quantized stays so; `dtype` is that of all else, and of the activations.
    Raises YalmError for missing or damaged files, tensors that are missing, unknown or of a wrong shape.
    """
    source = ModelFolder(folder)
    model = _build(source.config, torch_dtype(dtype), source.quantization)
    model.to_empty(device=device)
    model.tie_weights()
    state = model.state_dict()
    with torch.no_grad():
        for name in source.places:
            state[name].copy_(source.read(name))
    return model


def torch_dtype(name: str) -> torch.dtype:
    """The type of that name; YalmError if it is none of ours."""
    if name not in DTYPES:
        raise YalmError(f"dtype {name!r} is not known; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def shards(
    config: ModelConfig, dtype: torch.dtype = torch.float32, quantization: Quantization | None = None
) -> dict[str, dict[str, Tensor]]:
    """File name to its tensors on "meta", by name: one file for each part, the output's bias with the output."""
    model = _build(config, dtype, quantization)
    groups = [
        {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()} for prefix, module in parts(model)
    ]
    groups[-1]["lm_head.bias"] = model.lm_head.bias.detach()
    return {
        f"model-{number:05d}-of-{len(groups):05d}.safetensors": group for number, group in enumerate(groups, start=1)
    }


def _build(config: ModelConfig, dtype: torch.dtype, quantization: Quantization | None) -> Yalm:
    """The network on "meta", as it is stored."""
    model = build(config, "meta", dtype)
    return model if quantization is None else quantize_modules(model, quantization)


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
