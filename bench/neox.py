"""GPT-NeoX from transformers as the benchmarks' other side: sized like one of ours, counted and called like it.

Everything inside is transformers' own: modules, initialisation, SDPA attention, and the loss over full logits. Its
embedding is tied to its output, as ours is, so that both spend their parameters on the same kinds of matrices.
Counts follow `yalm.model.costs`: multiply-adds of matrix products as two, the look-up not counted, half the square
of causal attention.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from yalm.model import costs
from yalm.model.config import ModelConfig


@dataclass(frozen=True)
class NeoxSizes:
    """The sizes of a GPT-NeoX."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    max_positions: int

    @property
    def parameters(self) -> int:
        """All of them, the tied table counted once."""
        h, i = self.hidden_size, self.intermediate_size
        layer = 4 * h * h + 4 * h + 2 * h * i + i + h + 4 * h
        return self.vocab_size * h + self.num_layers * layer + 2 * h

    def training_flops(self, sequence_length: int) -> float:
        """FLOPs of one trained token."""
        h = self.hidden_size
        weights = self.num_layers * (4 * h * h + 2 * h * self.intermediate_size) + h * self.vocab_size
        return 3 * (2.0 * weights + 4.0 * h * self.num_layers * (sequence_length + 1) / 2)


def same_layers(config: ModelConfig) -> NeoxSizes:
    """Hidden size and layers of `config`, feed-forward of the usual 4 times the hidden size."""
    h = config.hidden_size
    return NeoxSizes(config.vocab_size, h, config.num_layers, config.num_heads, 4 * h, config.max_positions)


def same_parameters(config: ModelConfig) -> NeoxSizes:
    """As many parameters as `config`: its hidden size, as many usual layers as come nearest, the rest by their width.

    An embedding as wide as the layers takes more of the parameters, so there are fewer layers than in ours.
    """
    target, h = costs.parameters(config)["total"], config.hidden_size
    table = config.vocab_size * h + 2 * h
    num_layers = max(1, round((target - table) / (12 * h * h + 13 * h)))
    intermediate = ((target - table) / num_layers - 4 * h * h - 9 * h) / (2 * h + 1)
    width = max(16, 16 * round(intermediate / 16))
    return NeoxSizes(config.vocab_size, h, num_layers, config.num_heads, width, config.max_positions)


class Neox(nn.Module):
    """A GPT-NeoX that is called as `yalm.model.network.Yalm` is."""

    def __init__(self, sizes: NeoxSizes, seed: int) -> None:
        super().__init__()
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        from transformers import AutoModelForCausalLM, GPTNeoXConfig

        torch.manual_seed(seed)
        config = GPTNeoXConfig(
            vocab_size=sizes.vocab_size,
            hidden_size=sizes.hidden_size,
            num_hidden_layers=sizes.num_layers,
            num_attention_heads=sizes.num_heads,
            intermediate_size=sizes.intermediate_size,
            max_position_embeddings=sizes.max_positions,
            tie_word_embeddings=True,
            use_cache=False,
        )
        self.model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")

    def forward(self, ids: Tensor, targets: Tensor, weights: Tensor, attention: Any = None) -> Tensor:
        """The cross entropy of `targets` (B, S) in nats, summed with equal `weights`; attention is always causal."""
        output = self.model(input_ids=ids, labels=targets, shift_labels=targets.contiguous())
        loss: Tensor = output.loss * weights.sum()
        return loss
