"""One gradient of the table that is embedding and output at once.

autograd adds up what the two uses of a tensor give back, so it has both: the output's gradient and one as large for
the embedding, zeros but for the rows that were looked up. With V words that is V·E numbers more at the peak of a step,
and four passes over them. `one_table_gradient` has those rows alone added to the output's gradient, where it lies.

Rows of a word that is looked up several times are summed in fp32 first, in a fixed order: so bf16 gradients do not lose
a frequent word's, and the result is the same to the bit each time.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from yalm.model.network import Yalm


def one_table_gradient(model: Yalm) -> None:
    """Let a model whose table is one parameter on this device, or gathered there, add up its gradient in place."""
    model.forward = partial(_forward, model, model.forward)  # type: ignore[method-assign]


def _forward(model: Yalm, forward: Any, *inputs: Any, **named: Any) -> Tensor:
    embedding, output = model.model.embed_tokens.tokens, model.lm_head
    table = embedding.weight
    if not (torch.is_grad_enabled() and table.requires_grad):
        result: Tensor = forward(*inputs, **named)
        return result
    looked_up, multiplied = Fork.apply(table)  # type: ignore[no-untyped-call]
    # Not by assignment: these are no parameters. Whoever looks at the model after this pass finds the table again.
    places: tuple[dict[str, Any], ...] = (embedding._parameters, output._parameters)
    for place, fork in zip(places, (looked_up, multiplied), strict=True):
        place["weight"] = fork
    embedding.sparse = True
    try:
        result = forward(*inputs, **named)
    finally:
        for place in places:
            place["weight"] = table
        embedding.sparse = False
    return result


class Fork(torch.autograd.Function):
    """A table (V, E) twice: for looking up rows, whose gradient comes as those rows (sparse), and for multiplying.

    The gradient of the second is written to, so what it is used for must have made that for it alone, as products do.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return table.view_as(table), table.view_as(table)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, rows: Tensor | None, total: Tensor | None) -> Tensor | None:
        if rows is None:
            return total
        if total is None:
            return rows.to_dense()
        rows = rows.float().coalesce()
        return total.index_add_(0, rows.indices()[0], rows.values().to(total.dtype))
