"""From files to a model that runs: open the weights, decide where they live, read them there.

    lm = yalm.load("runs/demo/model")
    lm = yalm.load("yalm-100b-int4", memory="8GiB")                    # most layers read from the disk as they run
    lm = yalm.load("yalm100b_checkpoint", vocab="voc_100b.sp")         # released files, not converted

The network is built on "meta", quantized and cut as the files and the ranks say, and only then given memory: so what
it takes is known before a byte is read, and what another rank holds is never read here.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from yalm.errors import YalmError
from yalm.inference.engine import Limits
from yalm.inference.language_model import LanguageModel
from yalm.inference.linear import pack
from yalm.inference.parallel import Seat, Shard, connect, cut, join
from yalm.inference.placement import Budget, Placement, Sizes, parse_bytes, place
from yalm.inference.streamed import Reader, StreamedLayers
from yalm.model.config import ModelConfig
from yalm.model.folder import TOKENIZER_FILE, torch_dtype
from yalm.model.network import Yalm, build
from yalm.model.quantize import Quantization, quantize_modules
from yalm.model.weights import Weights, open_weights
from yalm.progress import byte_progress
from yalm.tokens.tokenizer import Tokenizer

# The texts of a batch, and their tokens, that memory is kept for where nobody says.
TEXTS, TOKENS = 16, 256

logger = logging.getLogger("yalm")


@dataclass(frozen=True)
class Plan:
    """A rank's part of a network, on "meta" and in the type it will have, and the place of its layers.

    `direct` says that the layers on disk are more than the system's cache could keep, and are read past it.
    """

    model: Yalm
    dtype: str
    device: torch.device
    placement: Placement
    seat: Seat
    direct: bool


def load(
    path: str | Path,
    dtype: str = "auto",
    device: str | torch.device = "auto",
    *,
    vocab: str | Path | None = None,
    heads: int | None = None,
    positions: int | None = None,
    memory: str | int | None = None,
    host_memory: str | int | None = None,
    tensor: int = 1,
    pipeline: int = 1,
    texts: int = TEXTS,
    tokens: int = TOKENS,
) -> LanguageModel:
    """Open a model folder, or released files together with their tokenizer `vocab`, wherever they fit.

    `dtype`: "fp32", "bf16", "fp16", or "auto" (see `plan`). `device`: "cpu", "cuda", "cuda:1", …; "auto" is a GPU if
    there is one. `heads` and `positions` complete released files whose sizes no preset has. `memory` is what may be
    used of the device, `host_memory` what layers may take beside a GPU, in bytes or as "8GiB"; by default nine tenths
    of what is free. Layers beyond that are read from the disk in every pass. Memory for `texts` of `tokens` each at a
    time is set aside. `tensor` and `pipeline` divide the model between processes that torchrun started.

    YalmError for damaged or missing files, unknown types, absent devices, too little memory, and sizes that ranks do
    not divide.
    """
    where = find_device(device)
    mesh = join(tensor, pipeline, where.type) if tensor * pipeline > 1 else None
    weights = open_weights(path, heads, positions)
    tokenizer = Tokenizer(_tokenizer_file(Path(path), vocab))
    chosen = plan(
        weights.config,
        weights.dtype,
        weights.quantization,
        dtype=dtype,
        device=where,
        budget=budget_of(where, memory, host_memory),
        texts=texts,
        tokens=tokens,
        seat=Seat.of(mesh),
    )
    if (
        chosen.dtype != "fp32"
        and where.type == "cpu"
        and weights.quantization is None
        and not _multiplies(chosen.dtype)
    ):
        logger.warning(
            "this CPU has no %s instructions: expect prompts to take many times longer than in fp32", chosen.dtype
        )
    return LanguageModel(realize(chosen, weights, mesh), tokenizer, limits_of(chosen.placement), mesh)


def plan(
    config: ModelConfig,
    stored: torch.dtype,
    quantization: Quantization | None = None,
    *,
    dtype: str = "auto",
    device: torch.device,
    budget: Budget,
    texts: int = TEXTS,
    tokens: int = TOKENS,
    seat: Seat = Seat(),  # noqa: B008  a tuple
) -> Plan:
    """Choose a type and a place for every layer of such a model, without reading anything.

    `dtype` "auto" on CPUs is fp32 if everything fits so, and then bf16; on other devices the type the weights are
    `stored` in, bf16 for fp32. YalmError if no type fits.
    """
    found: list[Plan] = []
    refusal = YalmError("")
    names = [dtype] if dtype != "auto" else _types(device, stored)
    for name in names:
        model = build(config, "meta", torch_dtype(name))
        cut(quantize_modules(model, quantization) if quantization is not None else model, seat)
        packed = device.type == "cpu" and name != "fp16"
        try:
            placement = place(Sizes.of(model, packed), budget, texts, min(tokens, config.max_positions))
        except YalmError as error:
            refusal = error
            continue
        taken = placement.device_bytes if device.type == "cpu" else placement.host_bytes
        files = len(placement.layers_in("disk")) * placement.sizes.layer
        found.append(Plan(model, name, device, placement, seat, direct=files > max(0, budget.machine - taken)))
    if not found:
        raise refusal
    # Streaming in 16 bits halves the buffers and what a product reads; without instructions for it products crawl.
    streamed = found[-1] if quantization is None and _multiplies(found[-1].dtype) else found[0]
    return next((one for one in found if one.placement.resident), streamed)


def realize(chosen: Plan, weights: Weights, mesh: DeviceMesh | None) -> Yalm:
    """Give the network of a plan its memory and its weights; returns it. YalmError for what cannot be read."""
    model, device, placement = chosen.model, chosen.device, chosen.placement
    layers = list(model.model.layers)
    held: dict[str, Tensor] = {}
    with torch.inference_mode(False):
        for name, module in (("model.embed_tokens.", model.model.embed_tokens), ("model.norm.", model.model.norm)):
            held |= _materialized(module, name, device)
        model.lm_head.bias = nn.Parameter(torch.empty_like(model.lm_head.bias, device=device))
        held["lm_head.bias"] = model.lm_head.bias
        model.tie_weights()
        for number in placement.layers_in("device"):
            held |= _materialized(layers[number], prefix(layers[number]), device)
        host = {
            prefix(layers[number]) + name: torch.empty(spec.shape, dtype=spec.dtype, pin_memory=True)
            for number in placement.layers_in("host")
            for name, spec in layers[number].state_dict().items()
        }
    shard = Shard(weights.config, chosen.seat.tensor, chosen.seat.tensors)
    reader = Reader(weights, shard.slice, chosen.direct)
    total = sum(tensor.nbytes for tensor in (*held.values(), *host.values()))
    with byte_progress("loading", total) as advance:
        reader.read(held | host, advance)
    if placement.resident:
        if device.type == "cpu":
            pack(model)
    else:
        streamed = placement.layers_in("host") + placement.layers_in("disk")
        reader.held = host
        model.model.add_module("layers", StreamedLayers(layers, sorted(streamed), reader, prefix, device))
    if mesh is not None:
        connect(model, layers, mesh)
    return model.requires_grad_(False)


def limits_of(placement: Placement) -> Limits:
    """What the engine may use beside the weights."""
    return Limits(
        cache_tokens=placement.cache // placement.sizes.cache_token,
        prefill_tokens=placement.work // placement.sizes.work_token,
    )


def find_device(device: str | torch.device) -> torch.device:
    """The device, tried; YalmError if this machine or this torch has none of that name."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:
        raise YalmError(f"device {str(device)!r} cannot be used ({str(error).splitlines()[0]}); try cpu") from None
    return where


