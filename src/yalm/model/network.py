"""The YaLM network in plain PyTorch; every other room uses these modules and no others.

A GPT with a narrow token embedding: ids are embedded `embedding_size` wide, normalised, and padded with zeros
to `hidden_size`; the layers are Pre-LayerNorm (the first needs no input norm, its input just had one) with rotary
positions and a GeGLU feed-forward; the output goes back through `embedding_size` to logits by the same, tied table.
At a vocabulary of 128,000 and a hidden size of 10,240 that saves four fifths of the largest multiplication.

Letters in shapes: batch B, sequence S, heads A, head width D, hidden H = A·D, embedding E, vocabulary V.

What differs between uses is passed in. The attention call is an argument (causal for training, cached for
generation), and parallelism, recomputation and quantization replace or wrap modules from outside. Rotary angles are
computed in every forward pass rather than kept in a buffer: it costs S·D/2 sines and cosines a pass, and nothing is
left to restore after loading, to move between devices, or to limit the positions.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yalm.model.config import ModelConfig
from yalm.model.ops.cross_entropy import linear_cross_entropy

# As `linear_cross_entropy`; another one where the vocabulary is divided over processes.
CrossEntropy = Callable[..., tuple[Tensor, Tensor]]


class Attention(Protocol):
    """What a layer calls to mix positions: (B, A, S, D) queries, keys and values to a (B, A, S, D) context."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """`layer` is the number of the calling layer, from 0: a cache files its keys and values under it."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
    """Each position sees itself and all before it: softmax(q·kᵀ/√D)·v over the lower triangle."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


class CausalRuns:
    """Causal attention inside runs of positions that lie behind each other, such as documents or packed prompts.

    It is an `Attention`, and says besides what a kernel needs that does the same at once, rotary positions included
    (`ops/attention.py`).
    """

    starts: Tensor | None
    """The first position that each one sees, (B, S) int64; None if that is not all there is to it."""
    keeps = False
    """Whether it wants the keys and values."""

    def keep(self, key: Tensor, value: Tensor, layer: int) -> None:
        """Take turned keys and values (B, A, S, D) from a kernel that attends in place of `__call__`."""


class DocumentAttention(CausalRuns):
    """Causal attention that does not cross documents.

    `documents` (B, S) numbers the documents in their order; a position sees those before it with its own number. Costs
    a (B, 1, S, S) boolean mask, made once and used by every layer.
    """

    def __init__(self, documents: Tensor) -> None:
        self.documents = documents

    @cached_property
    def mask(self) -> Tensor:
        """Which positions each one sees, (B, 1, S, S)."""
        return (self.documents[:, None, :, None] == self.documents[:, None, None, :]).tril()

    @cached_property
    def starts(self) -> Tensor:  # type: ignore[override]
        """See `CausalRuns`."""
        return torch.searchsorted(self.documents, self.documents)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        """See `Attention`."""
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)


class Rotary:
    """The turn of each position: cosines and sines (…, S, 1, 1, D/2), ready to multiply (B, S, A, 2, D/2) halves.

    Half-split pairing, angle = position · base^(-2i/D) (Su et al. 2021, arXiv 2104.09864), computed in fp32 and then
    cast to the type of the activations, as the original does.
    """

    def __init__(self, positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> None:
        exponents = torch.arange(0, config.head_size, 2, device=positions.device, dtype=torch.float32)
        frequencies = config.rotary_base ** (-exponents / config.head_size)
        angles = (positions.float()[..., None] * frequencies)[..., None, None, :]
        self.cos, self.sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def __call__(self, query_key: Tensor) -> Tensor:
        """Turn queries and keys together: (B, S, A, 2, D) to the same shape."""
        a, b = query_key.chunk(2, dim=-1)
        return torch.cat((self.cos * a - self.sin * b, self.sin * a + self.cos * b), dim=-1)


class TokenEmbedding(nn.Module):
    """Ids (B, S) to the input of the first layer (B, S, H): table, LayerNorm, zeros on the right."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = (config.vocab_size, config.embedding_size)
        # With a weight given: to draw one of its own, on "meta" it would load all of torch.compile, for seconds.
        self.tokens = nn.Embedding(*sizes, _weight=torch.empty(sizes))
        self.norm = nn.LayerNorm(config.embedding_size, config.layer_norm_eps)
        self.padding = config.hidden_size - config.embedding_size

    def forward(self, ids: Tensor) -> Tensor:
        """See the class."""
        return F.pad(self.norm(self.tokens(ids)), (0, self.padding))


class SelfAttention(nn.Module):
    """Multi-head attention; one linear gives q | k | v of head 0, then of head 1, and so on."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_size = config.head_size
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
        """(B, S, H) to (B, S, H); the number of heads is inferred, so that a slice of them works as well."""
        batch, seq, _ = x.shape
        qkv = self.qkv_proj(x).view(batch, seq, -1, 3, self.head_size)
        # Split, not sliced twice: its gradient is one concatenation instead of a sum of two padded with zeros.
        query_key, value = qkv.split((2, 1), dim=-2)
        query, key = rotary(query_key).unbind(-2)
        context = attention(query.transpose(1, 2), key.transpose(1, 2), value.squeeze(-2).transpose(1, 2), self.layer)
        output: Tensor = self.o_proj(context.transpose(1, 2).reshape(batch, seq, -1))
        return output


class GeGLU(nn.Module):
    """W_down(GELU(W_gate x) ⊙ W_up x) with biases and the exact (erf) GELU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, S, H) to (B, S, H)."""
        output: Tensor = self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))
        return output


class Layer(nn.Module):
    """Attention and feed-forward, each reading a normed and adding to an un-normed residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if layer > 0 else nn.Identity()
        self.input_layernorm = norm
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = GeGLU(config)

    def forward(self, x: Tensor, rotary: Rotary, attention: Attention) -> Tensor:
        """(B, S, H) to (B, S, H)."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, attention)
        output: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return output


class OutputTransform(nn.Module):
    """The residual (B, S, H) back to the embedding's width: LayerNorm, linear, exact GELU, LayerNorm → (B, S, E)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.output_norm = nn.LayerNorm(config.embedding_size, config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        output: Tensor = self.output_norm(F.gelu(self.dense(self.input_norm(x))))
        return output


