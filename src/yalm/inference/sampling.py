"""Which token comes next: penalty, temperature, top-k, top-p, and one draw.

The order is the original's: repetition penalty; logits / temperature; top-k, which drops what is strictly below the
k-th logit, so ties stay; top-p, which keeps the token that crosses the threshold, 0 switching it off; softmax; draw.

A draw is one uniform number looked up in the cumulative distribution, and that number comes from (seed, prompt number,
sample number, step) alone. So a text does not depend on which others share its batch, nor on when they end. What
remains is rounding: a batch multiplies in another order than a single row, by about 1e-6, and a draw that falls that
close to the border between two tokens may turn out the other.

Top-p needs the likeliest tokens in order. Sorting a whole vocabulary costs milliseconds a row on a CPU, so the
likeliest few are taken first, and more only where these hold less than top_p.
"""

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from yalm.config import Settings

# How many of the likeliest tokens top-p looks at, before all.
NUCLEUS_CANDIDATES = (256, 4096)


class SamplingSettings(Settings):
    """How continuations are made. The defaults draw from the model's own distribution, unaltered, reproducibly.

    `max_tokens`: longest continuation, in tokens. `temperature`: 0 is greedy. `top_k`, `top_p`: 0 is off.
    `repetition_penalty`: 1 is off; otherwise each token of the prompt or the continuation has its logit divided by it
    if positive, multiplied if negative (Keskar et al. 2019, arXiv 1909.05858, section 4.1; the sign rule is that of
    transformers). `stop`: texts at which a continuation ends; they are not part of it. `seed`: see the module.
    `num_samples`: continuations per prompt.
    """

    max_tokens: int = Field(default=128, gt=0)
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    stop: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)
    num_samples: int = Field(default=1, gt=0)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken without a draw."""
        return self.temperature == 0 or self.top_k == 1


def uniforms(seed: int, prompt: int, sample: int) -> np.random.Generator:
    """The source of one row's numbers in [0, 1): `random()` gives one a step."""
    return np.random.default_rng([seed, prompt, sample])


def penalize(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) with those of the `seen` (B, V) tokens divided by `penalty` if positive, else multiplied."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def distribution(logits: Tensor, settings: SamplingSettings) -> Tensor:
    """Logits (B, V) to the probabilities (B, V) that are drawn from, 0 for filtered tokens; temperature above 0."""
    logits = logits.float() / settings.temperature
    vocab_size = logits.shape[-1]
    if 0 < settings.top_k < vocab_size:
        smallest = logits.topk(settings.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probabilities = logits.softmax(-1)
    if settings.top_p == 0:
        return probabilities
    for candidates in (*NUCLEUS_CANDIDATES, vocab_size):
        values, ids = probabilities.topk(min(candidates, vocab_size))
        before = values.cumsum(-1).roll(1, -1)  # the mass of the likelier tokens
        if candidates >= vocab_size or bool((before[:, 0] > settings.top_p).all()):
            break
    before[:, 0] = 0
    values = values.masked_fill(before > settings.top_p, 0)
    kept = torch.zeros_like(probabilities).scatter(-1, ids, values)
    return kept / kept.sum(-1, keepdim=True)


def draw(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """Tokens (B): for each row of `probabilities` (B, V) the one where the cumulative sum passes `numbers` (B).

    `numbers` are float64 in [0, 1). A token of probability 0 is never drawn.
    """
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    wanted = torch.minimum(numbers * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, wanted[:, None], right=True).squeeze(1)


class Sampler:
    """Chooses the next token of every live row; its rows come, go and are numbered as those of the cache."""

    def __init__(self, settings: SamplingSettings, rows: int, vocab_size: int, device: torch.device) -> None:
        self.settings, self.vocab_size = settings, vocab_size
        self.sources: list[np.random.Generator] = []
        self.penalizing = settings.repetition_penalty != 1
        self.seen = torch.zeros(rows if self.penalizing else 0, vocab_size, dtype=torch.bool, device=device)

    def add_row(self, prompt_ids: Sequence[int], prompt: int, sample: int) -> None:
        """Begin a row after `prompt_ids`, drawing by its prompt and sample number."""
        if self.penalizing:
            self.seen[len(self.sources)] = False
            self.seen[len(self.sources), torch.tensor(prompt_ids)] = True
        self.sources.append(uniforms(self.settings.seed, prompt, sample))

    def drop_row(self, row: int) -> None:
        """End `row`; the last one takes its place and number."""
        last = self.sources.pop()
        if row < len(self.sources):
            self.sources[row] = last
            if self.penalizing:
                self.seen[row] = self.seen[len(self.sources)]

    @torch.inference_mode()
    def choose(self, logits: Tensor, first: int) -> list[int]:
        """A token for each of the rows from `first` on; logits (rows, V or more: ids beyond are never chosen)."""
        logits = logits[:, : self.vocab_size]
        if self.penalizing:
            logits = penalize(logits, self.seen[first : len(self.sources)], self.settings.repetition_penalty)
        if self.settings.greedy:
            tokens = logits.argmax(-1)
        else:
            numbers = [source.random() for source in self.sources[first:]]
            drawn_at = torch.tensor(numbers, dtype=torch.float64, device=logits.device)
            tokens = draw(distribution(logits, self.settings), drawn_at)
        if self.penalizing:
            self.seen[first : len(self.sources)].scatter_(1, tokens[:, None], True)
        return [int(token) for token in tokens.tolist()]