def budget_of(device: torch.device, memory: str | int | None, host_memory: str | int | None) -> Budget:
    """The memory that was given, and what is free where none was. YalmError for what is no amount."""
    if device.type == "cpu":
        refuse_host_memory(host_memory)
    free = Budget.of_machine(device)
    return Budget(parse_bytes(memory, free.device), parse_bytes(host_memory, free.host), free.machine)


def refuse_host_memory(host_memory: str | int | None) -> None:
    """YalmError if that was given to a CPU, whose memory is one."""
    if host_memory is not None:
        raise YalmError("--host-memory is for layers beside a GPU; on a CPU say with --memory what may be used")


def _materialized(module: nn.Module, before: str, device: torch.device) -> dict[str, Tensor]:
    """Memory for a module on "meta"; its tensors by their stored names."""
    module.to_empty(device=device)
    return {before + name: tensor for name, tensor in module.state_dict().items()}


def prefix(layer: nn.Module) -> str:
    """What stands before the names of a layer's tensors in the files; a layer knows its number."""
    attention = layer.get_submodule("self_attn")
    return f"model.layers.{attention.layer}."


def _tokenizer_file(folder: Path, vocab: str | Path | None) -> Path:
    if vocab is None and not (folder / TOKENIZER_FILE).exists():
        raise YalmError(f"{folder}: holds no {TOKENIZER_FILE}; say where the tokenizer is with --vocab")
    return Path(vocab) if vocab is not None else folder / TOKENIZER_FILE


def _types(device: torch.device, stored: torch.dtype) -> list[str]:
    """Types to try, the preferred first."""
    if device.type == "cpu":
        return ["fp32", "bf16"]
    return ["fp16"] if stored is torch.float16 else ["bf16"]


def _multiplies(dtype: str) -> bool:
    """Whether this CPU has instructions for products in "bf16" or "fp16"."""
    flags = torch.cpu.get_capabilities()
    names = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "fp16")}
    return dtype == "fp32" or any(flags.get(name) for name in names[dtype])
