"""The mixture: which sequence of which part is training sample n, as a pure function of n.

Weights are shares of samples. The parts stand at the leaves of a balanced binary tree; at each node sample m goes to
the left exactly when floor((m + 1) p) > floor(m p), p being the left side's share, and is sample floor(m p) there, else
sample m - floor(m p) on the right. So after any n samples a part has been used weight * n times, give or take the depth
of the tree (log2 of the number of parts), with no history to keep and no index files to build. Exact fractions keep
this true for any n; the price is some microseconds of integer arithmetic a sample.

A part that has been read `max_epochs` times (3 in YaLM) is retired, and its weight goes to the others in proportion:
there are at most as many such phases as parts, found once by bisection. Within an epoch, a part's sequences come in a
pseudo-random order, each exactly once: a Feistel network (Luby and Rackoff 1988) keyed by seed, part and epoch permutes
the smallest power of two that holds them, and walks on while it lands outside.
"""

import hashlib
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Annotated, NamedTuple

from pydantic import Field

from yalm.config import Settings
from yalm.errors import YalmError

_ROUNDS = 6
_MASK = (1 << 64) - 1


class PartSettings(Settings):
    """One part of a mixture: a token folder `path`, its share of the samples, and how often it may be read at most."""

    name: str
    path: str
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    max_epochs: Annotated[int, Field(ge=1)] = 3
    language: str | None = None


class Place(NamedTuple):
    """Where a sample comes from: a `sequence` of part number `part`, read for the `epoch`-th time (from 0)."""

    part: int
    sequence: int
    epoch: int


@dataclass(frozen=True)
class PartReport:
    """What a number of samples takes of one part; `epochs` is fractional, `share` is of the tokens taken."""

    name: str
    language: str | None
    available_tokens: int
    tokens: int
    share: float
    epochs: float
    max_epochs: int


@dataclass(frozen=True)
class _Node:
    """A part of the tree: a leaf for one part (no sides), or two sides, the left one's share being a fraction."""

    parts: tuple[int, ...]
    numerator: int = 0
    denominator: int = 1
    sides: "tuple[_Node, _Node] | None" = None

    def left_of(self, m: int) -> int:
        """How many of the first `m` samples go to the left."""
        return m * self.numerator // self.denominator


@dataclass(frozen=True)
class _Phase:
    """The samples from `start` until the next part is retired; `used` is what each part had given before."""

    start: int
    used: tuple[int, ...]
    tree: _Node