class Body(nn.Module):
    """All but the logits: ids (B, S) to (B, S, E). Pipelines cut it between embedding, layers and output."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = TokenEmbedding(config)
        self.layers = nn.ModuleList(Layer(config, layer) for layer in range(config.num_layers))
        self.norm = OutputTransform(config)

    def forward(self, ids: Tensor, positions: Tensor | None = None, attention: Attention = causal_attention) -> Tensor:
        """`positions` (S) or (B, S), by default 0 … S-1."""
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.embed_tokens(ids)
        rotary = Rotary(positions, self.config, x.dtype)
        for layer in self.layers:
            x = layer(x, rotary, attention)
        output: Tensor = self.norm(x)
        return output


class Yalm(nn.Module):
    """The language model: the body and the logits, whose table is the embedding's own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Body(config)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size)
        self.cross_entropy: CrossEntropy = linear_cross_entropy
        # How many layers this instance runs and with how many heads; parallelism leaves the others to other ranks.
        self.local_layers, self.local_heads = config.num_layers, config.num_heads
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the output table the embedding's; needed again whenever parameters were replaced by new ones."""
        self.lm_head.weight = self.model.embed_tokens.tokens.weight

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        weights: Tensor | None = None,
        positions: Tensor | None = None,
        attention: Attention = causal_attention,
    ) -> Tensor:
        """Logits (B, S, V), or with `targets` (B, S) the cross entropy in nats, summed over positions.

        `weights` (B, S) multiply each position's loss: 0 leaves one out, 1/n makes the sum a mean. The loss never
        holds all logits (see `linear_cross_entropy`).
        """
        hidden = self.model(ids, positions, attention)
        if targets is None:
            logits: Tensor = self.lm_head(hidden)
            return logits
        loss, _ = self.cross_entropy(
            hidden.flatten(0, 1),
            self.lm_head.weight,
            self.lm_head.bias,
            targets.flatten(),
            weights.flatten() if weights is not None else None,
        )
        return loss


def build(config: ModelConfig, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Yalm:
    """A network with uninitialised weights; on device "meta" it has shapes only and costs nothing."""
    with torch.device("meta"):
        model = Yalm(config).to(dtype)
    if torch.device(device).type != "meta":
        model.to_empty(device=device)
        model.tie_weights()
    return model


def initial_weights(
    config: ModelConfig, seed: int, device: str | torch.device = "cpu", table_std: float = 0.02
) -> Iterator[tuple[str, Tensor]]:
    """Each weight in turn, by name and in fp32, from `seed` alone: matrices N(0, 1/inputs), norms 1, biases 0.

    A variance of one over the number of inputs keeps a product's scale whatever the width (LeCun et al. 1998,
    "Efficient BackProp"); a fixed 0.02 is that at a width of 2,500 and starts small models much too quiet. The two
    linears that write to the residual are drawn √(2L) smaller, so that its variance does not grow with depth (GPT-2;
    the inherited default of the original's code). The table is N(0, table_std²): a LayerNorm follows it as input,
    and as output it makes first logits near zero, a first loss near ln V.

    Whoever holds a piece of the model draws all of it and keeps the piece: more work, and no more than one whole weight
    in memory, for values that do not depend on who holds what.
    """
    generator = torch.Generator(device=device).manual_seed(seed)
    depth = (2 * config.num_layers) ** 0.5
    for name, parameter in build(config, "meta").named_parameters():
        values = torch.empty(parameter.shape, device=device)
        if name == "model.embed_tokens.tokens.weight":
            values.normal_(0.0, table_std, generator=generator)
        elif values.dim() == 2:
            std: float = values.shape[1] ** -0.5
            scaled = name.endswith(("o_proj.weight", "down_proj.weight"))
            values.normal_(0.0, std / depth if scaled else std, generator=generator)
        else:
            values.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        yield name, values


@torch.no_grad()
def initialize(model: Yalm, seed: int, table_std: float = 0.02) -> Yalm:
    """Give a whole model its `initial_weights`, in place."""
    parameters = dict(model.named_parameters())
    for name, values in initial_weights(model.config, seed, next(model.parameters()).device, table_std):
        parameters[name].copy_(values)
    return model


def parts(model: Yalm) -> Iterator[tuple[str, nn.Module]]:
    """The embedding, every layer, the output, in order: the units that are saved, sharded and streamed."""
    yield "model.embed_tokens", model.model.embed_tokens
    for index, layer in enumerate(model.model.layers):
        yield f"model.layers.{index}", layer
    yield "model.norm", model.model.norm
