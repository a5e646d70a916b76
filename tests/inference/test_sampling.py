"""The distribution against its definition, spelled out token by token; draws against their probabilities."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from yalm.config import Settings
from yalm.errors import YalmError
from yalm.inference.sampling import NUCLEUS_CANDIDATES, Sampler, SamplingSettings, distribution, draw, penalize


def by_definition(logits: list[float], temperature: float, top_k: int, top_p: float) -> tuple[list[float], float]:
    """Softmax over the survivors in plain Python, and how near the decisions of top-p were."""
    scaled = [value / temperature for value in logits]
    if 0 < top_k < len(scaled):
        smallest = sorted(scaled, reverse=True)[top_k - 1]
        scaled = [value if value >= smallest else -math.inf for value in scaled]
    weights = [math.exp(value - max(scaled)) for value in scaled]
    probabilities = [weight / sum(weights) for weight in weights]
    margin = 1.0
    if top_p > 0:
        mass, kept = 0.0, set()
        for token in sorted(range(len(logits)), key=lambda token: -probabilities[token]):
            if not kept or mass <= top_p:
                kept.add(token)
            margin = min(margin, abs(mass - top_p)) if mass else margin
            mass += probabilities[token]
        probabilities = [value if token in kept else 0.0 for token, value in enumerate(probabilities)]
    return [value / sum(probabilities) for value in probabilities], margin


@given(
    # Distinct, as top-p says nothing about ties; the golden vectors have top-k's.
    quarters=st.lists(st.integers(-32, 32), min_size=1, max_size=40, unique=True),
    temperature=st.floats(0.25, 4),
    top_k=st.integers(0, 45),
    top_p=st.floats(0, 1),
)
def test_distribution_is_its_definition(quarters: list[int], temperature: float, top_k: int, top_p: float) -> None:
    logits = [value / 4 for value in quarters]
    expected, margin = by_definition(logits, temperature, top_k, top_p)
    assume(margin > 1e-5)  # nearer, float32 and float64 may decide differently
    got = distribution(torch.tensor([logits]), SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p))
    torch.testing.assert_close(got[0], torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("vocab_size", [*NUCLEUS_CANDIDATES, 3 * max(NUCLEUS_CANDIDATES)])
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_top_p_looks_as_far_as_it_must(vocab_size: int, spread: float) -> None:
    """Rows of one batch whose nuclei are smaller and larger than the candidates looked at first."""
    logits = spread * torch.randn(2, vocab_size, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1], [3]])
    got = distribution(logits, SamplingSettings(top_p=0.9))
    for row, whole in zip(got, logits.double().softmax(-1), strict=True):
        kept = whole.sort(descending=True).values
        size = int((kept.cumsum(0) <= 0.9).sum()) + 1
        assert abs(int((row > 0).sum()) - size) <= 1  # float32 sums of thousands may be a token off
        assert set(whole.topk(size - 1).indices.tolist()) <= set(row.nonzero().flatten().tolist())
        assert row.sum().item() == pytest.approx(1, abs=1e-5)


@given(
    weights=st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1)), min_size=1, max_size=30).filter(any),
    number=st.one_of(st.floats(0, 1, exclude_max=True), st.just(0.0), st.just(math.nextafter(1, 0))),
)
def test_a_draw_is_the_inverse_of_the_cumulative_distribution(weights: list[float], number: float) -> None:
    probabilities = torch.tensor([weights]) / sum(weights)
    token = int(draw(probabilities, torch.tensor([number], dtype=torch.float64)))
    assert probabilities[0, token] > 0
    cumulative = probabilities[0].double().cumsum(0)
    below = cumulative[token - 1].item() if token else 0.0
    assert below <= number * cumulative[-1].item() <= cumulative[token].item()


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.2, 0.3])
    sampler = Sampler(SamplingSettings(), 1, 4, torch.device("cpu"))
    sampler.add_row([1], 0, 0)
    logits = probabilities.log()[None]
    count = 4000
    tokens = torch.tensor([sampler.choose(logits, 0)[0] for _ in range(count)])
    frequencies = tokens.bincount(minlength=4) / count
    deviation = (probabilities * (1 - probabilities) / count).sqrt()  # of a binomial share
    assert ((frequencies - probabilities).abs() <= 4 * deviation).all()


def test_each_row_draws_by_its_own_numbers() -> None:
    """Rows that come and go around it do not change what a row draws, nor does its place."""
    settings = SamplingSettings(seed=7, repetition_penalty=1.5)
    logits = torch.randn(6, 3, 50, generator=torch.Generator().manual_seed(0))
    alone = Sampler(settings, 1, 50, torch.device("cpu"))
    alone.add_row([4, 5], 2, 1)
    expected = [alone.choose(step[2:], 0)[0] for step in logits]
    crowd = Sampler(settings, 3, 50, torch.device("cpu"))
    for number, prompt in enumerate(([1], [2], [4, 5])):
        crowd.add_row(prompt, number, 1 if number == 2 else 0)
    got = [crowd.choose(step, 0)[2] for step in logits[:3]]
    crowd.drop_row(0)  # the last row moves to its place
    got += [crowd.choose(step[[2, 1]], 0)[0] for step in logits[3:]]
    assert got == expected
    assert len({tuple(alone.sources[0].random(3)) for alone in (crowd, alone)}) == 1


def test_seed_prompt_sample_and_step_all_count() -> None:
    def texts(seed: int, prompt: int, sample: int) -> tuple[int, ...]:
        sampler = Sampler(SamplingSettings(seed=seed), 1, 1000, torch.device("cpu"))
        sampler.add_row([1], prompt, sample)
        return tuple(sampler.choose(torch.zeros(1, 1000), 0)[0] for _ in range(8))

    drawn = [texts(0, 0, 0), texts(1, 0, 0), texts(0, 1, 0), texts(0, 0, 1)]
    assert drawn[0] == texts(0, 0, 0)
    assert len(set(drawn)) == len(drawn)
    assert len(set(drawn[0])) > 1


def test_penalty_makes_seen_tokens_less_likely_whatever_their_sign() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalize(logits, seen, 4.0).tolist() == [[0.5, -8.0, 2.0, -2.0]]


def test_the_sampler_penalizes_prompt_and_continuation() -> None:
    sampler = Sampler(SamplingSettings(temperature=0, repetition_penalty=10), 1, 4, torch.device("cpu"))
    sampler.add_row([0], 0, 0)
    logits = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    assert [sampler.choose(logits, 0)[0] for _ in range(4)] == [1, 2, 3, 0]


def test_ids_beyond_the_vocabulary_are_never_chosen() -> None:
    for settings in (SamplingSettings(temperature=0), SamplingSettings()):
        sampler = Sampler(settings, 1, 3, torch.device("cpu"))
        sampler.add_row([0], 0, 0)
        assert sampler.choose(torch.tensor([[0.0, 1.0, 0.0, 100.0]]), 0)[0] < 3


@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature", -1), ("top_p", 1.5), ("top_k", -1), ("max_tokens", 0), ("seed", -1), ("temprature", 1)],
)
def test_wrong_options_are_one_line(option: str, value: float) -> None:
    assert issubclass(SamplingSettings, Settings)
    with pytest.raises(YalmError, match=option) as error:
        SamplingSettings.parse({option: value}, source="options")
    assert "\n" not in str(error.value)
