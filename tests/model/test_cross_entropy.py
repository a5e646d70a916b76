"""Chunked linear cross entropy against the plain formula, and its memory bound."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from yalm.model.ops import cross_entropy, linear
from yalm.model.ops.cross_entropy import linear_cross_entropy
from yalm.model.ops.softmax_loss_cpu import has_softmax_losses, softmax_losses_


def problem(tokens: int, width: int, vocab: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=draw, dtype=torch.float64).float().requires_grad_()
    weight = torch.randn(vocab, width, generator=draw).requires_grad_()
    bias = torch.randn(vocab, generator=draw).requires_grad_()
    targets = torch.randint(vocab, (tokens,), generator=draw)
    weights = torch.rand(tokens, generator=draw) * (torch.rand(tokens, generator=draw) > 0.3)
    return hidden, weight, bias, targets, weights


@given(
    tokens=st.integers(1, 70),
    width=st.integers(1, 9),
    vocab=st.integers(1, 40),
    rows=st.integers(1, 33),
    scale=st.floats(-3, 3),
    seed=st.integers(0, 2**31),
    kernel=st.booleans(),
)
def test_equals_the_plain_formula(
    tokens: int, width: int, vocab: int, rows: int, scale: float, seed: int, kernel: bool
) -> None:
    hidden, weight, bias, targets, weights = problem(tokens, width, vocab, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": 0})
        patch.setattr(cross_entropy, "CHUNK_ROWS", rows)
        if not kernel:
            patch.setattr(cross_entropy, "has_softmax_losses", lambda logits: False)
        loss, losses = linear_cross_entropy(hidden, weight, bias, targets, weights)
        with torch.no_grad():
            without_gradients, _ = linear_cross_entropy(hidden, weight, bias, targets, weights)
    gradients = torch.autograd.grad(loss * scale, (hidden, weight, bias))

    expected = F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none")
    expected_loss = (expected * weights).sum()
    torch.testing.assert_close(losses, expected.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(loss, expected_loss, atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(without_gradients, expected_loss.detach(), atol=1e-3, rtol=1e-4)
    wanted = torch.autograd.grad(expected_loss * scale, (hidden, weight, bias))
    for gradient, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, want, atol=1e-3, rtol=1e-3)


needs_kernel = pytest.mark.skipif(not has_softmax_losses(torch.empty(0)), reason="no C++ here")


@needs_kernel
@given(st.integers(1, 9), st.integers(1, 2500), st.floats(0, 60), st.integers(0, 2**31), st.integers(1, 3))
@example(1, 16_385, 3.0, 0, 1)
def test_losses_and_their_gradient_in_place(rows: int, words: int, scale: float, seed: int, threads: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, words, generator=draw)
    targets, weights = torch.randint(words, (rows,), generator=draw), torch.randn(rows, generator=draw)
    exactly = logits.double().requires_grad_()
    wanted = F.cross_entropy(exactly, targets, reduction="none")
    (want,) = torch.autograd.grad(wanted, exactly, weights.double())
    before, number = logits.clone(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        alone = softmax_losses_(logits, targets, None)
        assert logits.equal(before)
        losses = softmax_losses_(logits, targets, weights)
    finally:
        torch.set_num_threads(number)
    assert losses.equal(alone)
    torch.testing.assert_close(losses.double(), wanted.detach(), rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(logits.double(), want, rtol=2e-5, atol=1e-6)


@needs_kernel
@pytest.mark.parametrize("place", [0, 8, 36])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_numbers_are_seen(number: float, place: int) -> None:
    logits = torch.randn(2, 37, generator=torch.Generator().manual_seed(0))
    logits[0, place] = number
    targets, weights = torch.tensor([3, 4]), torch.ones(2)
    exactly = logits.clone().requires_grad_()
    wanted = F.cross_entropy(exactly, targets, reduction="none")
    wanted.sum().backward()
    losses = softmax_losses_(logits, targets, weights)
    assert losses[1].isfinite()
    torch.testing.assert_close(losses, wanted.detach(), equal_nan=True)
    if number != torch.inf:
        torch.testing.assert_close(logits, exactly.grad, equal_nan=True)


@needs_kernel
@pytest.mark.parametrize("target", [-1, 5])
def test_targets_that_are_no_words_are_refused(target: int) -> None:
    with pytest.raises(IndexError, match="of 5 words"):
        softmax_losses_(torch.zeros(2, 5), torch.tensor([0, target]), None)


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, bias, targets, _ = problem(12, 4, 9, seed=0)
    loss, _ = linear_cross_entropy(hidden, weight, bias, targets)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_no_weights_means_one_each() -> None:
    hidden, weight, bias, targets, _ = problem(12, 4, 9, seed=0)
    loss, losses = linear_cross_entropy(hidden, weight, bias, targets)
    torch.testing.assert_close(loss.detach(), losses.sum())


@pytest.mark.parametrize("cast", [True, False])
def test_bf16_follows_fp32(cast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the CPU has no instructions for it, and all is computed in fp32 copies."""
    monkeypatch.setattr(linear, "cpu_multiplies", lambda dtype: not cast or dtype == torch.float32)
    hidden, weight, bias, targets, weights = problem(64, 32, 100, seed=3)
    exact, _ = linear_cross_entropy(hidden, weight, bias, targets, weights)
    inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight, bias)]
    rounded, _ = linear_cross_entropy(inputs[0], inputs[1], inputs[2], targets, weights)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    exact_gradient = torch.autograd.grad(exact, weight)[0]
    gradient = torch.autograd.grad(rounded, inputs[1])[0]
    assert gradient.dtype == torch.bfloat16
    assert (gradient.float() - exact_gradient).norm() < 0.02 * exact_gradient.norm()


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation returned."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("with_gradients", [True, False])
def test_memory_bound(monkeypatch: pytest.MonkeyPatch, with_gradients: bool) -> None:
    tokens, width, vocab = 4096, 8, 5000
    bound = 1 << 22
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", {"cpu": bound})
    hidden, weight, bias, targets, _ = problem(tokens, width, vocab, seed=1)
    assert 4 * tokens * vocab > 10 * bound
    assert bound > 4 * vocab * cross_entropy.CHUNK_ROWS
    with LargestTensor() as largest, torch.set_grad_enabled(with_gradients):
        loss, _ = linear_cross_entropy(hidden, weight, bias, targets)
        if with_gradients:
            loss.backward()
    assert bound / 2 < largest.bytes <= bound


@given(st.integers(1, 3000), st.integers(1, 4096), st.integers(1, 300_000))
def test_chunks_are_as_small_as_the_products_allow(tokens: int, width: int, vocab: int) -> None:
    hidden, weight = torch.empty(tokens, width, device="meta"), torch.empty(vocab, width, device="meta")
    chunks = cross_entropy._chunks(hidden, weight)
    assert [row for chunk in chunks for row in range(chunk.start, min(chunk.stop, tokens))] == list(range(tokens))
    rows = max(chunk.stop - chunk.start for chunk in chunks)
    assert rows >= max(128, width // 4)
    assert 4 * vocab * rows <= max(cross_entropy.CHUNK_BYTES["cuda"], 4 * vocab * 128, vocab * width)
