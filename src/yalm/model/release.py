"""The layout in which YaLM 100B was released, whole or split over ranks, and its translation to our names.

One pickle per part, `layer_NN-model_MM-model_states.pt`: 00 the token table, 01 the LayerNorm after it, 03 … L+2 the
layers, L+4 the output; 02 and L+3 do not exist. The release has MM = 00 alone. Megatron and GPT-NeoX save one file per
tensor-parallel rank: matrices whose output is split hold runs of rows (and of their bias), those whose input is split
hold runs of columns, all else is the same on every rank. The feed-forward width is then padded with zeros to a
multiple of the ranks.

Files from outside are untrusted: only tensors are unpickled, never code, and every name, shape and type is checked
before one is used. Files are memory-mapped, one at a time. The number of heads cannot be told from the shapes: it
comes from the caller, or from the preset that has these sizes.
"""

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.network import ModelConfig, Yalm, build
from yalm.model.presets import PRESETS
from yalm.model.shards import BLOCK_BYTES, DTYPES

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
# Along which dimension the ranks hold pieces of a tensor; what is not here, every rank holds whole.
SPLIT_ROWS = ("attention.query_key_value", "mlp.dense_ffn_hidden", "mlp.dense_ffn_gate")
SPLIT_COLUMNS = ("attention.dense", "mlp.dense_ffn_output", "dense")
SPLIT_DIMS = (
    {"word_embeddings.weight": 0, "output_bias": 0}
    | {f"{module}.{kind}": 0 for module in SPLIT_ROWS for kind in ("weight", "bias")}
    | {f"{module}.weight": 1 for module in SPLIT_COLUMNS}
)
FILE_NAME = re.compile(r"layer_(\d{2,})-model_(\d{2,})-model_states\.pt")


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


def release_path(folder: Path, number: int, rank: int = 0) -> Path:
    """The file of that number, as that rank holds it."""
    return folder / f"layer_{number:02d}-model_{rank:02d}-model_states.pt"


