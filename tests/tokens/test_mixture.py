"""The mixture: shares held at every moment, caps kept, each sequence once an epoch."""

from collections import Counter
from fractions import Fraction
from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yalm.errors import YalmError
from yalm.tokens.mixture import Mixture, PartSettings, permute


def mixture(weights: list[float], sizes: list[int], epochs: list[int], seed: int = 0) -> Mixture:
    parts = [
        PartSettings(name=f"p{number}", path="x", weight=weight, max_epochs=cap)
        for number, (weight, cap) in enumerate(zip(weights, epochs, strict=True))
    ]
    return Mixture(parts, sizes, sequence_length=8, seed=seed)


mixtures = st.lists(
    st.tuples(st.floats(1e-3, 1e3), st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=6
).flatmap(lambda rows: st.integers(0, 9).map(lambda seed: mixture(*map(list, zip(*rows, strict=True)), seed)))


@given(mixtures)
@settings(max_examples=60, deadline=None)
def test_each_sequence_once_an_epoch_until_the_cap(some: Mixture) -> None:
    places = [some.place(n) for n in range(some.num_samples)]
    assert len(places) == sum(size * part.max_epochs for size, part in zip(some.sizes, some.parts, strict=True))
    expected = {
        (part, sequence, epoch)
        for part, size in enumerate(some.sizes)
        for sequence in range(size)
        for epoch in range(some.parts[part].max_epochs)
    }
    assert set(places) == expected
    for part in range(len(some.parts)):
        epochs = [place.epoch for place in places if place.part == part]
        assert epochs == sorted(epochs)


@given(mixtures)
@settings(max_examples=60, deadline=None)
def test_counts_are_the_places_counted(some: Mixture) -> None:
    counts = Counter()
    for n in range(some.num_samples):
        assert some.counts(n) == tuple(counts[part] for part in range(len(some.parts)))
        counts[some.place(n).part] += 1


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9),
    st.lists(st.integers(0, 10**14), min_size=1, max_size=20),
)
@settings(deadline=None)
def test_shares_hold_after_any_number_of_samples(weights: list[float], numbers: list[int]) -> None:
    some = mixture(weights, [10**18] * len(weights), [1] * len(weights))
    total = sum(Fraction(str(weight)) for weight in weights)
    bound = max(1, ceil(log2(len(weights))))
    for n in numbers:
        for weight, count in zip(weights, some.counts(n), strict=True):
            assert abs(count - n * Fraction(str(weight)) / total) <= bound


def test_weight_of_a_retired_part_goes_to_the_rest() -> None:
    some = mixture([0.5, 0.25, 0.25], [10, 10**6, 10**6], [3, 1, 1])
    assert some.counts(60) == (30, 15, 15)
    assert some.counts(1060) == (30, 515, 515)


@given(st.integers(1, 600), st.text(max_size=8))
@settings(max_examples=80, deadline=None)
def test_permutation_is_one(size: int, key: str) -> None:
    assert sorted(permute(position, size, key) for position in range(size)) == list(range(size))


def test_permutations_look_drawn() -> None:
    """Over many keys each image is as frequent as the next (chi-squared, 49 degrees of freedom), and pairs too."""
    counts = Counter(permute(3, 50, f"key {number}") for number in range(10_000))
    assert sum((counts[image] - 200) ** 2 / 200 for image in range(50)) < 100
    rising = sum(permute(n, 1000, "k") < permute(n + 1, 1000, "k") for n in range(999))
    assert 430 < rising < 570


def test_order_depends_on_seed_part_and_epoch() -> None:
    def order(seed: int, part: int, epoch: int) -> list[int]:
        some = mixture([1, 1], [100, 100], [2, 2], seed)
        places = [some.place(n) for n in range(400)]
        return [place.sequence for place in places if (place.part, place.epoch) == (part, epoch)]

    orders = [order(0, 0, 0), order(1, 0, 0), order(0, 1, 0), order(0, 0, 1)]
    assert orders[0] == order(0, 0, 0)
    assert len({tuple(some) for some in orders}) == 4
    assert sum(a == b for a, b in zip(orders[0], orders[3], strict=True)) < 10


def test_more_than_there_is() -> None:
    some = mixture([1, 1], [10, 20], [3, 1])
    some.require(50)
    with pytest.raises(
        YalmError, match=r"has 400 tokens with its epoch caps, but 408 are asked for; .*raise max_epochs"
    ):
        some.place(50)
    with pytest.raises(YalmError, match="408"):
        some.report(51)
    with pytest.raises(IndexError):
        some.place(-1)


def test_report() -> None:
    some = mixture([3, 1], [10, 20], [3, 1])
    first, second = some.report(20)
    assert (first.tokens, first.share, first.epochs) == (120, 0.75, 1.5)
    assert (second.tokens, second.share, second.epochs, second.available_tokens) == (40, 0.25, 0.25, 160)


def test_bad_parts() -> None:
    with pytest.raises(YalmError, match="no parts"):
        Mixture([], [], 8)
    with pytest.raises(YalmError, match=r"'p0' .x. has not one sequence of 8"):
        mixture([1], [0], [1])
    with pytest.raises(YalmError, match="two parts"):
        Mixture([PartSettings(name="a", path="x"), PartSettings(name="a", path="y")], [1, 1], 8)
    for values in ({"weight": 0}, {"weight": float("nan")}, {"max_epochs": 0}):
        with pytest.raises(YalmError):
            PartSettings.parse({"name": "a", "path": "x", **values}, "test")
