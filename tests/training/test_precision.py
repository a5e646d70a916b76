"""Precisions: what stays fp32 whatever is chosen, the loss scale of fp16, and what a device cannot do."""

import itertools
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ranks import run_ranks
from support import MakeSettings, losses, weights
from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.costs import alignment, unaligned
from yalm.model.network import DocumentAttention, Yalm, build, causal_attention, initialize
from yalm.model.ops import attention, cross_entropy, linear
from yalm.model.ops.native import library
from yalm.model.presets import PRESETS, preset
from yalm.training import loop
from yalm.training.loop import train
from yalm.training.metrics import read_metrics
from yalm.training.optimizer import make_optimizer
from yalm.training.parallel import World, join_world, parallelize
from yalm.training.precision import LossScale, apply_precision, clip_gradients, float8_linears, keep_weights, warnings
from yalm.training.settings import ComputeSettings, OptimizerSettings, Precision, TrainSettings, WeightType

CPU = torch.device("cpu")
BF16_WEIGHTS = ('compute.precision="bf16"', 'optimizer.weights="bf16"')
BF16_MOMENTS = ('optimizer.moments="bf16"',)
CONFIG = ModelConfig(
    vocab_size=96, embedding_size=16, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, max_positions=32
)


class Operations(TorchDispatchMode):
    """Types of the floating-point tensors that go into and come out of each operation, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.types: dict[str, list[tuple[list[torch.dtype], list[torch.dtype]]]] = defaultdict(list)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        self.types[function.__name__.split(".")[0]].append((floats(args), floats(output)))
        return output


def floats(values: Any) -> list[torch.dtype]:
    return [leaf.dtype for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def prepare(world: World, precision: Precision, kept: WeightType = "fp32") -> Yalm:
    model = initialize(build(CONFIG), seed=0)
    keep_weights(model, kept)
    return parallelize(model, world, ComputeSettings(device="cpu", precision=precision))


def backward(model: Yalm, weight: float = 1 / 48, documents: bool = False) -> None:
    ids = torch.randint(CONFIG.vocab_size, (2, 25), generator=torch.Generator().manual_seed(1))
    attention = DocumentAttention(torch.arange(24).expand(2, 24) // 7) if documents else causal_attention
    loss = model(ids[:, :-1], ids[:, 1:], torch.full((2, 24), weight), attention=attention)
    torch.autograd.backward(loss)


def trace(precision: Precision, kept: WeightType, documents: bool) -> dict[str, Any]:
    """The types of a step's operations, and of the gradients it leaves."""
    with join_world(ComputeSettings(device="cpu", threads=1)) as world:
        model = prepare(world, precision, kept)
        with Operations() as operations:
            backward(model, documents=documents)
            clip_gradients(model, 1.0)
        return dict(operations.types) | {"gradients": [([], floats([p.grad for p in model.parameters()]))]}


# The operation that attends, in PyTorch or (True) in C++. Both take three tensors, and the softmax's log-sum is fp32.
INSIDE = {False: "_scaled_dot_product_flash_attention_for_cpu", True: "rotary_attention"}
# Operations all of whose operands and results must be fp32; each must be seen, so that a new name is noticed.
EXACT = ("native_layer_norm", "native_layer_norm_backward", "cos", "sin")
LOSS = {False: ("_log_softmax", "exp_", "scatter_add_"), True: ("softmax_losses_",)}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("precision", "kept"), [("bf16", "fp32"), ("fp16", "fp32"), ("bf16", "bf16")])
def test_what_must_be_precise_is_computed_in_fp32(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, kept: WeightType, documents: bool, native: bool
) -> None:
    monkeypatch.setattr(linear, "cpu_multiplies", lambda dtype: True)
    if not native:
        monkeypatch.setattr(attention, "library", lambda name: None)
        monkeypatch.setattr(cross_entropy, "has_softmax_losses", lambda logits: False)
    elif library("attention") is None:
        pytest.skip("no C++ compiler here")
    seen = trace(precision, kept, documents)
    for name in EXACT + LOSS[native]:
        assert seen[name], name
        assert all(set(before + after) == {torch.float32} for before, after in seen[name]), (name, seen[name])
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert seen[INSIDE[native]] == [([half] * 3, [half, torch.float32])] * 2
    for name in ("_foreach_norm", "linalg_vector_norm"):
        assert {dtype for _, after in seen[name] for dtype in after} == {torch.float32}, name
    assert set(seen["gradients"][0][1]) == {torch.float32 if kept == "fp32" else torch.bfloat16}
    # And what should be fast is: all products.
    products = [before for name in ("mm", "addmm", "bmm") for before, _ in seen.get(name, [])]
    assert products
    assert all(set(before) == {half} for before in products)


@pytest.mark.parametrize(("precision", "kept"), [("fp16", "fp32"), ("bf16", "bf16")])
def test_ranks_sum_gradients_in_fp32(precision: Precision, kept: WeightType) -> None:
    for seen in run_ranks(2, trace, precision, kept, False):
        sums = [types for name, types in seen.items() if "reduce_scatter" in name]
        assert sums
        assert {dtype for types in sums for before, after in types for dtype in before + after} == {torch.float32}


