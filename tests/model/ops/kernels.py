"""Our Triton kernels against PyTorch's operations in fp64, forward and backward, over random shapes.

Run by `test_interpreted.py` in a process whose Triton interprets kernels, or by hand on a GPU:
`pytest -n 0 tests/model/ops/kernels.py`. A kernel computes in fp32 whatever the type of its tensors, so what it returns
may be off by one rounding to that type, and by fp32's own error in sums.
"""

import os
import sys
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
import triton
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from yalm.errors import YalmError
from yalm.model.config import ModelConfig
from yalm.model.network import DocumentAttention, Rotary, Yalm, build, causal_attention, initialize
from yalm.model.ops import cross_entropy
from yalm.model.ops.cross_entropy import linear_cross_entropy
from yalm.model.ops.fuse import fuse
from yalm.model.ops.geglu import geglu
from yalm.model.ops.layer_norm import add_layer_norm, layer_norm
from yalm.model.ops.rotary import split_rotary
from yalm.model.ops.softmax_loss import softmax_losses_
from yalm.training.parallel import join_world, parallelize
from yalm.training.settings import ComputeSettings

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"
EPS = 1e-5
WIDEST = 27_308
SIZES = {"vocab_size": 61, "embedding_size": 12, "hidden_size": 24, "num_layers": 2, "num_heads": 3}
CONFIG = ModelConfig(**SIZES, intermediate_size=41)
types = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
heights, widths, seeds = st.integers(1, 20), st.integers(1, 200), st.integers(0, 2**31)
search = settings(max_examples=int(os.environ.get("KERNEL_EXAMPLES", "25")))


