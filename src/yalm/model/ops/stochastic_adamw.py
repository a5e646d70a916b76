"""AdamW for weights or moments that are kept in bf16: fp32 arithmetic, the results rounded so that nothing is lost.

bfloat16 has 8 bits of mantissa: a change below 1/512 of a number is rounded away each time. Of weights most updates
are, and training stalls; of the second moment all are once beta2 is 0.998 or more, and it never falls again. These are
rounded up or down with the chances that make the mean exact, so that small changes arrive on average (Gupta et al.
2015, arXiv 1502.02551). The first moment moves by a tenth a step and is rounded to the nearest.

The chances are a hash of a key and of the number's place in its tensor, so they are the same however the tensor is
divided. On CPUs one pass in C++ (`stochastic_adamw.cpp`) does it; the price elsewhere: dozens of operations on blocks.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from yalm.model.ops.native import Name, library

SOURCE: Name = "stochastic_adamw"
TYPES = (torch.float32, torch.bfloat16)
# Numbers that are updated at a time, on CPUs (as many as stay in cache) and elsewhere.
BLOCK_NUMBERS = {True: 1 << 17, False: 1 << 25}
# Shifts to the right and factors of the hash; the last shift has none.
LOWBIAS32 = ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1))


class Update(NamedTuple):
    """The numbers of one step: w ← keep·w - rate·m / (√v/correction + eps)."""

    keep: float
    """1 - lr · weight decay."""
    beta1: float
    beta2: float
    rate: float
    """lr / (1 - beta1^step)."""
    correction: float
    """√(1 - beta2^step)."""
    eps: float


class Place(NamedTuple):
    """Where in a tensor of shape `whole` the part lies that is updated."""

    begin: Sequence[int]
    whole: Sequence[int]


# An operation of torch's, so that profilers see it.
_operations: Any = torch.library.Library("yalm", "FRAGMENT")  # type: ignore[no-untyped-call]
_operations.define(
    "stochastic_adamw_(Tensor(a!) weight, Tensor gradient, Tensor(b!) mean, Tensor(c!) square, float[] update, "
    "int[] begin, int[] whole, int[] key) -> ()"
)


def stochastic_adamw_(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, update: Update, place: Place, key: Sequence[int]
) -> None:
    """One step of AdamW in place, of a part of a tensor of one dimension or more.

    All four have one shape; weight fp32 or bf16, gradient any floating type, both moments fp32 or both bf16.
    """
    torch.ops.yalm.stochastic_adamw_(weight, gradient, mean, square, update, place.begin, place.whole, key)


def _anywhere(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    update: Sequence[float],
    begin: Sequence[int],
    whole: Sequence[int],
    key: Sequence[int],
) -> None:
    rows = max(1, BLOCK_NUMBERS[weight.device.type == "cpu"] // max(1, weight[:1].numel()))
    for start in range(0, len(weight), rows):
        block = slice(start, start + rows)
        where = places(weight[block].shape, Place((begin[0] + start, *begin[1:]), whole), weight.device)
        bits = random_bits(where, key)
        _update_block(weight[block], gradient[block], mean[block], square[block], Update(*update), bits)


def _on_cpu(weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *numbers: Any) -> None:
    update, begin, whole, key = numbers
    functions = library(SOURCE) if weight.dim() <= 2 and gradient.dtype in TYPES else None
    given = (weight, mean, square)
    if functions is None or not all(tensor.is_contiguous() for tensor in given):
        _anywhere(weight, gradient, mean, square, *numbers)
        return
    gradient = gradient.contiguous()
    kept_in_bf16 = [tensor.dtype == torch.bfloat16 for tensor in (weight, gradient, mean)]
    # A vector is a row.
    rows, columns = (1, *weight.shape)[-2:]
    row, column = (0, *begin)[-2:]
    functions.stochastic_adamw(
        *(tensor.data_ptr() for tensor in (weight, gradient, mean, square)),
        *kept_in_bf16,
        *(rows, columns, row * whole[-1] + column & 0xFFFFFFFF, whole[-1]),
        *update,
        *_hashes(key),
        torch.get_num_threads(),
    )


_operations.impl("stochastic_adamw_", _anywhere, "CompositeExplicitAutograd")
_operations.impl("stochastic_adamw_", _on_cpu, "CPU")


def _update_block(weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, update: Update, bits: Tensor) -> None:
    """The low half of `bits` rounds weights, the high half squares."""
    gradient = gradient.float()
    new_weight, new_mean, new_square = weight.float(), mean.float(), square.float()  # of fp32 tensors these are they
    new_mean.lerp_(gradient, 1 - update.beta1)
    new_square.mul_(update.beta2).addcmul_(gradient, gradient, value=1 - update.beta2)
    scale = new_square.sqrt().div_(update.correction).add_(update.eps)
    new_weight.mul_(update.keep).addcdiv_(new_mean, scale, value=-update.rate)
    if weight.dtype == torch.bfloat16:
        weight.copy_(round_stochastically(new_weight, bits & 0xFFFF))
    if mean.dtype == torch.bfloat16:
        mean.copy_(new_mean)
        square.copy_(round_stochastically(new_square, (bits >> 16) & 0xFFFF))


def places(shape: Sequence[int], place: Place, device: torch.device | str = "cpu") -> Tensor:
    """The numbers, in the whole tensor row by row, of the elements of a part of that `shape`: int32, modulo 2**32."""
    numbers = torch.zeros((), dtype=torch.int32, device=device)
    for size, offset, length in zip(shape, place.begin, place.whole, strict=True):
        numbers = numbers[..., None] * length + torch.arange(offset, offset + size, dtype=torch.int32, device=device)
    return numbers


def random_bits(places: Tensor, key: Sequence[int]) -> Tensor:
    """32 random bits for each of `places` (int32), a function of it and of `key` alone, as int32; overwrites `places`.

    Two rounds of "lowbias32" (C. Wellons, github.com/skeeto/hash-prospector), before each of them a hash of the key.
    """
    bits = places
    for mixed in _hashes(key):
        bits ^= _signed(mixed)
        for shift, factor in LOWBIAS32:
            # Shifts of int32 copy the sign; what belongs there is zeros.
            bits ^= (bits >> shift) & (0xFFFFFFFF >> shift)
            bits *= _signed(factor)
    return bits


def round_stochastically(values: Tensor, bits: Tensor) -> Tensor:
    """fp32 `values` to bf16, up with the chance of the distance from below: the 16 bits that bf16 cuts off carry if
    random `bits` (0 to 65,535) are added. What bf16 can hold stays as it is."""
    return ((values.view(torch.int32) + bits) & -0x10000).view(torch.float32).bfloat16()


def _hashes(key: Sequence[int]) -> tuple[int, int]:
    """Two numbers of 32 bits."""
    found = []
    for numbers in (key, key[::-1]):
        bits = 0
        for number in numbers:
            bits ^= number & 0xFFFFFFFF
            for shift, factor in LOWBIAS32:
                bits = ((bits ^ (bits >> shift)) * factor) & 0xFFFFFFFF
        found.append(bits)
    return found[0], found[1]


def _signed(bits: int) -> int:
    return bits - ((bits & 0x80000000) << 1)