class Release:
    """The weights in a folder of released files, read tensor by tensor under our names.

    Opening reads the files' tables of contents, not their tensors, and raises YalmError for files that are missing,
    unreadable or untrusted, for tensors that are missing, unknown or of a wrong shape or type, and for heads that do
    not fit. `num_layers` cuts the model after its first layers; files of the others need not be there.

    Attributes: `config`, the sizes as the files hold them (with `intermediate_padding` where the preset says
    how much of the width is padding for the ranks); `dtype` of all tensors; `ranks`.
    """

    def __init__(
        self,
        folder: str | Path,
        num_heads: int | None = None,
        max_positions: int | None = None,
        num_layers: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        found = [FILE_NAME.fullmatch(file.name) for file in sorted(self.folder.glob("layer_*"))]
        keys = {(int(match[1]), int(match[2])) for match in found if match}
        last = max((number for number, _ in keys), default=0)
        if last < 4:
            raise YalmError(
                f"{self.folder}: no released weights here; expected files layer_00-model_00-model_states.pt and on"
            )
        if (last - 1, 0) in keys:  # the number before the output's is never used, so the output itself is missing
            last += 2
        self.ranks = 1 + max(rank for _, rank in keys)
        available = last - 4
        if num_layers is not None and not 0 < num_layers <= available:
            raise YalmError(
                f"{self.folder}: has {available} layers; ask for 1 to {available} of them, not {num_layers}"
            )
        layers = num_layers or available
        files = release_files(layers)
        files[last] = files.pop(layers + 4)
        # Our name to file number and released name.
        self._places = {ours: (number, theirs) for number, names in files.items() for ours, theirs in names.items()}
        self._opened: tuple[int, list[dict[str, Tensor]]] = (-1, [])
        missing = [
            release_path(self.folder, number, rank).name
            for number in self.numbers()
            for rank in range(self.ranks)
            if (number, rank) not in keys
        ]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise YalmError(f"{self.folder}: {missing[0]} is missing{more}; download again what is missing")
        self.dtype, self.config = self._check(layers, num_heads, max_positions)

    def numbers(self, names: list[str] | None = None) -> list[int]:
        """Numbers of the files that hold these tensors (all by default), ascending."""
        return sorted({self._places[name][0] for name in (names or self._places)})

    def files(self, names: list[str] | None = None) -> list[Path]:
        """The files that hold these tensors (all by default), every rank's."""
        return [release_path(self.folder, number, rank) for number in self.numbers(names) for rank in range(self.ranks)]

    def read(self, name: str) -> Tensor:
        """A tensor by our name, joined if ranks split it, else memory-mapped; valid as long as it is held.

        YalmError if ranks that should hold the same tensor differ.
        """
        number, theirs = self._places[name]
        pieces = [contents[theirs] for contents in self._open(number)]
        if theirs in SPLIT_DIMS:
            return torch.cat(pieces, SPLIT_DIMS[theirs]) if len(pieces) > 1 else pieces[0]
        for rank, piece in enumerate(pieces):
            if not torch.equal(piece, pieces[0]):
                raise YalmError(
                    f"{release_path(self.folder, number, rank)}: {theirs!r} differs from rank 0's, but every rank "
                    "should hold the same; the files are of different saves"
                )
        return pieces[0]

    def _open(self, number: int) -> list[dict[str, Tensor]]:
        """The contents of a file of every rank; only the last one asked for stays mapped."""
        if self._opened[0] != number:
            paths = [release_path(self.folder, number, rank) for rank in range(self.ranks)]
            self._opened = (number, [read_release_file(path) for path in paths])
        return self._opened[1]

    def _check(self, layers: int, num_heads: int | None, max_positions: int | None) -> tuple[torch.dtype, ModelConfig]:
        """Infer the sizes, then hold every tensor of every file against them."""
        sizes = {
            name: self._shape(f"model.{name}.weight")
            for name in ("embed_tokens.tokens", "layers.0.self_attn.o_proj", "layers.0.mlp.gate_proj")
        }
        (vocab, embedding), (hidden, _), (intermediate, _) = sizes.values()
        config = self._config(vocab, embedding, hidden, layers, intermediate, num_heads, max_positions)
        expected = build(config, "meta").state_dict()
        dtype = self._open(0)[0]["word_embeddings.weight"].dtype
        if dtype not in DTYPES.values():
            raise YalmError(f"{self.files()[0]}: tensors of {dtype} are no weights; expected {', '.join(DTYPES)}")
        for number in self.numbers():
            names = {theirs: ours for ours, (place, theirs) in self._places.items() if place == number}
            for rank, tensors in enumerate(self._open(number)):
                path = release_path(self.folder, number, rank)
                for problem, odd in (("missing", set(names) - set(tensors)), ("unknown", set(tensors) - set(names))):
                    if odd:
                        raise YalmError(f"{path}: tensor {min(odd)!r} is {problem}; download the file again")
                for theirs, ours in names.items():
                    shape = list(expected[ours].shape)
                    if theirs in SPLIT_DIMS:
                        shape[SPLIT_DIMS[theirs]] //= self.ranks
                    found = tensors[theirs]
                    if list(found.shape) != shape or found.dtype != dtype:
                        raise YalmError(
                            f"{path}: tensor {theirs!r} is {found.dtype} {tuple(found.shape)}, which does not fit "
                            f"the other files: expected {dtype} {tuple(shape)}; download the file again"
                        )
        return dtype, config

    def _shape(self, name: str) -> tuple[int, int]:
        """The shape of a matrix, all ranks together."""
        number, theirs = self._places[name]
        tensor = self._open(number)[0].get(theirs)
        if tensor is None or tensor.dim() != 2:
            what = "is missing" if tensor is None else "is no matrix"
            raise YalmError(f"{release_path(self.folder, number)}: tensor {theirs!r} {what}; download the file again")
        rows, columns = tensor.shape
        dim = SPLIT_DIMS[theirs]
        return (rows * self.ranks, columns) if dim == 0 else (rows, columns * self.ranks)

    def _config(
        self,
        vocab: int,
        embedding: int,
        hidden: int,
        layers: int,
        intermediate: int,
        num_heads: int | None,
        max_positions: int | None,
    ) -> ModelConfig:
        """The sizes, completed by the preset that has the same widths, apart from padding for the ranks."""
        fitting = [
            preset
            for preset in PRESETS.values()
            if (preset.embedding_size, preset.hidden_size) == (embedding, hidden)
            and -(-preset.intermediate_size // self.ranks) * self.ranks == intermediate
        ]
        if not fitting and num_heads is None:
            raise YalmError(
                f"{self.folder}: no preset has hidden size {hidden:,} and feed-forward width {intermediate:,}, and the "
                "files do not say the number of heads; give it with --heads"
            )
        values = {
            "vocab_size": vocab,
            "embedding_size": embedding,
            "hidden_size": hidden,
            "num_layers": layers,
            "num_heads": num_heads or fitting[0].num_heads,
            "intermediate_size": intermediate,
            "max_positions": max_positions or (fitting[0].max_positions if fitting else 1024),
        }
        if fitting:
            values["intermediate_padding"] = intermediate - fitting[0].intermediate_size
        return ModelConfig.parse(values, source=str(self.folder))


def load_release(
    folder: str | Path,
    num_heads: int | None = None,
    max_positions: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Yalm:
    """The released weights in `folder` as a network of ours, in memory and in `dtype`; errors as in `Release`.

    Where the files already are of that type nothing is read before it is used: the network lies in mapped files.
    """
    release = Release(folder, num_heads, max_positions)
    model = build(release.config, "meta", dtype)
    state = {name: release.read(name).to(dtype) for name, _ in model.named_parameters()}
    state["lm_head.weight"] = state["model.embed_tokens.tokens.weight"]
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    return model


def read_release_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one released file, memory-mapped; anything but a dict of tensors is refused."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise YalmError(f"{path}: the file is missing; download it again") from None
    except pickle.UnpicklingError:
        raise YalmError(f"{path}: holds more than tensors, perhaps code, and is refused; do not load it") from None
    except Exception:  # of many types, with advice that would not help here
        what = "is cut off or damaged" if _begins_as_archive(path) else "is no weights file of PyTorch 1.6 or later"
        raise YalmError(f"{path}: {what}; download the file again") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise YalmError(f"{path}: expected a plain dict of tensors; this is not a released layer file")
    return {name: tensor.detach() for name, tensor in content.items()}


def _begins_as_archive(path: Path) -> bool:
    """Whether a file has the first bytes of a zip archive, which `torch.save` writes."""
    try:
        with open(path, "rb") as stream:
            return stream.read(4) == b"PK\x03\x04"
    except OSError:
        return False


def check_bytes(path: Path) -> None:
    """Read a released file through and compare its own checksums (CRC-32 of every tensor); YalmError if one differs.

    A download that lost bytes in the middle has the right size and shapes and shows nowhere else. Reading front to
    back also leaves the file in the system's cache, twice as fast as faulting its pages in through the map.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                with archive.open(record) as stream:
                    while stream.read(BLOCK_BYTES):
                        pass
    except (OSError, zipfile.BadZipFile) as error:
        raise YalmError(f"{path}: is damaged ({error}); download the file again") from None
