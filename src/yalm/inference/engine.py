"""The generation loop: prompts in, tokens and text out as they come.

One pass of the network at a time. While rows are free and prompts wait, the next prompts are admitted: a packed pass
fills their slots of the cache and gives their first tokens. Otherwise every live row takes one step. A row ends at
`</s>`, at a stop text or at its length limit, and leaves the batch at once, so that a waiting prompt takes its place.
Streams and batches both use this loop; what differs is who collects the pieces.

The price of admitting first: while a prompt is read in, the rows under way wait for it.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from yalm.errors import YalmError
from yalm.inference.cache import KeyValueCache
from yalm.inference.sampling import Sampler, SamplingSettings
from yalm.inference.stopping import Continuation
from yalm.model.network import Yalm
from yalm.tokens.tokenizer import Tokenizer

# Most prompt tokens of one packed pass (a longer prompt goes alone): bounds the memory of its activations.
PREFILL_TOKENS = 4096

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Limits:
    """What one run may use beside the weights: tokens in the cache, and prompt tokens of one pass."""

    cache_tokens: int | None = None
    prefill_tokens: int = PREFILL_TOKENS


@dataclass(frozen=True)
class Request:
    """A prompt's ids, and the numbers that its draws depend on besides the seed."""

    prompt_ids: list[int]
    prompt: int = 0
    sample: int = 0


@dataclass(frozen=True)
class Piece:
    """One token of the continuation of `requests[request]`, with the text that it settles.

    `text` may be empty or lag behind. The last piece of a request has a `finish_reason`: "stop" for `</s>` or a stop
    text, "length" for `max_tokens` or the end of the model's positions.
    """

    request: int
    token: int
    text: str
    finish_reason: FinishReason | None


class _Row:
    """A continuation under way, in the row of the same place in cache and sampler."""

    def __init__(self, number: int, request: Request, limit: int, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.number, self.limit, self.eos_id = number, limit, tokenizer.eos_id
        self.continuation = Continuation(tokenizer, request.prompt_ids, stop)
        self.last, self.count, self.done = -1, 0, False

    def take(self, token: int) -> Piece:
        """Add the token that was chosen."""
        self.last = token
        self.count += 1
        ended = token == self.eos_id
        text = "" if ended else self.continuation.push(token)
        self.done = ended or self.continuation.stopped or self.count == self.limit
        if not self.done:
            return Piece(self.number, token, text, None)
        text += self.continuation.finish()  # what was held back may still complete a stop text
        return Piece(self.number, token, text, "stop" if ended or self.continuation.stopped else "length")


def check_prompt(prompt_ids: Sequence[int], max_positions: int) -> None:
    """YalmError for a prompt that is empty or leaves no position to generate at."""
    if not prompt_ids:
        raise YalmError("the prompt has no tokens; begin it with <s>, as Tokenizer.encode does")
    if len(prompt_ids) >= max_positions:
        raise YalmError(
            f"the prompt has {len(prompt_ids)} tokens and the model {max_positions} positions, which leaves none to "
            f"generate; shorten it to at most {max_positions - 1} tokens"
        )


def run(
    model: Yalm,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    settings: SamplingSettings,
    batch_size: int,
    limits: Limits = Limits(),
) -> Iterator[Piece]:
    """Continue all requests, at most `batch_size` at a time; their pieces, interleaved, as they are made.

    Fewer go at a time where the cache of `limits` holds no more. Prompt and continuation together never exceed the
    model's positions. YalmError for a prompt that leaves no room, or if the cache cannot hold even one text.
    """
    positions = model.config.max_positions
    for request in requests:
        check_prompt(request.prompt_ids, positions)
    if not requests:
        return
    longest = max(len(request.prompt_ids) for request in requests)
    capacity = min(positions, longest + settings.max_tokens)
    rows_that_fit = batch_size if limits.cache_tokens is None else limits.cache_tokens // capacity
    if not rows_that_fit:
        raise YalmError(
            f"a text of {capacity:,} tokens does not fit the cache, whose memory is for {limits.cache_tokens:,}; give "
            "more memory, a shorter prompt or a smaller max_tokens"
        )
    table = model.model.embed_tokens.tokens.weight
    cache = KeyValueCache(
        model,
        rows=min(batch_size, rows_that_fit, len(requests)),
        capacity=capacity,
        dtype=table.dtype,
        device=table.device,
    )
    # The model's table may be padded beyond the vocabulary; the ids there have no text and are never drawn.
    sampler = Sampler(settings, cache.rows, min(model.config.vocab_size, tokenizer.vocab_size), table.device)
    waiting = deque(enumerate(requests))
    rows: list[_Row] = []
    while waiting or rows:
        first = 0  # the rows of this pass: those admitted now, or all
        if waiting and len(rows) < cache.rows:
            first = len(rows)
            for number, request in _admit(waiting, cache.rows - first, limits.prefill_tokens):
                limit = min(settings.max_tokens, positions - len(request.prompt_ids))
                rows.append(_Row(number, request, limit, tokenizer, settings.stop))
                cache.add_row()
                sampler.add_row(request.prompt_ids, request.prompt, request.sample)
            logits = last_logits(model, cache, [requests[row.number].prompt_ids for row in rows[first:]])
        else:
            logits = last_logits(model, cache, [[row.last] for row in rows])
        for row, token in zip(rows[first:], sampler.choose(logits, first), strict=True):
            yield row.take(token)
        for index in reversed(range(first, len(rows))):
            if rows[index].done:
                cache.drop_row(index)
                sampler.drop_row(index)
                rows[index] = rows[-1]
                rows.pop()


def _admit(waiting: deque[tuple[int, Request]], places: int, most: int) -> Iterator[tuple[int, Request]]:
    """Take the next requests for one pass: at most `places`, and one or as many as have `most` tokens together."""
    tokens = 0
    while waiting and places:
        tokens += len(waiting[0][1].prompt_ids)
        if tokens > most and tokens > len(waiting[0][1].prompt_ids):
            return
        places -= 1
        yield waiting.popleft()


@torch.inference_mode()
def last_logits(model: Yalm, cache: KeyValueCache, new_ids: Sequence[Sequence[int]]) -> Tensor:
    """One pass over `new_ids` for the last rows of the cache; the fp32 logits (rows, V) after each row's last token."""
    counts = [len(ids) for ids in new_ids]
    positions, attention = cache.extend([0] * (len(cache.lengths) - len(counts)) + counts)
    ids = torch.tensor([token for row in new_ids for token in row], device=positions.device)
    if positions.dim() == 2:
        hidden = model.model(ids[:, None], positions, attention)[:, 0]
    else:
        ends = torch.tensor(counts, device=positions.device).cumsum(0) - 1
        hidden = model.model(ids[None], positions, attention)[0, ends]
    logits: Tensor = model.lm_head(hidden)
    return logits.float()
