"""Compiling layers: once for the first, once for all others, whatever else is applied to them."""

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from yalm.model.config import ModelConfig
from yalm.model.network import build, initialize
from yalm.training.parallel import join_world, parallelize
from yalm.training.settings import ComputeSettings

# More layers than the compiler compiles one function for, after which it leaves the rest alone.
CONFIG = ModelConfig(vocab_size=61, embedding_size=12, hidden_size=24, num_layers=10, num_heads=3, intermediate_size=40)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_layers_are_compiled_twice(monkeypatch: pytest.MonkeyPatch, precision: Any, recompute: Any) -> None:
    torch.compiler.reset()
    counter, compile_module = CompileCounter(), torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend=counter))
    compute = ComputeSettings(device="cpu", threads=1, compile="on", precision=precision, recompute=recompute)
    ids = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))
    with join_world(compute) as world:
        model = parallelize(initialize(build(CONFIG), seed=0), world, compute)
        model(ids, ids).backward()
    assert counter.frame_count == 2