def draw(seed: int, dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Leaves of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    return [tensor.to(DEVICE, dtype).requires_grad_() for tensor in tensors]


def exact(*tensors: Tensor) -> list[Tensor]:
    """The same leaves in fp64."""
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_rounded(actual: Tensor, wanted: Tensor, terms: int = 1) -> None:
    """`actual` is `wanted` rounded to its type; in fp32 as well as a sum of so many terms can be."""
    digit = torch.finfo(actual.dtype).eps
    # To bf16 the interpreter does not round, it cuts.
    error = digit if actual.dtype == torch.bfloat16 and DEVICE == "cpu" else digit / 2
    torch.testing.assert_close(actual.double(), wanted, rtol=1.001 * error + 1e-5, atol=3e-6 * terms**0.5)


@search
@given(heights, widths, types, seeds)
@example(1, WIDEST, torch.bfloat16, 0)
@example(2, WIDEST, torch.float32, 1)
@example(300, 5, torch.float32, 2)
def test_geglu(height: int, width: int, dtype: torch.dtype, seed: int) -> None:
    shapes = ((height, width), (height, width), (width,), (width,))
    inputs = draw(seed, dtype, *shapes)
    gate, up, gate_bias, up_bias = exactly = exact(*inputs)
    (upstream,) = draw(seed + 1, dtype, (height, width))
    output = geglu(*inputs)
    wanted = F.gelu(gate + gate_bias) * (up + up_bias)
    assert_rounded(output, wanted)
    gradients = torch.autograd.grad(output, inputs, upstream)
    for gradient, want in zip(gradients, torch.autograd.grad(wanted, exactly, upstream.double()), strict=True):
        assert_rounded(gradient, want, height)


@search
@given(heights, st.integers(16, 200), types, seeds)
@example(1, WIDEST, torch.bfloat16, 0)
@example(2, WIDEST, torch.float32, 1)
@example(300, 17, torch.float32, 2)
def test_layer_norm(height: int, width: int, dtype: torch.dtype, seed: int) -> None:
    inputs = draw(seed, dtype, (height, width), (width,), (width,))
    x, weight, shift = exactly = exact(*inputs)
    (upstream,) = draw(seed + 1, dtype, (height, width))
    output = layer_norm(*inputs, EPS)
    wanted = F.layer_norm(x, (width,), weight, shift, EPS)
    compare_norms(output, wanted, inputs, exactly, upstream)


@search
@given(heights, st.integers(16, 200), types, seeds)
@example(1, WIDEST, torch.bfloat16, 0)
@example(2, WIDEST, torch.float32, 1)
@example(300, 17, torch.float32, 2)
def test_add_layer_norm(height: int, width: int, dtype: torch.dtype, seed: int) -> None:
    inputs = draw(seed, dtype, (height, width), (height, width), (width,), (width,), (width,))
    x, branch, bias, weight, shift = exactly = exact(*inputs)
    upstream, beside = draw(seed + 1, dtype, (height, width), (height, width))
    total, output = add_layer_norm(*inputs, EPS)
    whole = x + branch + bias
    assert_rounded(total, whole)
    # The norm is that of the rounded sum.
    rounded = whole + (total.double() - whole).detach()
    wanted = F.layer_norm(rounded, (width,), weight, shift, EPS)
    compare_norms(output, wanted, inputs, exactly, upstream, (total, rounded, beside))


def compare_norms(
    output: Tensor,
    wanted: Tensor,
    inputs: list[Tensor],
    exactly: list[Tensor],
    upstream: Tensor,
    residual: tuple[Tensor, Tensor, Tensor] | None = None,
) -> None:
    """The outputs, with a residual's sum both, and the gradients of all inputs."""
    assert_rounded(output, wanted)
    outputs, upstreams, exact_outputs = [output], [upstream], [wanted]
    if residual:
        total, exact_total, beside = residual
        outputs, upstreams, exact_outputs = [output, total], [upstream, beside], [wanted, exact_total]
    gradients = torch.autograd.grad(outputs, inputs, upstreams)
    wants = torch.autograd.grad(exact_outputs, exactly, [tensor.double() for tensor in upstreams])
    for gradient, want in zip(gradients, wants, strict=True):
        assert_rounded(gradient, want, len(output))


@search
@given(
    batch=st.integers(1, 3),
    seq=st.integers(1, 5),
    heads=st.integers(1, 20),
    half=st.integers(1, 41),
    each=st.booleans(),
    dtype=types,
    seed=seeds,
)
def test_rotary(batch: int, seq: int, heads: int, half: int, each: bool, dtype: torch.dtype, seed: int) -> None:
    (qkv,) = draw(seed, dtype, (batch, seq, heads, 3, 2 * half))
    config = ModelConfig(
        **SIZES | {"hidden_size": 2 * half * heads, "num_heads": heads, "embedding_size": 1}, intermediate_size=1
    )
    positions = torch.randint(1000, (batch, seq) if each else (seq,), generator=torch.Generator().manual_seed(seed))
    rotary = Rotary(positions.to(DEVICE), config, dtype)
    outputs = split_rotary(qkv, rotary.cos, rotary.sin)
    rotary.cos, rotary.sin = rotary.cos.double(), rotary.sin.double()
    (exactly,) = exact(qkv)
    wanted = (*rotary(exactly[..., :2, :]).unbind(-2), exactly[..., 2, :])
    # Gradients come as attention leaves them, heads before positions.
    upstreams = [tensor.transpose(1, 2) for tensor in draw(seed + 1, dtype, *[(batch, heads, seq, 2 * half)] * 3)]
    (gradient,) = torch.autograd.grad(outputs, qkv, upstreams)
    (want,) = torch.autograd.grad(wanted, exactly, [tensor.double() for tensor in upstreams])
    for actual, expected in zip((*outputs, gradient), (*wanted, want), strict=True):
        assert_rounded(actual, expected)


@search
@given(heights, widths, types, seeds)
@example(1, WIDEST, torch.bfloat16, 0)
@example(3, WIDEST, torch.float32, 1)
@example(2, 8193, torch.float32, 2)
def test_softmax_loss(height: int, width: int, dtype: torch.dtype, seed: int) -> None:
    (leaf,) = draw(seed, dtype, (height, width))
    logits = (20 * leaf).detach()
    targets = torch.randint(width, (height,), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    weights = draw(seed + 1, torch.float32, (height,))[0].detach()
    (exactly,) = exact(logits)
    wanted = F.cross_entropy(exactly, targets, reduction="none")
    (want,) = torch.autograd.grad(wanted, exactly, weights.double())
    before = logits.clone()
    torch.testing.assert_close(softmax_losses_(logits, targets, None).double(), wanted, rtol=1e-5, atol=3e-5)
    assert logits.equal(before)
    torch.testing.assert_close(softmax_losses_(logits, targets, weights).double(), wanted, rtol=1e-5, atol=3e-5)
    assert_rounded(logits, want, 100)


def test_loss_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = draw(0, torch.float32, (300, 16), (50, 16), (50,))
    targets = torch.randint(50, (300,), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    weights = draw(1, torch.float32, (300,))[0].detach()
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": 0, "cuda": 0})
    results = []
    for kernel in (False, True):
        monkeypatch.setattr(cross_entropy, "has_kernel", lambda logits, kernel=kernel: kernel)
        loss, losses = linear_cross_entropy(*inputs, targets, weights)
        with torch.no_grad():
            without_gradients, _ = linear_cross_entropy(*inputs, targets, weights)
        results.append([loss, losses, without_gradients, *torch.autograd.grad(loss, inputs)])
    for fused, plain in zip(*results, strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-4)


def learn(model: Yalm) -> dict[str, Tensor]:
    """The loss and all gradients of a network on made-up texts whose documents do not see each other."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(CONFIG.vocab_size, (2, 18), generator=generator).to(DEVICE)
    documents = torch.tensor([[0] * 7 + [1] * 10, [0] * 17], device=DEVICE)
    positions = torch.arange(17, device=DEVICE).expand(2, -1)
    loss = model(ids[:, :-1], ids[:, 1:], positions=positions, attention=DocumentAttention(documents))
    loss.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in gradients.items()}
    return whole | {"loss": loss.detach()}


def network() -> Yalm:
    return initialize(build(CONFIG, DEVICE), seed=1, table_std=0.2)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_fused_network_learns_the_same(recompute: Literal["none", "selective", "full"]) -> None:
    plain, model = learn(network()), network()
    fuse(model)
    with join_world(ComputeSettings(device=DEVICE)) as world:
        # Not compiled, and not fused twice.
        settings = ComputeSettings(device=DEVICE, recompute=recompute, compile="off", fused=False)
        fused = learn(parallelize(model, world, settings))
    assert plain.keys() == fused.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-4)


def test_a_fused_network_learns_the_same_in_shards_and_bf16() -> None:
    with join_world(ComputeSettings(device=DEVICE)) as world:
        settings = ComputeSettings(device=DEVICE, precision="bf16", recompute="full", compile="off", fused=False)
        plain, model = learn(parallelize(network(), world, settings)), parallelize(network(), world, settings)
        fuse(model)
        fused = learn(model)
    assert fused["loss"].item() == pytest.approx(plain["loss"].item(), rel=0.01)
    for name, gradient in plain.items():
        assert (fused[name] - gradient).norm() <= 0.05 * gradient.norm(), name


def test_linears_of_others_keep_their_layer_plain() -> None:
    class Float8Linear(nn.Linear):
        pass

    plain, model = learn(network()), network()
    model.model.layers[1].mlp.up_proj.__class__ = Float8Linear
    fuse(model)
    assert ["forward" in vars(layer) for layer in model.model.layers] == [True, False]
    for name, gradient in learn(model).items():
        torch.testing.assert_close(plain[name], gradient, rtol=1e-4, atol=1e-4)


def test_without_triton_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yalm.model.ops.layer_norm", None)
    with pytest.raises(YalmError, match="pip install triton"):
        fuse(network())


def kept(model: Yalm, tokens: int) -> int:
    """Bytes that the second layer keeps for its backward pass, beside weights and angles."""
    rotary = Rotary(torch.arange(tokens, device=DEVICE), CONFIG, torch.float32)
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), rotary.cos, rotary.sin)}
    storages = {}

    def note(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    (x,) = draw(0, torch.float32, (1, tokens, CONFIG.hidden_size))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model.model.layers[1](x, rotary, causal_attention)
    assert output.requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in known)


def test_a_fused_layer_keeps_less() -> None:
    plain, model = network(), network()
    fuse(model)
    tokens = 64
    saved = 4 * tokens * (2 * CONFIG.hidden_size + CONFIG.intermediate_size)
    assert kept(plain, tokens) - kept(model, tokens) == saved