def test_a_norm_of_many_small_bf16_gradients_is_exact() -> None:
    parameter = nn.Parameter(torch.zeros(1000, 100, dtype=torch.bfloat16))
    parameter.grad = torch.full_like(parameter, 2**-7)
    assert float(clip_gradients(torch.nn.ParameterList([parameter]), 1.0)) == pytest.approx(
        2**-7 * 100_000**0.5, rel=1e-6
    )
    assert float(parameter.grad.float().norm()) == pytest.approx(1, rel=0.01)


def test_gradients_are_clipped_as_torch_does() -> None:
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 5), (7,))]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    copies = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    for copy, parameter in zip(copies, parameters, strict=True):
        assert parameter.grad is not None
        copy.grad = parameter.grad.clone()
    assert torch.equal(
        clip_gradients(torch.nn.ParameterList(parameters), 0.5), torch.nn.utils.clip_grad_norm_(copies, 0.5)
    )
    for copy, parameter in zip(copies, parameters, strict=True):
        assert torch.equal(parameter.grad, copy.grad)  # type: ignore[arg-type]


def overflow(poisoned_rank: int) -> dict[str, Any]:
    """An fp16 step whose gradients overflow in the part of one rank, and then one that does not."""
    with join_world(ComputeSettings(device="cpu", threads=1)) as world:
        model = prepare(world, "fp16")
        optimizer = make_optimizer(model, OptimizerSettings(), seed=0)
        scale = LossScale("fp16", 1.0, 0)
        states = []
        for poison in (True, False):
            before = [parameter.detach().full_tensor().clone() for parameter in model.parameters()]  # type: ignore[attr-defined]
            backward(model, scale.value / 48)
            if poison and world.rank == poisoned_rank:
                gradient = model.model.layers[1].mlp.up_proj.weight.grad  # type: ignore[union-attr]
                gradient.to_local()[0, 0] = float("inf")  # type: ignore[union-attr, operator]
            scale.unscale(model.parameters())
            norm = clip_gradients(model, 1.0)
            accepted = scale.accepts(norm)
            if accepted:
                optimizer.step()
            optimizer.zero_grad()
            after = [parameter.detach().full_tensor() for parameter in model.parameters()]  # type: ignore[attr-defined]
            same = all(map(torch.equal, before, after))
            states.append((accepted, scale.value, scale.clean_steps, same))
        return {"states": states, "norm": float(norm)}


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_overflow_on_one_rank_skips_the_step_on_all(ranks: int) -> None:
    results = run_ranks(ranks, overflow, ranks - 1)
    for result in results:
        assert result["states"] == [(False, 2.0**15, 0, True), (True, 2.0**15, 1, False)]
        assert result["norm"] == results[0]["norm"]


def test_unscaled_gradients_are_those_of_fp32() -> None:
    norms = {}
    with join_world(ComputeSettings(device="cpu", threads=1)) as world:
        for precision in ("fp32", "fp16"):
            model, scale = prepare(world, precision), LossScale(precision, 1.0, 0)  # type: ignore[arg-type]
            backward(model, scale.value / 48)
            scale.unscale(model.parameters())
            norms[precision] = float(clip_gradients(model, 1.0))
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=1e-3)


def test_the_scale_grows_after_clean_steps_and_halves_at_an_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)
    scale = LossScale("fp16", 8.0, 1)
    values = []
    for norm in (1.0, 1.0, 1.0, float("nan"), 1.0, 1.0, 1.0):
        assert scale.accepts(torch.tensor(norm)) == (norm == 1.0)
        values.append((scale.value, scale.clean_steps))
    assert values == [(8, 2), (16, 0), (16, 1), (8, 0), (8, 1), (8, 2), (16, 0)]
    assert scale.record() == {"loss_scale": 16, "clean_steps": 0}


def test_gradients_that_always_overflow_end_the_run() -> None:
    scale = LossScale("fp16", 1.0, 0)
    for _ in range(15):
        assert not scale.accepts(torch.tensor(float("inf")))
    assert scale.value == 2
    with pytest.raises(YalmError, match=r"take compute\.precision bf16"):
        scale.accepts(torch.tensor(float("inf")))


def test_other_precisions_have_no_scale() -> None:
    for precision in ("fp32", "bf16", "fp8"):
        scale = LossScale(precision, 2.0**10, 5)  # type: ignore[arg-type]
        assert (scale.value, scale.record()) == (1.0, {})
        assert scale.accepts(torch.tensor(float("inf")))


@pytest.mark.parametrize(
    "overrides", [('compute.precision="fp16"',), ('compute.precision="bf16"',), BF16_WEIGHTS, BF16_MOMENTS]
)
def test_half_precision_follows_fp32(make_settings: MakeSettings, overrides: tuple[str, ...]) -> None:
    exact, half = make_settings(output="fp32"), make_settings(*overrides, output="half")
    train(exact)
    result = train(half)
    assert losses(half) == pytest.approx(losses(exact), rel=0.02)
    assert losses(half) != losses(exact)
    stored = weights(result.checkpoint)
    rounded = all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in stored.values())
    assert rounded == (overrides == BF16_WEIGHTS)


