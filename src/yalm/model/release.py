"""The layouts in which YaLM 100B and its kin are saved, and their translation to our names.

The release has one pickle per part, `layer_NN-model_MM-model_states.pt`: 00 the token table, 01 the LayerNorm after
it, 03 … L+2 the layers, L+4 the output; 02 and L+3 do not exist. Its MM is 00 alone. Megatron and GPT-NeoX save one
file per tensor-parallel rank: matrices whose output is split hold runs of rows (and of their bias), those whose input
is split hold runs of columns, all else is the same on every rank. The feed-forward width is then padded with zeros to
a multiple of the ranks.

Training may also save all parts in one file per rank: DeepSpeed's `mp_rank_MM_model_states.pt`, the weights under
"module", and Megatron-LM's `mp_rank_MM/model_optim_rng.pt`, under "model", in nested or flat dicts. There a prefix
says the part (`PREFIXES`), and the names behind it are those of the release: that is what makes a file one of this
architecture. Rows of query_key_value are head by head, q, k, v, as the code that made YaLM has always saved them; a
file that names an older version of Megatron's format is refused. Settings, optimizer and random states are not read.

Files from outside are untrusted: see `pickles`; every name, shape and type is checked before one is used. Tensors are
memory-mapped. The number of heads cannot be told from the shapes: it comes from the caller, or from the preset that
has these sizes.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import Yalm, build
from yalm.model.pickles import Stored, check_bytes, check_whole, load_contents, locate, map_bytes
from yalm.model.presets import PRESETS
from yalm.model.shards import DTYPES, Span

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
LAYER_FILE = re.compile(r"layer_(\d{2,})-model_(\d{2,})-model_states\.pt")
# Where one file a rank holds all parts: what stands after the rank in its name; under which key the weights are in it;
# what stands before a tensor's name in its part, in DeepSpeed's pipelines, GPT-NeoX and Megatron; and the least version
# of the format, if the file names one, in which the rows of query_key_value are head by head.
RANK_SUFFIXES = ("_model_states.pt", "/model_optim_rng.pt")
WEIGHT_KEYS = ("module", "model")
PREFIXES = re.compile(
    r"(?:module\.)*"
    r"(?:(?:sequential\.)?(?P<number>\d{1,4})|tied_modules\.\w+"
    r"|(?:language_model\.)?(?:embedding|(?P<norm>projector)|(?P<output>output_layer)"
    r"|(?:transformer|encoder)\.layers\.(?P<layer>\d{1,4})))\."
    r"(?P<name>.+)"
)
LEAST_VERSION = 2
# Parts of a layer or of the layers in each file, which is how others divide them: what they are, and who merges them.
UNMERGED = {
    "mp_rank_[0-9][0-9]_[0-9][0-9][0-9]*": "has Megatron's folders of pipeline stages (mp_rank_TT_PPP); have its "
    "tools/checkpoint/convert.py save them with --target-pipeline-parallel-size 1, and give the result",
    "*zero_pp_rank_*_model_states.pt": "has DeepSpeed's ZeRO-3 shards (zero_pp_rank_*); merge them with its "
    "zero_to_fp32.py, save the result as {'module': weights} in mp_rank_00_model_states.pt, and give its folder",
}
NESTING = 8


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
    not fit. `num_layers` cuts the model after its first layers; layer files of the others need not be there.

    Attributes: `config`, the sizes as the files hold them (with `intermediate_padding` where the preset says
    how much of the width is padding for the ranks); `dtype` of all tensors; `ranks`.
    """

    quantization: None = None

    def __init__(
        self,
        folder: str | Path,
        num_heads: int | None = None,
        max_positions: int | None = None,
        num_layers: int | None = None,
    ) -> None:
        self.folder = Path(folder)
        found = layer_files(self.folder)
        self._rank_files = [] if found else rank_files(self.folder)
        # By part and rank, what the file holds of the part.
        self._tables: dict[tuple[int, int], dict[str, Stored]] = {}
        if self._rank_files:
            check_whole(self._rank_files)
            for rank, path in enumerate(self._rank_files):
                self._tables |= {(number, rank): table for number, table in read_rank_file(path).items()}
            found = set(self._tables)
        last = max((number for number, _ in found), default=0)
        if last < 4:
            raise YalmError(
                f"{self.folder}: no released weights here; expected files layer_00-model_00-model_states.pt and on, "
                "mp_rank_00_model_states.pt or mp_rank_00/model_optim_rng.pt"
            )
        if (last - 1, 0) in found:  # the number before the output's is never used, so the output itself is missing
            last += 2
        self.ranks = len(self._rank_files) or 1 + max(rank for _, rank in found)
        available = last - 4
        if num_layers is not None and not 0 < num_layers <= available:
            raise YalmError(
                f"{self.folder}: has {available} layers; ask for 1 to {available} of them, not {num_layers}"
            )
        layers = num_layers or available
        files = release_files(layers)
        files[last] = files.pop(layers + 4)
        # Our name to part and released name.
        self._places = {ours: (number, theirs) for number, names in files.items() for ours, theirs in names.items()}
        self._checked: dict[Path, set[int]] = {}
        self._maps: dict[tuple[int, int], tuple[Tensor, int]] = {}
        if not self._rank_files:
            keys = [(number, rank) for number in self._numbers() for rank in range(self.ranks)]
            _refuse_missing(self.folder, [release_path(Path(), *key).name for key in keys if key not in found])
            check_whole(release_path(self.folder, *key) for key in keys)
            for key in keys:
                path = release_path(self.folder, *key)
                self._tables[key] = locate(path, _plain(path, load_contents(path)))
        self.dtype, self.config = self._check(layers, available, num_heads, max_positions)

    def files(self, names: list[str] | None = None) -> list[Path]:
        """The files that hold these tensors (all by default), every rank's."""
        paths = [self._path(number, rank) for number in self._numbers(names) for rank in range(self.ranks)]
        return list(dict.fromkeys(paths))

    def read(self, name: str) -> Tensor:
        """A tensor by our name, joined if ranks split it, else memory-mapped; valid as long as it is held.

        YalmError if ranks that should hold the same tensor differ.
        """
        number, theirs = self._places[name]
        pieces = [stored.within(*self._map(number, rank)) for rank, stored in enumerate(self._stored(name))]
        if theirs in SPLIT_DIMS:
            return torch.cat(pieces, SPLIT_DIMS[theirs]) if len(pieces) > 1 else pieces[0]
        for stored, piece in zip(self._stored(name), pieces, strict=True):
            if not torch.equal(piece, pieces[0]):
                raise YalmError(
                    f"{stored.path}: {theirs!r} differs from rank 0's, but every rank should hold the same; "
                    "the files are of different saves"
                )
        return pieces[0]

    def span(self, name: str) -> Span | None:
        """Where that tensor lies on the disk; None with several ranks, or if its numbers do not follow each other."""
        return self._stored(name)[0].span if self.ranks == 1 else None

    def check_bytes(self, path: Path, names: list[str]) -> None:
        """Read these tensors' part of one of `files` through against its checksums; YalmError if a byte is wrong.

        What tensors share, one buffer of all parts at worst, is read for the first of them only.
        """
        places = {stored.storage for name in names for stored in self._stored(name) if stored.path == path}
        checked = self._checked.setdefault(path, set())
        check_bytes(path, places - checked)
        checked |= places

    def _numbers(self, names: list[str] | None = None) -> list[int]:
        """Numbers of the parts that hold these tensors (all by default), ascending."""
        return sorted({self._places[name][0] for name in (names or self._places)})

    def _stored(self, name: str) -> list[Stored]:
        """A tensor by our name, as each rank holds it."""
        number, theirs = self._places[name]
        return [self._tables[number, rank][theirs] for rank in range(self.ranks)]

    def _path(self, number: int, rank: int) -> Path:
        """The file that holds this part of that rank."""
        return self._rank_files[rank] if self._rank_files else release_path(self.folder, number, rank)

    def _map(self, number: int, rank: int) -> tuple[Tensor, int]:
        """The bytes of the file that hold a part, and where they begin; only the last part asked for stays mapped."""
        if (number, rank) not in self._maps:
            if len(self._maps) >= self.ranks:
                self._maps.clear()
            table = self._tables[number, rank].values()
            begin = min(stored.start for stored in table)
            mapped = map_bytes(self._path(number, rank), begin, max(stored.stop for stored in table))
            self._maps[number, rank] = (mapped, begin)
        return self._maps[number, rank]

    def _check(
        self, layers: int, available: int, num_heads: int | None, max_positions: int | None
    ) -> tuple[torch.dtype, ModelConfig]:
        """Infer the sizes, then hold every tensor of every file against them."""
        sizes = {
            name: self._shape(f"model.{name}.weight")
            for name in ("embed_tokens.tokens", "layers.0.self_attn.o_proj", "layers.0.mlp.gate_proj")
        }
        (vocab, embedding), (hidden, _), (intermediate, _) = sizes.values()
        config = self._config(vocab, embedding, hidden, layers, intermediate, num_heads, max_positions)
        expected = build(config, "meta").state_dict()
        dtype = self._tables[0, 0]["word_embeddings.weight"].tensor.dtype
        if dtype not in DTYPES.values():
            raise YalmError(f"{self.files()[0]}: tensors of {dtype} are no weights; expected {', '.join(DTYPES)}")
        for number, rank in sorted(
            set(self._tables) - {(n, r) for n in release_files(available) for r in range(self.ranks)}
        ):
            name = min(self._tables[number, rank])
            raise YalmError(f"{self._path(number, rank)}: tensor {name!r} of part {number} is unknown")
        for number in self._numbers():
            names = {theirs: ours for ours, (place, theirs) in self._places.items() if place == number}
            for rank in range(self.ranks):
                path, tensors = self._path(number, rank), self._tables.get((number, rank), {})
                part = f" of part {number}" if self._rank_files else ""
                for problem, odd in (("missing", set(names) - set(tensors)), ("unknown", set(tensors) - set(names))):
                    if odd:
                        raise YalmError(f"{path}: tensor {min(odd)!r}{part} is {problem}; download the file again")
                for theirs, ours in names.items():
                    shape = list(expected[ours].shape)
                    if theirs in SPLIT_DIMS:
                        shape[SPLIT_DIMS[theirs]] //= self.ranks
                    found = tensors[theirs].tensor
                    if list(found.shape) != shape or found.dtype != dtype:
                        raise YalmError(
                            f"{path}: tensor {theirs!r}{part} is {found.dtype} {tuple(found.shape)}, which does not "
                            f"fit the other tensors: expected {dtype} {tuple(shape)}; download the file again"
                        )
        return dtype, config

    def _shape(self, name: str) -> tuple[int, int]:
        """The shape of a matrix, all ranks together."""
        number, theirs = self._places[name]
        stored = self._tables.get((number, 0), {}).get(theirs)
        if stored is None or stored.tensor.dim() != 2:
            what = "is missing" if stored is None else "is no matrix"
            raise YalmError(f"{self._path(number, 0)}: tensor {theirs!r} {what}; download the file again")
        rows, columns = stored.tensor.shape
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


