"""Validation against the plain formula over the same windows."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from yalm.model.config import ModelConfig
from yalm.model.network import build, initialize
from yalm.tokens.batches import windows
from yalm.tokens.folder import TokenFolder
from yalm.tokens.mixture import PartSettings
from yalm.training.parallel import World
from yalm.training.validation import ValidationPart, validate

CONFIG = ModelConfig(
    vocab_size=508, embedding_size=12, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=40, max_positions=64
)
WORLD = World(0, 1, torch.device("cpu"), None)  # type: ignore[arg-type]


def test_bits_per_byte_of_two_parts_in_one_language(token_folders: dict[str, Path]) -> None:
    model = initialize(build(CONFIG), seed=0, table_std=0.3)
    parts = [
        ValidationPart.open(PartSettings(name=name, path=str(token_folders[name]), weight=1, language=language))
        for name, language in (("first", "x"), ("second", "x"), ("held_out", "y"))
    ]
    results = validate(model, parts, WORLD, sequence_length=20, sequences=7, micro_sequences=3, cross_documents=True)
    assert set(results) == {"x", "y"}
    nats, tokens, byte_count = 0.0, 0, 0.0
    for name in ("first", "second"):
        folder = TokenFolder(token_folders[name])
        for batch in windows(folder, 20, batch_size=1, limit=7):
            with torch.no_grad():
                nats += F.cross_entropy(model(batch.inputs)[0], batch.targets[0], reduction="sum").item()
            tokens += 20
            byte_count += 20 * folder.text_bytes / folder.num_tokens
    assert results["x"]["nats_per_token"] == pytest.approx(nats / tokens, rel=1e-5)
    assert results["x"]["bits_per_byte"] == pytest.approx(nats / math.log(2) / byte_count, rel=1e-5)


def test_an_even_guess_costs_the_logarithm_of_the_vocabulary(token_folders: dict[str, Path]) -> None:
    model = initialize(build(CONFIG), seed=0)
    torch.nn.init.zeros_(model.lm_head.weight)
    part = ValidationPart.open(PartSettings(name="z", path=str(token_folders["first"]), weight=1))
    result = validate(model, [part], WORLD, sequence_length=16, sequences=4, micro_sequences=2, cross_documents=False)
    assert result["first"]["nats_per_token"] == pytest.approx(math.log(CONFIG.vocab_size), rel=1e-6)
