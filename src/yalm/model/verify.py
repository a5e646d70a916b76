"""Is a model folder whole? Names, shapes, checksums, and a forward pass, in the memory of one layer.

Checksums say that the bytes are those once written; the forward pass says that they are a model: a few tokens go
through the parts one after the other, each loaded, used and dropped, and every part must give finite numbers. It runs
on the CPU in the type on disk, so it needs no more memory than a layer takes there, whatever the model's size.
"""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.costs import parameters
from yalm.model.folder import ModelFolder
from yalm.model.network import Rotary, build, causal_attention, parts
from yalm.model.quantize import quantize_modules
from yalm.model.shards import CHECKSUM_FILE, file_sha256, read_checksums
from yalm.progress import byte_progress

TOKENS = 8


def verify(folder: str | Path) -> dict[str, Any]:
    """Check a model folder; returns facts about it as plain values.

    YalmError for whatever is missing, damaged, of a wrong shape, different from the checksums, or not finite. A folder
    without checksums (made by other tools) is checked without them; `checksums` in the facts says how many there were.
    """
    start = perf_counter()
    source = ModelFolder(folder)
    shards = sorted(set(source.places.values()))
    sizes = {shard: (source.path / shard).stat().st_size for shard in shards}
    checksums = read_checksums(source.path)
    unlisted = [shard for shard in shards if checksums and shard not in checksums]
    if unlisted:
        raise YalmError(f"{source.path / unlisted[0]}: stands not in {CHECKSUM_FILE}; the folder is mixed of two")
    with byte_progress("checksums", sum(sizes.values())) as advance:
        for name, sha256 in checksums.items():
            if file_sha256(source.path / name, advance) != sha256:
                raise YalmError(
                    f"{source.path / name}: is missing or differs from {CHECKSUM_FILE}; copy or convert it again"
                )
    ids = torch.linspace(0, source.config.vocab_size - 1, TOKENS).long()[None]
    with byte_progress("forward pass", sum(sizes.values())) as advance:
        streamed_logits(source, ids, lambda shard: advance(sizes[shard]))
    return {
        "folder": str(folder),
        "parameters": parameters(source.config)["total"],
        "dtype": str(source.dtype).removeprefix("torch."),
        "quantization": source.quantization.name if source.quantization is not None else None,
        "shards": len(shards),
        "bytes": sum(sizes.values()),
        "checksums": len(checksums),
        "forward_pass": "finite",
        "seconds": perf_counter() - start,
    }


@torch.no_grad()
def streamed_logits(source: ModelFolder, ids: Tensor, done: Callable[[str], object] = lambda shard: None) -> Tensor:
    """Logits (B, S, V) of ids (B, S) with one part of the model in memory at a time, in the type it is stored in.

    `done` hears each shard's name after its use. YalmError names the shard after which a number was not finite.
    """
    model = build(source.config, "meta", source.dtype)
    if source.quantization is not None:
        quantize_modules(model, source.quantization)
    x, rotary = ids, Rotary(torch.arange(ids.shape[1]), source.config, source.dtype)
    for prefix, module in parts(model):
        names = list(module.state_dict())
        module.load_state_dict({name: source.read(f"{prefix}.{name}") for name in names}, assign=True)
        x = module(x, rotary, causal_attention) if prefix.startswith("model.layers.") else module(x)
        if prefix == "model.norm":
            table = source.read("model.embed_tokens.tokens.weight")
            x = F.linear(x, table, source.read("lm_head.bias"))
        module.to("meta")
        shard = source.places[f"{prefix}.{names[0]}"]
        if not x.isfinite().all():
            raise YalmError(f"{source.path / shard}: its weights give numbers that are not finite; convert them again")
        done(shard)
    return x
