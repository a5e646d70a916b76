"""Validation loss by language, in nats per token and in bits per byte of text.

Nats per token depend on the tokenizer; bits per byte do not, so they compare models with different vocabularies:
bits = Σ nats / ln 2, bytes = the UTF-8 bytes of the text that the predicted tokens stand for. Where only the first
sequences of a part are read, their bytes are taken in proportion to their tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from yalm.model.network import DocumentAttention, causal_attention
from yalm.tokens.batches import Batch, windows
from yalm.tokens.folder import TokenFolder
from yalm.tokens.mixture import PartSettings
from yalm.training.parallel import World


@dataclass(frozen=True)
class ValidationPart:
    """A token folder and the name under which its loss is reported: its language, or the part's own."""

    name: str
    folder: TokenFolder

    @classmethod
    def open(cls, settings: PartSettings) -> "ValidationPart":
        """Open the folder of a part; YalmError if there is none."""
        folder = TokenFolder(settings.path)
        return cls(settings.language or folder.language or settings.name, folder)


@torch.no_grad()
def validate(
    model: nn.Module,
    parts: Sequence[ValidationPart],
    world: World,
    *,
    sequence_length: int,
    sequences: int,
    micro_sequences: int,
    cross_documents: bool,
) -> dict[str, dict[str, float]]:
    """`nats_per_token` and `bits_per_byte` for each name, over at most `sequences` of each part.

    The ranks share the batches; every rank runs as many, since sharded layers are gathered by all together.
    """
    totals: dict[str, list[float]] = {}
    for part in parts:
        nats = torch.zeros((), dtype=torch.float64)
        tokens = 0
        batches = list(windows(part.folder, sequence_length, micro_sequences, sequences))
        for start in range(0, len(batches), world.data_size):
            mine = start + world.data_rank
            batch = batches[min(mine, len(batches) - 1)]
            loss = batch_loss(model, batch, world, cross_documents).double().cpu()
            nats += loss if mine < len(batches) else 0
            tokens += sum(other.targets.numel() for other in batches[start : start + world.data_size])
        byte_count = tokens * part.folder.text_bytes / part.folder.num_tokens
        total = totals.setdefault(part.name, [0.0, 0.0, 0.0])
        for index, value in enumerate((float(world.sum(nats)), tokens, byte_count)):
            total[index] += value
    return {
        name: {"nats_per_token": nats / tokens, "bits_per_byte": nats / math.log(2) / byte_count}
        for name, (nats, tokens, byte_count) in totals.items()
    }


def batch_loss(model: nn.Module, batch: Batch, world: World, cross_documents: bool, weight: float = 1.0) -> Tensor:
    """The summed loss of a batch in nats times `weight`, on this rank's device."""
    attention = causal_attention if cross_documents else DocumentAttention(batch.documents.to(world.device))
    targets = batch.targets.to(world.device)
    weights = torch.full(targets.shape, weight, device=world.device)
    loss: Tensor = model(batch.inputs.to(world.device), targets, weights, attention=attention)
    return loss
