"""The same GPT-NeoX from litgpt, which writes its modules and its chunked loss itself."""

from typing import Any

import torch
from torch import Tensor, nn

from neox import NeoxSizes


class Litgpt(nn.Module):
    """A GPT-NeoX of litgpt that is called as `yalm.model.network.Yalm` is; embedding and output tied, as there."""

    def __init__(self, sizes: NeoxSizes, seed: int) -> None:
        super().__init__()
        from litgpt import GPT, Config

        torch.manual_seed(seed)
        self.model = GPT(
            Config(
                block_size=sizes.max_positions,
                vocab_size=sizes.vocab_size,
                padded_vocab_size=sizes.vocab_size,
                n_layer=sizes.num_layers,
                n_head=sizes.num_heads,
                n_embd=sizes.hidden_size,
                intermediate_size=sizes.intermediate_size,
            )
        )
        self.model.lm_head.weight = self.model.transformer.wte.weight
        # litgpt leaves the table at N(0, 1), which as an output makes logits that are far too large.
        nn.init.normal_(self.model.lm_head.weight, std=0.02)

    def forward(self, ids: Tensor, targets: Tensor, weights: Tensor, attention: Any = None) -> Tensor:
        """The cross entropy of `targets` (B, S) in nats, summed with equal `weights`; attention is always causal."""
        from litgpt.utils import chunked_cross_entropy

        loss: Tensor = chunked_cross_entropy(self.model(ids), targets) * weights.sum()
        return loss
