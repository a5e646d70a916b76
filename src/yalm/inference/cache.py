"""Keys and values of the past, and the attention that reads them.

A token at position p of its text lies in slot p of its row, whatever the other rows hold. So prompts of unequal length
need no padding: a pass over several tokens a row packs the tokens of all rows behind each other, (1, N), multiplies
them with the weights as one matrix, and attends row by row; no pad token exists that could leak. A pass over one token
a row (decoding) goes as a batch, (B, 1); C++ attends in it on CPUs, elsewhere it is masked where rows differ in length.
Rows that ended give up their place: the last row moves into it, which costs one copy of that row and keeps the rest
where it is.

The price: the slots are allocated once, for the longest text that may come, and a masked step reads as far as its
longest row in every row. No pages, no sharing of common beginnings.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from yalm.errors import YalmError
from yalm.model.network import Attention, CausalRuns, Yalm
from yalm.model.ops.attention import attend_cached, has_attend_cached


class KeyValueCache:
    """Slots for `rows` texts of up to `capacity` tokens; 2·L·rows·A·capacity·D numbers for `model`'s layers and heads.

    `lengths` holds the tokens of each live row; live rows are the first ones.
    """

    def __init__(self, model: Yalm, rows: int, capacity: int, dtype: torch.dtype, device: str | torch.device) -> None:
        shape = (model.local_layers, rows, model.local_heads, capacity, model.config.head_size)
        # (layer, row, head, slot, D)
        self.keys, self.values = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
        self.native = has_attend_cached(self.keys)
        if not self.native:  # a masked slot is multiplied by 0, and 0·NaN is NaN
            self.keys.zero_()
            self.values.zero_()
        self.rows, self.capacity = rows, capacity
        self.lengths: list[int] = []

    def add_row(self) -> int:
        """Begin an empty text; its row. YalmError if all rows are taken."""
        if len(self.lengths) == self.rows:
            raise YalmError(f"the cache has {self.rows} rows and all are in use; make it with more rows")
        self.lengths.append(0)
        return len(self.lengths) - 1

    def drop_row(self, row: int) -> None:
        """End the text in `row`; the last row, if another, takes its place and number."""
        last = len(self.lengths) - 1
        length = self.lengths.pop()
        if row != last:
            for tensor in (self.keys, self.values):
                tensor[:, row, :, :length] = tensor[:, last, :, :length]
            self.lengths[row] = length

    def extend(self, counts: Sequence[int]) -> tuple[Tensor, Attention]:
        """Make room for `counts[row]` new tokens in every live row; call it before the pass that brings them.

        Returns the tokens' positions and the attention for that pass. With one token in every row the pass is a
        batch, ids and positions (B, 1); otherwise it is packed, ids (1, N), positions (N), N = sum of counts, rows in
        order, a count of 0 leaving a row out. YalmError if a row would exceed the capacity.
        """
        starts = list(self.lengths)
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            if start + count > self.capacity:
                raise YalmError(f"row {row} needs {start + count} positions and the cache has {self.capacity}")
            self.lengths[row] += count
        if all(count == 1 for count in counts):
            batch = _OneTokenEach(self, starts)
            return batch.positions[:, None], batch
        packed = _Packed(self, starts, counts)
        return packed.positions, packed


class _OneTokenEach:
    """Attention of a decoding step: (B, A, 1, D), a row's token at position `starts[row]`."""

    def __init__(self, cache: KeyValueCache, starts: Sequence[int]) -> None:
        device = cache.keys.device
        self.keys, self.values = cache.keys[:, : len(starts)], cache.values[:, : len(starts)]
        self.length = max(starts) + 1
        self.positions = torch.tensor(starts, device=device)
        self.rows = torch.arange(len(starts), device=device)
        self.lengths = self.positions + 1 if cache.native else None
        self.mask = None
        if not cache.native and min(starts) + 1 < self.length:
            hidden = torch.arange(self.length, device=device) > self.positions[:, None]
            self.mask = torch.zeros(hidden.shape, dtype=cache.keys.dtype, device=device)
            self.mask = self.mask.masked_fill_(hidden, -torch.inf)[:, None, None]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        keys, values = self.keys[layer], self.values[layer]
        if self.lengths is not None:
            return attend_cached(query, key, value, keys, values, self.lengths)
        keys[self.rows, :, self.positions] = key[:, :, 0]
        values[self.rows, :, self.positions] = value[:, :, 0]
        keys, values = keys[:, :, : self.length], values[:, :, : self.length]
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=self.mask)


class _Packed(CausalRuns):
    """Attention of a pass over several tokens a row: (1, A, N, D), each row's tokens after its own past."""

    keeps = True

    def __init__(self, cache: KeyValueCache, starts: Sequence[int], counts: Sequence[int]) -> None:
        device = cache.keys.device
        self.cache = cache
        self.segments: list[tuple[int, slice, int, int, Tensor | None]] = []  # row, tokens, first, end, mask
        offset = 0
        for row, (start, count) in enumerate(zip(starts, counts, strict=True)):
            if count:
                # With a past, "causal" must be anchored at the last key, not at the first, as `is_causal` would.
                end = start + count
                mask = torch.ones(count, end, dtype=torch.bool, device=device).tril(start) if start else None
                self.segments.append((row, slice(offset, offset + count), start, end, mask))
                offset += count
        self.positions = torch.cat([torch.arange(start, end, device=device) for _, _, start, end, _ in self.segments])
        # A row without a past sees no more than this pass brings.
        first = [tokens.start for _, tokens, *_ in self.segments for _ in range(tokens.start, tokens.stop)]
        self.starts = None if any(past for _, _, past, *_ in self.segments) else torch.tensor([first], device=device)

    def keep(self, key: Tensor, value: Tensor, layer: int) -> None:
        """See `CausalRuns`."""
        for row, tokens, start, end, _ in self.segments:
            self.cache.keys[layer, row, :, start:end] = key[0, :, tokens]
            self.cache.values[layer, row, :, start:end] = value[0, :, tokens]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        self.keep(key, value, layer)
        context = torch.empty_like(query)
        for row, tokens, _, end, mask in self.segments:
            keys, values = self.cache.keys[layer, row, :, :end], self.cache.values[layer, row, :, :end]
            context[0, :, tokens] = F.scaled_dot_product_attention(
                query[:, :, tokens], keys[None], values[None], attn_mask=mask, is_causal=mask is None
            )[0]
        return context