class Mixture:
    """Samples of `parts`, part i having `sizes[i]` sequences of `sequence_length` tokens.

    YalmError if there is no part, two have one name, or one has no whole sequence. `num_samples` is how many samples
    the caps allow.
    """

    def __init__(
        self, parts: Sequence[PartSettings], sizes: Sequence[int], sequence_length: int, seed: int = 0
    ) -> None:
        if not parts:
            raise YalmError("the mixture has no parts; name at least one token folder")
        names = [part.name for part in parts]
        for part, size in zip(parts, sizes, strict=True):
            if names.count(part.name) > 1:
                raise YalmError(f"two parts of the mixture are named {part.name!r}; give each its own name")
            if size < 1:
                raise YalmError(
                    f"part {part.name!r} ({part.path}) has not one sequence of {sequence_length} tokens; "
                    "leave it out, or use a shorter sequence_length"
                )
        self.parts = tuple(parts)
        self.sizes = tuple(sizes)
        self.sequence_length = sequence_length
        self.seed = seed
        self._limits = tuple(size * part.max_epochs for part, size in zip(parts, sizes, strict=True))
        self.num_samples = sum(self._limits)
        self._phases = self._plan()
        self._starts = [phase.start for phase in self._phases]

    def place(self, n: int) -> Place:
        """Where sample `n` (from 0) comes from. YalmError past the last sample that the caps allow."""
        if n < 0:
            raise IndexError(f"sample {n}: samples are counted from 0")
        self.require(n + 1)
        phase = self._phase(n)
        part, rank = _descend(phase.tree, n - phase.start)
        epoch, position = divmod(phase.used[part] + rank, self.sizes[part])
        key = f"{self.seed}/{self.parts[part].name}/{epoch}"
        return Place(part, permute(position, self.sizes[part], key), epoch)

    def counts(self, n: int) -> tuple[int, ...]:
        """How many of the first `n` samples come from each part; 0 ≤ n ≤ num_samples."""
        self.require(n)
        phase = self._phase(n)
        counts = list(phase.used)
        _count(phase.tree, n - phase.start, counts)
        return tuple(counts)

    def require(self, num_samples: int) -> None:
        """YalmError, saying what there is and what to change, if the caps do not allow so many samples."""
        if num_samples > self.num_samples:
            tokens, wanted = (count * self.sequence_length for count in (self.num_samples, num_samples))
            raise YalmError(
                f"the mixture has {tokens:,} tokens with its epoch caps, but {wanted:,} are asked for; "
                "train for fewer steps, raise max_epochs, or add data"
            )

    def report(self, num_samples: int) -> list[PartReport]:
        """Tokens, share and epochs of each part in the first `num_samples` samples. YalmError if there are fewer."""
        return [
            PartReport(
                name=part.name,
                language=part.language,
                available_tokens=size * self.sequence_length,
                tokens=count * self.sequence_length,
                share=count / num_samples if num_samples else 0.0,
                epochs=count / size,
                max_epochs=part.max_epochs,
            )
            for part, size, count in zip(self.parts, self.sizes, self.counts(num_samples), strict=True)
        ]

    def _phase(self, n: int) -> _Phase:
        return self._phases[bisect_right(self._starts, n) - 1]

    def _plan(self) -> list[_Phase]:
        """The phases between retirements; the last one begins at `num_samples` at the latest."""
        weights = [Fraction(str(part.weight)) for part in self.parts]
        phases: list[_Phase] = []
        start, used = 0, [0] * len(self.parts)
        while active := [part for part in range(len(used)) if used[part] < self._limits[part]]:
            tree = _tree(active, weights)
            phases.append(_Phase(start, tuple(used), tree))
            length = self._phase_length(tree, used)
            _count(tree, length, used)
            start += length
        return phases

    def _phase_length(self, tree: _Node, used: Sequence[int]) -> int:
        """The smallest number of samples of this phase after which a part has given all it may."""

        def exhausted(samples: int) -> bool:
            counts = list(used)
            _count(tree, samples, counts)
            return any(counts[part] >= self._limits[part] for part in tree.parts)

        return bisect_left(range(self.num_samples - sum(used) + 1), True, key=exhausted)


def permute(position: int, size: int, key: str) -> int:
    """The image of `position` under the pseudo-random permutation of 0 … size - 1 that `key` names."""
    bits = max((size - 1).bit_length(), 2)
    low_bits = bits // 2
    high_bits = bits - low_bits
    keys = _round_keys(key)
    value = position
    while True:
        low, high = value & ((1 << low_bits) - 1), value >> low_bits
        for turn in range(0, _ROUNDS, 2):
            low ^= _mixed(high ^ keys[turn]) & ((1 << low_bits) - 1)
            high ^= _mixed(low ^ keys[turn + 1]) & ((1 << high_bits) - 1)
        value = high << low_bits | low
        if value < size:
            return value


@lru_cache(maxsize=1024)
def _round_keys(key: str) -> tuple[int, ...]:
    return struct.unpack(f"<{_ROUNDS}Q", hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest())


def _mixed(value: int) -> int:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ value >> 27) * 0x94D049BB133111EB & _MASK
    return value ^ value >> 31


def _tree(parts: Sequence[int], weights: Sequence[Fraction]) -> _Node:
    """A balanced tree over `parts`."""
    if len(parts) == 1:
        return _Node(tuple(parts))
    half = len(parts) // 2
    left, right = parts[:half], parts[half:]
    share = sum((weights[part] for part in left), Fraction()) / sum((weights[part] for part in parts), Fraction())
    return _Node(tuple(parts), share.numerator, share.denominator, (_tree(left, weights), _tree(right, weights)))


def _descend(node: _Node, m: int) -> tuple[int, int]:
    """The part that sample `m` of a tree falls to, and how many samples that part got before it."""
    while node.sides is not None:
        before = node.left_of(m)
        left = node.left_of(m + 1) > before
        node, m = (node.sides[0], before) if left else (node.sides[1], m - before)
    return node.parts[0], m


def _count(node: _Node, m: int, counts: list[int]) -> None:
    """Add to `counts` how many of the first `m` samples of a tree fall to each part."""
    if node.sides is None:
        counts[node.parts[0]] += m
        return
    left = node.left_of(m)
    _count(node.sides[0], left, counts)
    _count(node.sides[1], m - left, counts)
