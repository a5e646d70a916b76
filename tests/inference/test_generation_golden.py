"""What the original generated, we generate: every id, from plain weights and from packed ones."""

import json
from typing import Any

import pytest
import torch

from support import GOLDEN
from yalm.inference.language_model import LanguageModel
from yalm.inference.loading import load
from yalm.inference.sampling import SamplingSettings, distribution

GENERATION = json.loads((GOLDEN / "generation.json").read_text())
LOSSES = json.loads((GOLDEN / "loss.json").read_text())


@pytest.fixture(scope="module", params=["plain", "packed"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    if request.param == "plain":
        plain: LanguageModel = request.getfixturevalue("lm")
        return plain
    return load(request.getfixturevalue("folder"))


@pytest.mark.parametrize("item", GENERATION["greedy"], ids=lambda item: item["prompt"][:12])
def test_greedy(model: LanguageModel, item: dict[str, Any]) -> None:
    prompt_ids, expected = item["prompt_ids"], item["output_ids"][len(item["prompt_ids"]) :]
    made = model.generate(item["prompt"], max_tokens=len(expected), temperature=0)[0]
    assert list(made.ids) == expected
    assert made.finish_reason == ("stop" if item["ended_with_eos"] else "length")
    assert made.prompt_tokens == len(prompt_ids)
    assert made.text == model.tokenizer.suffix(prompt_ids, expected)
    if model.tokenizer.decode(prompt_ids) == item["prompt"]:  # elsewhere the original cuts its suffix wrongly
        assert made.text == item["suffix"]


def test_greedy_batch(model: LanguageModel) -> None:
    item = GENERATION["greedy_batch"]
    made = model.generate(item["prompts"], max_tokens=item["out_seq_length"], temperature=0)
    for one, prompt_ids, output_ids, length in zip(
        made, item["prompt_ids"], item["output_ids"], item["lengths"], strict=True
    ):
        expected = output_ids[len(prompt_ids) :]
        # In the original rows go on after their </s>, and all end when the shortest prompt has its full continuation.
        if 2 in expected:
            assert list(one.ids) == output_ids[len(prompt_ids) : length]
            assert one.finish_reason == "stop"
        else:
            assert list(one.ids[: len(expected)]) == expected
            assert len(one.ids) == item["out_seq_length"]
            assert one.finish_reason == "length"


def test_greedy_unconditional(model: LanguageModel) -> None:
    item = GENERATION["greedy_unconditional"]
    made = model.generate("", max_tokens=len(item["output_ids"]) - 1, temperature=0)[0]
    assert [1, *made.ids] == item["output_ids"]


@pytest.mark.parametrize("vector", GENERATION["sampling_filter"])
def test_sampling_filter(vector: dict[str, Any]) -> None:
    logits = torch.tensor([vector["logits"]])
    for case in vector["cases"]:
        settings = SamplingSettings(**{name: case[name] for name in ("temperature", "top_k", "top_p")})
        probabilities = distribution(logits, settings)[0]
        assert probabilities.nonzero().flatten().tolist() == case["kept_ids"], case
        torch.testing.assert_close(probabilities[case["kept_ids"]], torch.tensor(case["probs"]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("item", LOSSES)
def test_losses(model: LanguageModel, item: dict[str, Any]) -> None:
    (logprobs,) = model.score_ids([item["tokens"]])
    torch.testing.assert_close(-torch.tensor(logprobs), torch.tensor(item["per_token_loss"]), atol=1e-4, rtol=0)