@pytest.mark.parametrize("overrides", [('compute.precision="fp16"',), (*BF16_WEIGHTS, 'optimizer.moments="bf16"')])
def test_a_resumed_run_goes_on_bit_for_bit(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    # Overflows in the first steps, and growth on both sides of the stop.
    monkeypatch.setattr(LossScale, "FIRST", 2.0**26)
    monkeypatch.setattr(LossScale, "GROWTH_INTERVAL", 3)
    whole, parts = make_settings(*overrides, output="whole"), make_settings(*overrides, output="parts")
    expected = train(whole)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, steps=7)
        assert train(parts).progress.step == 7
    result = train(parts)
    assert losses(parts) == losses(whole)
    assert scales(parts) == scales(whole)
    assert result.progress == expected.progress
    for name, tensor in weights(expected.checkpoint).items():
        assert torch.equal(weights(result.checkpoint)[name], tensor), name
    if "fp16" in overrides[0]:
        steps = list(itertools.pairwise(scales(whole)))
        assert any(after < before for before, after in steps), "no step overflowed"
        assert any(after > before for before, after in steps), "the scale never grew"
        assert losses(whole)[-1] < losses(whole)[0]


def scales(settings: TrainSettings) -> list[float]:
    return [record.get("loss_scale", 1.0) for record in read_metrics(settings.output) if "loss" in record]


def stop_after(patch: pytest.MonkeyPatch, steps: int) -> None:
    """Send this process a SIGTERM while step number `steps` is running."""
    calls, original = itertools.count(1), loop.learning_rate

    def count(*arguments: Any) -> float:
        if next(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    patch.setattr(loop, "learning_rate", count)


@pytest.fixture
def _matmul_precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.usefixtures("_matmul_precision")
def test_tf32_is_asked_for_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for precision, product in (("tf32", "high"), ("fp32", "highest"), ("tf32", "high"), ("bf16", "highest")):
        apply_precision(build(CONFIG, "meta"), precision, torch.device("cuda"))  # type: ignore[arg-type]
        assert torch.get_float32_matmul_precision() == product


@pytest.mark.parametrize(
    ("precision", "capability", "message"),
    [
        ("tf32", None, "8.0"),
        ("tf32", (7, 5), "8.0"),
        ("fp8", None, "8.9"),
        ("fp8", (8, 6), "8.9"),
        ("fp8", (9, 0), "torchao"),
    ],
)
def test_what_a_device_cannot_do_is_one_line(
    monkeypatch: pytest.MonkeyPatch, precision: Precision, capability: tuple[int, int] | None, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    device = torch.device("cuda" if capability else "cpu")
    with pytest.raises(YalmError, match=message) as error:
        apply_precision(build(CONFIG, "meta"), precision, device)
    assert "\n" not in str(error.value)


def test_float8_replaces_the_linears_that_fit() -> None:
    pytest.importorskip("torchao")
    model = build(CONFIG.model_copy(update={"intermediate_size": 40}), "meta")
    float8_linears(model, emulate=True)
    replaced = {name for name, module in model.named_modules() if type(module).__name__ == "Float8Linear"}
    layers = range(CONFIG.num_layers)
    assert replaced == {f"model.layers.{i}.self_attn.{name}" for i in layers for name in ("qkv_proj", "o_proj")}


def test_bf16_weights_want_half_precision(make_settings: MakeSettings) -> None:
    with pytest.raises(YalmError, match=r"optimizer\.weights bf16 cannot be computed with in fp32"):
        make_settings('optimizer.weights="bf16"')


def test_sizes_that_miss_tensor_cores() -> None:
    assert [alignment(dtype) for dtype in ("tf32", "bf16", "fp16", "fp8")] == [32, 64, 64, 128]
    assert unaligned(preset("yalm-100b"), "bf16") == {"intermediate_size": (27_308, 27_328)}
    assert unaligned(preset("yalm-100b"), "fp8") == {"intermediate_size": (27_308, 27_392)}
    for config, dtype in itertools.product(PRESETS.values(), ("tf32", "bf16", "fp8")):
        for size, padded in unaligned(config, dtype).values():
            assert size < padded < size + alignment(dtype)
            assert padded % alignment(dtype) == 0


def test_warnings_name_the_size_to_take() -> None:
    config = preset("yalm-100b").model_copy(update={"vocab_size": 127_999})
    assert list(warnings(config, "bf16", torch.device("cuda"))) == [
        "vocab_size 127,999 is no multiple of 64, as bf16 tensor cores want; 128,000 is",
        "intermediate_size 27,308 is no multiple of 64, as bf16 tensor cores want; 27,328 is",
    ]
    assert not list(warnings(config, "fp32", torch.device("cuda")))
    assert not list(warnings(config, "fp32", CPU))
