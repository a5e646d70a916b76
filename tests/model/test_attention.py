"""The C++ attention of CPUs against the network's own, in twice the precision, forward and backward."""

import ctypes
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from yalm.model.config import ModelConfig
from yalm.model.network import Attention, DocumentAttention, Rotary, build, causal_attention, initialize
from yalm.model.ops import attention, native
from yalm.model.ops.attention import attend_cached, native_attention, rotary_attention

Libraries = dict[str, ctypes.CDLL]
CONFIG = ModelConfig(vocab_size=61, embedding_size=12, hidden_size=24, num_layers=2, num_heads=3, intermediate_size=40)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    """The functions for this machine's instructions, and for AVX2 alone."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        for name, flags in (("own", ()), ("avx2", ("-mno-avx512f",))):
            patch.setattr(native, "FLAGS", (*native.FLAGS, *flags))
            library = native.library.__wrapped__("attention")
            if library is None:
                pytest.skip("no C++ compiler here")
            made[name] = library
    return made


def use(patch: pytest.MonkeyPatch, library: ctypes.CDLL) -> None:
    patch.setattr(attention, "library", lambda name: library)


def plain(qkv: Tensor, rotary: Rotary, attend: Attention) -> Tensor:
    """As `network.SelfAttention`, between the projections."""
    query_key, value = qkv.split((2, 1), dim=-2)
    query, key = rotary(query_key).unbind(-2)
    parts = (part.transpose(1, 2) for part in (query, key, value.squeeze(-2)))
    return attend(*parts, 0).transpose(1, 2)


def rotary_of(positions: Tensor, size: int, dtype: torch.dtype) -> Rotary:
    sizes = {"hidden_size": size, "embedding_size": size, "num_heads": 1}
    return Rotary(positions, CONFIG.model_copy(update=sizes), dtype)


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 200), st.integers(1, 3), st.integers(1, 70).map(lambda n: 2 * n))


@pytest.mark.parametrize("name", ["own", "avx2"])
def test_equals_the_plain_attention(libraries: Libraries, name: str) -> None:
    @settings(max_examples=60)
    @given(SHAPES, st.sampled_from((0.0, 0.02, 0.3)), st.booleans(), st.sampled_from((1.0, 30.0)))
    def check(shape: tuple[int, int, int, int], borders: float, stretched: bool, scale: float) -> None:
        batch, seq, heads, size = shape
        drawn = torch.Generator().manual_seed(seq)
        qkv = torch.randn(batch, seq, heads, 3, size, generator=drawn)
        qkv[..., :2, :] *= scale**0.5  # scores of up to thousands, with a softmax that is nearly one key's
        upstream = torch.randn(batch, seq, heads, size, generator=drawn)
        documents = (torch.rand(batch, seq, generator=drawn) < borders).cumsum(1)
        # Not just moved: that would change nothing.
        positions = torch.arange(seq) * (1 + torch.arange(batch)[:, None]) if stretched else torch.arange(seq)
        attend = DocumentAttention(documents) if borders else causal_attention
        exact = qkv.double().requires_grad_()
        expected = plain(exact, rotary_of(positions, size, torch.float64), attend)
        expected.backward(upstream.double())
        rotary, given = rotary_of(positions, size, torch.float32), qkv.clone().requires_grad_()
        starts = attend.starts if isinstance(attend, DocumentAttention) else None
        with pytest.MonkeyPatch.context() as patch:
            use(patch, libraries[name])
            context, _ = rotary_attention(given, rotary.cos, rotary.sin, starts)
            context.backward(upstream)
        # A score is off by some roundings of its size, and with it a share and all that it weighs.
        error = 2e-6 * scale * size**0.5
        assert exact.grad is not None
        torch.testing.assert_close(context.double(), expected, atol=error, rtol=0)
        torch.testing.assert_close(given.grad.double(), exact.grad, atol=10 * scale**0.5 * error, rtol=0)  # type: ignore[union-attr]

    check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_those_of_fp32_rounded(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    use(monkeypatch, libraries["own"])
    drawn = torch.Generator().manual_seed(0)
    qkv, upstream = (torch.randn(2, 70, *sizes, 16, generator=drawn).to(dtype) for sizes in ((3, 3), (3,)))
    rotary = rotary_of(torch.arange(70), 16, dtype)
    results = []
    for kind in (dtype, torch.float32):
        given = qkv.to(kind).detach().requires_grad_()
        context, log_sums = rotary_attention(given, rotary.cos.to(kind), rotary.sin.to(kind), None)
        context.backward(upstream.to(kind))
        assert given.grad is not None
        assert (context.dtype, given.grad.dtype, log_sums.dtype) == (kind, kind, torch.float32)
        results.append((context, given.grad, log_sums))
    (context, gradient, log_sums), (exact, exact_gradient, exact_sums) = results
    assert torch.equal(log_sums, exact_sums)
    assert torch.equal(context, exact.to(dtype))
    # Backward reads the rounded context.
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(gradient.float(), exact_gradient, atol=4 * step, rtol=step)


def test_long_sequences_and_wide_heads(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, libraries["own"])
    qkv = torch.randn(1, 1100, 1, 3, 256, generator=torch.Generator().manual_seed(0))
    rotary = rotary_of(torch.arange(1100), 256, torch.float32)
    context, _ = rotary_attention(qkv, rotary.cos, rotary.sin, None)
    exact = rotary_of(torch.arange(1100), 256, torch.float64)
    torch.testing.assert_close(context.double(), plain(qkv.double(), exact, causal_attention), atol=1e-5, rtol=0)


def test_threads_and_repetitions_give_the_same_bits(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, libraries["own"])
    qkv = torch.randn(2, 130, 5, 3, 48, generator=torch.Generator().manual_seed(0))
    rotary, threads = rotary_of(torch.arange(130), 48, torch.float32), torch.get_num_threads()
    results = []
    try:
        for count in (1, 3, 3):
            torch.set_num_threads(count)
            given = qkv.clone().requires_grad_()
            context, log_sums = rotary_attention(given, rotary.cos, rotary.sin, None)
            context.sum().backward()
            results.append((context, log_sums, given.grad))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("part", [0, 1, 2])
@pytest.mark.parametrize("name", ["own", "avx2"])
def test_nan_comes_through(libraries: Libraries, monkeypatch: pytest.MonkeyPatch, part: int, name: str) -> None:
    use(monkeypatch, libraries[name])
    qkv = torch.randn(1, 100, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    qkv[0, 50, 0, part, 3] = torch.nan
    qkv.requires_grad_()
    rotary = rotary_of(torch.arange(100), 8, torch.float32)
    context, _ = rotary_attention(qkv, rotary.cos, rotary.sin, None)
    assert context[0, 50].isnan().any()
    assert context[0, 99].isnan().any() == (part > 0)  # a query is its own position's alone
    assert context[0, :48].isfinite().all()
    context.sum().backward()
    assert qkv.grad is not None
    assert qkv.grad.isnan().any()


def gradients(change: Callable[[torch.nn.Module], None], attend: Attention) -> dict[str, Tensor]:
    model = initialize(build(CONFIG), seed=1, table_std=0.2)
    change(model)
    ids = torch.randint(61, (2, 71), generator=torch.Generator().manual_seed(0))
    model(ids[:, :-1], ids[:, 1:], attention=attend).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("attend", [causal_attention, DocumentAttention(torch.arange(70).expand(2, 70) // 9)])
def test_a_whole_network_learns_the_same(
    libraries: Libraries, monkeypatch: pytest.MonkeyPatch, attend: Attention
) -> None:
    use(monkeypatch, libraries["own"])
    called: list[bool] = []
    function = attention.rotary_attention
    monkeypatch.setattr(attention, "rotary_attention", lambda *given: called.append(True) or function(*given))
    wanted = gradients(lambda model: None, attend)
    assert not called
    found = gradients(native_attention, attend)
    assert called == [True] * CONFIG.num_layers
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4)


def test_other_attentions_are_called(libraries: Libraries, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, libraries["own"])
    seen: list[torch.Size] = []

    def first_only(query: Tensor, key: Tensor, value: Tensor, layer: int) -> Tensor:
        seen.append(query.shape)
        return value[:, :, :1].expand_as(query)

    model = initialize(build(CONFIG), seed=1)
    native_attention(model)
    model(torch.zeros(2, 5, dtype=torch.long), attention=first_only)
    assert seen == [torch.Size((2, 3, 5, 8))] * CONFIG.num_layers


def test_without_a_compiler_the_network_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "library", lambda name: None)
    model = build(CONFIG, "meta")
    native_attention(model)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("name", ["own", "avx2"])
def test_a_position_more_of_each_text(libraries: Libraries, name: str) -> None:
    lengths = st.lists(st.integers(1, 70), min_size=1, max_size=4)

    @settings(max_examples=60)
    @given(lengths, st.integers(1, 3), st.integers(1, 80), st.sampled_from((1.0, 30.0)), st.integers(1, 3))
    def check(lengths: list[int], heads: int, size: int, scale: float, threads: int) -> None:
        torch.manual_seed(size)
        batch, capacity = len(lengths), 70
        # As the projection gives them: one position, heads before query, key and value.
        qkv = scale * torch.randn(batch, 1, heads, 3, size)
        query, key, value = (part.transpose(1, 2) for part in qkv.unbind(3))
        keys, values = torch.full((2, batch, heads, capacity, size), torch.nan)
        wanted = []
        for row, length in enumerate(lengths):
            past = torch.randn(2, heads, length - 1, size)
            keys[row, :, : length - 1], values[row, :, : length - 1] = past
            seen = (torch.cat((past[side], new[row]), 1).double() for side, new in enumerate((key, value)))
            wanted.append(torch.nn.functional.scaled_dot_product_attention(query[row].double(), *seen))
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            got = attend_cached(query, key, value, keys, values, torch.tensor(lengths))
        finally:
            torch.set_num_threads(before)
        torch.testing.assert_close(got.double(), torch.stack(wanted), atol=2e-5 * scale, rtol=1e-4)
        for row, length in enumerate(lengths):
            assert torch.equal(keys[row, :, length - 1], key[row, :, 0])
            assert torch.equal(values[row, :, length - 1], value[row, :, 0])
            assert keys[row, :, length:].isnan().all()

    with pytest.MonkeyPatch.context() as patch:
        use(patch, libraries[name])
        check()
