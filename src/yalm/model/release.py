"""The layout in which YaLM 100B was released, and its translation to our names.

One pickle per part, `layer_NN-model_00-model_states.pt`: 00 the token table, 01 the LayerNorm after it, 03 … L+2 the
layers, L+4 the output; 02 and L+3 do not exist. Files from outside are untrusted: only tensors are unpickled, never
code. The number of heads cannot be told from the shapes, so the caller gives it.
"""

from pathlib import Path

import torch
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.network import ModelConfig, Yalm, build

# Ours on the left. The activated branch of the GeGLU is the released `dense_ffn_hidden`; `dense_ffn_gate` is linear.
EMBEDDING_NAMES = {"model.embed_tokens.tokens.weight": "word_embeddings.weight"}
EMBEDDING_NORM_NAMES = {f"model.embed_tokens.norm.{kind}": f"input_layernorm.{kind}" for kind in ("weight", "bias")}
LAYER_MODULES = {
    "input_layernorm": "input_layernorm",
    "self_attn.qkv_proj": "attention.query_key_value",
    "self_attn.o_proj": "attention.dense",
    "post_attention_layernorm": "post_attention_layernorm",
    "mlp.gate_proj": "mlp.dense_ffn_hidden",
    "mlp.up_proj": "mlp.dense_ffn_gate",
    "mlp.down_proj": "mlp.dense_ffn_output",
}
OUTPUT_NAMES = {
    "model.norm.input_norm.weight": "input_layer_norm.weight",
    "model.norm.input_norm.bias": "input_layer_norm.bias",
    "model.norm.dense.weight": "dense.weight",
    "model.norm.dense.bias": "dense.bias",
    "model.norm.output_norm.weight": "output_layer_norm.weight",
    "model.norm.output_norm.bias": "output_layer_norm.bias",
    "lm_head.bias": "output_bias",
}


def layer_names(layer: int) -> dict[str, str]:
    """Our tensor names of a layer to the released ones; layer 0 has no input LayerNorm."""
    return {
        f"model.layers.{layer}.{ours}.{kind}": f"{theirs}.{kind}"
        for ours, theirs in LAYER_MODULES.items()
        for kind in ("weight", "bias")
        if layer > 0 or ours != "input_layernorm"
    }


def release_files(num_layers: int) -> dict[int, dict[str, str]]:
    """File number to its names (ours → released) for a model of `num_layers`."""
    files = {0: EMBEDDING_NAMES, 1: EMBEDDING_NORM_NAMES}
    files |= {layer + 3: layer_names(layer) for layer in range(num_layers)}
    files[num_layers + 4] = OUTPUT_NAMES
    return files


def release_path(folder: Path, number: int) -> Path:
    """The file of that number."""
    return folder / f"layer_{number:02d}-model_00-model_states.pt"


def load_release(folder: str | Path, num_heads: int, max_positions: int, dtype: torch.dtype = torch.float32) -> Yalm:
    """The released weights in `folder` as a network of ours, in memory and in `dtype`.

    Raises YalmError for a missing or unreadable file, a missing tensor, or shapes that do not fit each other.
    """
    folder = Path(folder)
    numbers = sorted(int(file.name[6:8]) for file in folder.glob("layer_[0-9][0-9]-model_00-model_states.pt"))
    if not numbers or numbers[-1] < 5:
        raise YalmError(f"{folder}: no released weights here; expected files layer_00-model_00-model_states.pt and on")
    num_layers = numbers[-1] - 4
    state: dict[str, Tensor] = {}
    for number, names in release_files(num_layers).items():
        tensors = read_release_file(release_path(folder, number))
        for ours, theirs in names.items():
            if theirs not in tensors:
                raise YalmError(
                    f"{release_path(folder, number)}: tensor {theirs!r} is missing; download the file again"
                )
            state[ours] = tensors[theirs].to(dtype)
    vocab_size, embedding_size = state["model.embed_tokens.tokens.weight"].shape
    intermediate_size, hidden_size = state["model.layers.0.mlp.gate_proj.weight"].shape
    config = ModelConfig.parse(
        {
            "vocab_size": vocab_size,
            "embedding_size": embedding_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "intermediate_size": intermediate_size,
            "max_positions": max_positions,
        },
        source=str(folder),
    )
    model = build(config, "meta", dtype)
    state["lm_head.weight"] = state["model.embed_tokens.tokens.weight"]
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise YalmError(f"{folder}: the files do not fit each other ({str(error).splitlines()[-1].strip()})") from None
    model.tie_weights()
    return model


def read_release_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one released file, memory-mapped; anything but a dict of tensors is refused."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise YalmError(f"{path}: the file is missing; download it again") from None
    except Exception as error:  # torch.load raises many types for truncated, foreign and malicious files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise YalmError(f"{path}: not a readable weights file ({reason}); download it again") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise YalmError(f"{path}: expected a plain dict of tensors; this is not a released layer file")
    return content
