"""AdamW in bf16: rounding without bias, the same bits for every division, and C++ against the plain operations."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from yalm.model.ops import stochastic_adamw
from yalm.model.ops.native import library
from yalm.model.ops.stochastic_adamw import (
    SOURCE,
    Place,
    Update,
    places,
    random_bits,
    round_stochastically,
    stochastic_adamw_,
)

ALL_BITS = torch.arange(2**16, dtype=torch.int32)
TYPES = (torch.float32, torch.bfloat16)
STEP = Update(keep=0.999, beta1=0.9, beta2=0.95, rate=0.02, correction=0.5, eps=1e-8)


@given(st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100))
def test_rounding_has_no_bias(value: float) -> None:
    rounded = round_stochastically(torch.full(ALL_BITS.shape, value), ALL_BITS).double()
    assert float(rounded.mean()) == value  # exact: all sums are of multiples of one power of two
    assert len(rounded.unique()) <= 2
    if value == float(torch.tensor(value).bfloat16()):
        assert torch.equal(rounded, torch.full_like(rounded, value))


def test_numbers_that_are_not_finite_stay_so() -> None:
    for value in (float("inf"), float("-inf"), float("nan")):
        rounded = round_stochastically(torch.full(ALL_BITS.shape, value), ALL_BITS)
        assert torch.equal(rounded, torch.full_like(rounded, value)) or bool(rounded.isnan().all())


def test_bits_are_fair_and_each_step_has_its_own() -> None:
    def draw(key: tuple[int, int, int]) -> Tensor:
        return random_bits(torch.arange(200_000, dtype=torch.int32), key)

    draws = [draw(key) for key in ((0, 1, 1), (0, 2, 1), (1, 1, 1), (0, 1, 2), (1, 1, 0))]
    for each in draws:
        shares = torch.stack([(each >> bit) & 1 for bit in range(32)]).double().mean(1)
        assert float((shares - 0.5).abs().max()) < 5 * 0.5 / 200_000**0.5
    correlations = torch.corrcoef(torch.stack(draws).double()) - torch.eye(len(draws))
    assert float(correlations.abs().max()) < 5 / 200_000**0.5
    assert abs(float(torch.corrcoef(torch.stack([draws[0][:-1], draws[0][1:]]).double())[0, 1])) < 5 / 200_000**0.5
    halves = torch.stack([draws[0] & 0xFFFF, (draws[0] >> 16) & 0xFFFF]).double()
    assert abs(float(torch.corrcoef(halves)[0, 1])) < 5 / 200_000**0.5
    assert torch.equal(random_bits(torch.arange(1000, 1010, dtype=torch.int32), (0, 1, 1)), draws[0][1000:1010])


@given(st.tuples(st.integers(1, 20), st.integers(1, 20)), st.data())
def test_places_are_numbers_in_the_whole(whole: tuple[int, int], data: st.DataObject) -> None:
    numbers = torch.arange(whole[0] * whole[1], dtype=torch.int32).view(whole)
    slices = [sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in whole]
    part = numbers[slices[0][0] : slices[0][1], slices[1][0] : slices[1][1]]
    assert torch.equal(places(part.shape, Place([begin for begin, _ in slices], whole)), part)


def state(shape: tuple[int, ...], types: tuple[torch.dtype, torch.dtype, torch.dtype]) -> list[Tensor]:
    """Weight, gradient, mean and square."""
    generator = torch.Generator().manual_seed(sum(shape))
    weight, gradient, mean, square = (torch.randn(shape, generator=generator) for _ in range(4))
    moments = mean.mul_(0.1).to(types[2]), square.square_().to(types[2])
    return [weight.to(types[0]), gradient.to(types[1]), *moments]


@pytest.mark.skipif(library(SOURCE) is None, reason="no C++ compiler here")
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=2) | st.sampled_from([[1, 27_308], [3, 5_000], [9_000]]),
    st.tuples(*[st.sampled_from(TYPES)] * 3),
    st.integers(0, 2**33),
    st.booleans(),
)
def test_cpp_is_the_plain_operations(shape: list[int], types: Any, seed: int, transposed: bool) -> None:
    begin, whole = [5] * len(shape), [size + 9 for size in shape]
    ours, plain = state(tuple(shape), types), state(tuple(shape), types)
    if transposed and len(shape) == 2:  # a gradient may lie so
        ours[1] = ours[1].T.contiguous().T
    key = (seed, 3, 7)
    stochastic_adamw_(*ours, STEP, Place(begin, whole), key)
    stochastic_adamw._anywhere(*plain, STEP, begin, whole, key)
    for found, wanted in zip(ours, plain, strict=True):
        assert found.dtype == wanted.dtype
        # The same bits round; where fp32 arithmetic differs in its last digit, a number may fall on the other side.
        torch.testing.assert_close(
            found.float(), wanted.float(), rtol=2**-7 if found.dtype != TYPES[0] else 1e-5, atol=1e-6
        )
        assert found.dtype == TYPES[0] or int((found != wanted).sum()) <= 3 + 0.05 * found.numel()


@pytest.mark.parametrize("blocks", [64, 1 << 17])
def test_parts_are_updated_as_the_whole_is(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stochastic_adamw, "BLOCK_NUMBERS", {True: blocks})
    types = (torch.bfloat16, torch.float32, torch.bfloat16)
    for update in (stochastic_adamw_, lambda *given: stochastic_adamw._anywhere(*given[:5], *given[5], given[6])):
        whole, parts = state((30, 50), types), state((30, 50), types)
        update(*whole, STEP, Place((0, 0), (30, 50)), (0, 1, 2))
        for rows, columns in (
            (slice(0, 11), slice(0, 50)),
            (slice(11, 30), slice(0, 7)),
            (slice(11, 30), slice(7, 50)),
        ):
            part = [tensor[rows, columns].clone() for tensor in parts]
            update(*part, STEP, Place((rows.start, columns.start), (30, 50)), (0, 1, 2))
            assert all(torch.equal(new, tensor[rows, columns]) for new, tensor in zip(part, whole, strict=True))


@pytest.mark.parametrize("update", [stochastic_adamw_, None], ids=["as here", "plain"])
def test_the_second_moment_falls_in_bf16(update: Any) -> None:
    """By a thousandth a step: plainly rounded it would stay where it is."""
    weight, gradient, mean, square = torch.zeros(64, 64), torch.zeros(64, 64), *torch.zeros(2, 64, 64).bfloat16()
    square.fill_(1)
    step = STEP._replace(beta2=0.999)
    for number in range(500):
        if update is None:
            stochastic_adamw._anywhere(weight, gradient, mean, square, step, (0, 0), (64, 64), (0, number))
        else:
            update(weight, gradient, mean, square, step, Place((0, 0), (64, 64)), (0, number))
    assert float(square.float().mean()) == pytest.approx(0.999**500, rel=0.01)
    assert float(torch.tensor(1.0).bfloat16() * 0.999) == 1


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_shows(value: float) -> None:
    given = state((8, 8), (torch.bfloat16,) * 3)
    given[1][2, 3] = value
    stochastic_adamw_(*given, STEP, Place((0, 0), (8, 8)), (0,))
    for tensor in (given[0], given[2], given[3]):
        assert not tensor[2, 3].isfinite()
        assert int(tensor.isfinite().sum()) == 63