def layer_files(folder: Path) -> set[tuple[int, int]]:
    """Number and rank of each file of a part in `folder`."""
    found = [LAYER_FILE.fullmatch(file.name) for file in folder.glob("layer_*")]
    return {(int(match[1]), int(match[2])) for match in found if match}


def rank_files(folder: Path) -> list[Path]:
    """Each rank's file of all parts in `folder`, empty if there are none; YalmError for missing and `UNMERGED` ones."""
    for suffix in RANK_SUFFIXES:
        names = [file.relative_to(folder).as_posix() for file in folder.glob(f"mp_rank_*{suffix}")]
        found = [int(match[1]) for name in names if (match := re.fullmatch(rf"mp_rank_(\d{{2,4}}){suffix}", name))]
        if found:
            names = [f"mp_rank_{rank:02d}{suffix}" for rank in range(max(found) + 1)]
            _refuse_missing(folder, [name for rank, name in enumerate(names) if rank not in found])
            return [folder / name for name in names]
    for pattern, problem in UNMERGED.items():
        if any(folder.glob(pattern)):
            raise YalmError(f"{folder}: {problem}")
    return []


def read_rank_file(path: Path) -> dict[int, dict[str, Stored]]:
    """The tensors of a file of all parts, by part number and released name.

    YalmError if the weights are not where they should be, a name tells no part, or the format is too old.
    """
    contents = load_contents(path)
    contents = contents if isinstance(contents, dict) else {}
    version = contents.get("checkpoint_version", LEAST_VERSION)
    if not isinstance(version, int | float) or version < LEAST_VERSION:
        raise YalmError(
            f"{path}: checkpoint_version is {version!r}, whose query_key_value has its rows in another order; "
            f"have it saved again with version {LEAST_VERSION} or later"
        )
    weights = [contents[key] for key in WEIGHT_KEYS if isinstance(contents.get(key), dict) and contents[key]]
    if not weights:
        raise YalmError(
            f"{path}: holds no weights under 'module' or 'model'; if layer_* files hold them, give their folder"
        )
    places = locate(path, dict(_flat(weights[0])))
    matches = {name: PREFIXES.fullmatch(name) for name in places}
    output = 5 + max((int(match["layer"]) for match in matches.values() if match and match["layer"]), default=0)
    parts: dict[int, dict[str, Stored]] = {}
    for name, match in matches.items():
        if match is None:
            raise YalmError(f"{path}: tensor {name!r} is unknown; expected the names of YaLM's own code")
        number = int(match["number"] or 0)
        number += 3 + int(match["layer"]) if match["layer"] else output if match["output"] else bool(match["norm"])
        table = parts.setdefault(number, {})
        if match["name"] in table:
            raise YalmError(f"{path}: tensor {name!r} is there twice, under another prefix too")
        table[match["name"]] = places[name]
    return parts


def _flat(values: Mapping[str, object], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Nested dicts as one, names joined by dots."""
    for key, value in values.items():
        if isinstance(value, dict) and depth < NESTING:
            yield from _flat(value, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value


def _plain(path: Path, contents: object) -> dict[str, object]:
    """The contents of a layer's file, which are a dict; YalmError if they are not."""
    if not isinstance(contents, dict) or not all(isinstance(name, str) for name in contents):
        raise YalmError(f"{path}: expected a plain dict of tensors; this is not a released layer file")
    return contents


def _refuse_missing(folder: Path, names: list[str]) -> None:
    """YalmError that names the first missing file and counts the others, if any are missing."""
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise YalmError(f"{folder}: {names[0]} is missing{more}; download again what is missing")
