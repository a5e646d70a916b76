"""Every rule, on a run that shows its fault and on one that does not."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ranks import run_ranks
from sharding import profile_each
from yalm.profiling.advice import (
    RULES,
    Profile,
    advise,
    aligned_sizes,
    data_in_time,
    fused_operations,
    half_precision,
    larger_batch,
    larger_micro_batches,
    narrow_embedding,
    no_recomputation,
    prefetch_gathers,
)
from yalm.profiling.profile import profile
from yalm.tokens.batches import Batches

Profiled = Callable[..., Profile]
MakeRun = Callable[..., Any]
WIDE = ("model.hidden_size=512", "model.num_heads=4", "model.embedding_size=512", "model.num_layers=1")
GPU = torch.device("cuda")


def with_compute(profile: Profile, **changes: object) -> Profile:
    """The same profile of a run of other `compute` settings."""
    compute = profile.settings.compute.model_copy(update=changes)
    return replace(profile, settings=profile.settings.model_copy(update={"compute": compute}))


def test_a_wide_embedding_is_found_and_its_cure_promises_what_shrinks_with_it(profiled: Profiled) -> None:
    wide = profiled(*WIDE, vocabulary=16_000)
    advice = narrow_embedding(wide)
    assert advice is not None
    assert advice.change == ("model.embedding_size=384",)
    assert not advice.same_result
    # A quarter of what is proportional to the width, which is the output's products at least.
    output = wide.timeline.total(kind="matmul", module="lm_head") / wide.timeline.seconds
    assert 0.25 * output < advice.gain < 0.25
    assert "products of the output take" in advice.why
    assert advice in advise(wide)
    narrow = replace(wide, config=wide.config.model_copy(update={"embedding_size": 384}))
    assert narrow_embedding(narrow) is None


def test_sizes_that_tensor_cores_cannot_tile_are_found(profiled: Profiled) -> None:
    odd = replace(with_compute(profiled(vocabulary=512), precision="bf16"), device=GPU)
    advice = aligned_sizes(odd)
    assert advice is not None
    assert advice.change == (
        "model.embedding_size=64",
        "model.hidden_size=64",
        "model.intermediate_size=64",
    )
    # Every product has such a size here; at the peak they would take next to nothing.
    assert advice.gain < odd.timeline.total(kind="matmul") / odd.timeline.seconds
    assert advice.gain > 0.5 * odd.timeline.total(kind="matmul") / odd.timeline.seconds
    assert aligned_sizes(replace(odd, device=torch.device("cpu"))) is None
    sizes = {"vocab_size": 512, "embedding_size": 64, "hidden_size": 64, "intermediate_size": 128}
    assert aligned_sizes(replace(odd, config=odd.config.model_copy(update=sizes))) is None


def test_small_micro_batches_are_found(profiled: Profiled) -> None:
    small = profiled("batch.micro_sequences=1")
    advice = larger_micro_batches(small)
    assert advice is not None
    assert advice.change == ("batch.micro_sequences=4",)
    assert advice.same_result
    slow, fast = small.product_rates
    assert slow < fast
    saved = small.timeline.total(kind="matmul") / small.timeline.seconds * (1 - slow / fast)
    assert advice.gain > 0.999 * saved  # and idle time, of which a busy machine may leave none
    whole = larger_micro_batches(profiled("batch.micro_sequences=8"))
    assert whole is not None
    assert whole.change == ("batch.micro_sequences=32", "batch.sequences=32")
    assert not whole.same_result
    full = replace(small, memory=small.peak_bytes)
    assert larger_micro_batches(full) is None


def test_a_batch_that_the_optimizer_outweighs_is_found(profiled: Profiled) -> None:
    small = profiled("batch.sequences=1", "batch.micro_sequences=1", vocabulary=16_000)
    advice = larger_batch(small)
    assert advice is not None
    assert advice.change == ("batch.sequences=4",)
    assert advice.gain == pytest.approx(0.75 * small.timeline.total(phase="step") / small.timeline.seconds)
    other = larger_batch(profiled("batch.sequences=16", vocabulary=16_000))
    assert other is not None
    assert other.gain < advice.gain


def test_unfused_operations_are_found_on_gpus(profiled: Profiled) -> None:
    eager = replace(with_compute(profiled(), compile="off", fused=False), device=GPU)
    advice = fused_operations(eager)
    assert advice is not None
    assert advice.change == ("compute.compile=on",)
    share = eager.timeline.total(kind="element-wise") / eager.timeline.seconds
    assert 0.5 * share < advice.gain < share
    assert fused_operations(with_compute(eager, compile="auto")) is None
    assert fused_operations(with_compute(eager, fused=True)) is None
    assert fused_operations(with_compute(eager, fused=True, tensor=2)) is not None
    assert fused_operations(replace(eager, device=torch.device("cpu"))) is None


def test_products_in_fp32_are_found_on_gpus(profiled: Profiled) -> None:
    slow = profiled()
    fast = replace(slow, device=GPU, half_rate=4 * slow.machine.flops)
    advice = half_precision(fast)
    assert advice is not None
    assert advice.gain == pytest.approx(0.75 * slow.timeline.total(kind="matmul") / slow.timeline.seconds)
    assert half_precision(with_compute(fast, precision="bf16")) is None
    assert half_precision(slow) is None


def test_needless_recomputation_is_found(profiled: Profiled) -> None:
    again = profiled("compute.recompute=full")
    advice = no_recomputation(again)
    assert advice is not None
    assert advice.change == ("compute.recompute=none",)
    # Forward passes of the layers once more: of their products, a quarter.
    products = again.timeline.total(kind="matmul", recomputed=True) / again.timeline.seconds
    assert products < advice.gain < 0.4
    assert no_recomputation(profiled()) is None
    needed = replace(again, memory=again.peak_bytes)
    assert no_recomputation(needed) is None


def test_data_that_is_late_is_found(make_run: MakeRun, profiled: Profiled, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Batches.batch

    def slow(self: Batches, first: int, count: int, stride: int = 1) -> Any:
        time.sleep(0.2)
        return read(self, first, count, stride)

    in_time = data_in_time(profiled())
    monkeypatch.setattr(Batches, "batch", slow)
    facts = profile(make_run(), steps=6)  # more than are read while the profiler starts
    assert facts is not None
    found = [advice for advice in facts["advice"] if advice["rule"] == "data waiting"]
    assert len(found) == 1
    assert found[0]["gain"] == facts["kinds"]["data"] / facts["profiled_seconds"]
    assert in_time is not None
    assert found[0]["gain"] > max(0.4, in_time.gain)


def test_gathers_that_nothing_hides_are_found(make_run: MakeRun, profiled: Profiled) -> None:
    # Wide layers and few tokens, so that what is gathered takes its share of the step on any processor.
    sizes = ("model.num_layers=4", "model.hidden_size=256", "model.intermediate_size=512")
    runs = [make_run(*sizes, f"compute.prefetch={count}") for count in (0, 1)]
    (without, ahead), others = run_ranks(2, profile_each, runs)
    assert others == [None, None]  # The main rank reports.
    found = [advice for advice in without["advice"] if advice["rule"] == "prefetch off"]
    assert [advice["change"] for advice in found] == [["compute.prefetch=1"]]
    assert without["ranks"] == 2
    assert 0 < found[0]["gain"] < without["communication"]["exposed"] / without["profiled_seconds"]
    assert without["modules"]["sharding"]["backward"] > 0
    assert "prefetch off" not in [advice["rule"] for advice in ahead["advice"]]
    assert ahead["communication"]["hidden"] > 0
    assert prefetch_gathers(profiled()) is None  # One device gathers nothing.


def test_advice_is_ranked_and_small_gains_are_left_out(profiled: Profiled) -> None:
    small = profiled("batch.micro_sequences=1")
    gains = [advice.gain for advice in advise(small)]
    assert gains == sorted(gains, reverse=True)
    assert gains
    assert min(gains) >= 0.02
    rules = [rule(small) for rule in RULES]
    assert {one.rule for one in rules if one and one.gain >= 0.02} == {one.rule for one in advise(small)}
