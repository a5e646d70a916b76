"""Bytes of a rank: against Rajbhandari's and Korthikanti's numbers, against the network, and against each other."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yalm.model.config import ModelConfig
from yalm.model.costs import parameters
from yalm.model.ops.cross_entropy import CHUNK_BYTES
from yalm.model.presets import PRESETS, preset
from yalm.planning.memory import Layout, activation_bytes, bytes_per_rank, state_bytes

LAYOUTS = st.builds(
    Layout,
    data=st.sampled_from([1, 2, 8, 64, 800]),
    tensor=st.sampled_from([1, 2, 4]),
    zero=st.integers(0, 2),
    sequence=st.sampled_from([128, 1024, 2048]),
    micro_batch=st.integers(1, 8),
    accumulation=st.integers(1, 16),
    recompute=st.sampled_from(["none", "selective", "full"]),
    precision=st.sampled_from(["bf16", "fp32"]),
    flash=st.booleans(),
)


@pytest.mark.parametrize("name", PRESETS)
def test_sixteen_bytes_a_parameter_on_one_rank(name: str) -> None:
    config = preset(name)
    state = state_bytes(config, Layout(data=1, sequence=128))
    assert sum(state.values()) == 16 * parameters(config)["total"]


def test_zero_divides_what_its_stages_say() -> None:
    config, ranks = preset("yalm-100b"), 64
    whole = parameters(config)["total"]
    for stage, shared in enumerate([(1, 1, 1), (ranks, 1, ranks), (ranks, ranks, ranks), (ranks, ranks, ranks)]):
        state = state_bytes(config, Layout(data=ranks, zero=stage, sequence=1024, accumulation=2))
        expected = [size * whole / share for size, share in zip((4, 4, 8), shared, strict=True)]
        assert list(state.values()) == pytest.approx(expected, rel=0.01)


@given(LAYOUTS, st.sampled_from(sorted(PRESETS)))
@settings(deadline=None)
def test_every_way_to_save_memory_saves(layout: Layout, name: str) -> None:
    config = preset(name)

    def total(without: str | None = None, **changes: object) -> float:
        found = bytes_per_rank(config, layout.model_copy(update=changes))
        return found["total"] - (found[without] if without else 0)

    if layout.data > 1:
        assert total(zero=layout.zero + 1) <= total()
    assert total(recompute="full") <= total(recompute="none")
    assert total(micro_batch=layout.micro_batch + 1) > total()
    # Logits of divided words are fp32, so that the loss of few ranks takes more than that of one.
    assert total("loss", tensor=2 * layout.tensor) < total("loss")
    assert total(moments="bf16") < total()
    assert total(flash=True) <= total()


def test_a_pipeline_holds_the_layers_of_a_stage_and_no_more_micro_batches_than_stages() -> None:
    config = preset("yalm-100b")
    whole = parameters(config)["total"]
    layout = Layout(data=1, pipeline=8, zero=0, sequence=1024, accumulation=100)
    assert whole / 8 < state_bytes(config, layout)["parameters"] / 4 < whole / 8 * 1.03
    longer = layout.model_copy(update={"accumulation": 200})
    assert bytes_per_rank(config, longer) == bytes_per_rank(config, layout)


def test_activations_of_korthikantis_layer() -> None:
    # Section 4.1 has 34·H bytes for a GPT layer; ours keeps q and k twice, four of 8/3·H for its two of 4·H, no masks,
    # and in fp32 attention's log-sums and the norms' statistics.
    config = ModelConfig(
        vocab_size=64, embedding_size=96, hidden_size=96, num_layers=2, num_heads=2, intermediate_size=256
    )
    layout, tokens, statistics = Layout(data=1, sequence=64), 64, 4 * (2 + 4)

    def of_a_layer(**changes: object) -> float:
        two, three = (
            activation_bytes(config.model_copy(update={"num_layers": layers}), layout.model_copy(update=changes))
            for layers in (2, 3)
        )
        return (three - two) / tokens

    assert of_a_layer() == pytest.approx((20 + 64 / 3) * 96 + statistics)
    assert of_a_layer(flash=False) - of_a_layer() == 2 * 2 * 2 * 64
    assert of_a_layer(flash=False, recompute="selective") == of_a_layer(recompute="selective") < of_a_layer()
    assert of_a_layer(recompute="full") == 2 * 96


def test_the_loss_holds_no_more_than_its_chunks() -> None:
    layout = Layout(data=1, sequence=1024, micro_batch=64)
    config, divided = preset("yalm-100b"), layout.model_copy(update={"tensor": 4})
    logits = CHUNK_BYTES["cuda"] // 4
    assert bytes_per_rank(config, layout)["loss"] == 2 * logits
    assert bytes_per_rank(config, divided)["loss"] == 2 * 4 * logits  # of fewer words more rows
    few = layout.model_copy(update={"sequence": 2, "micro_batch": 1})
    assert bytes_per_rank(config, few)["loss"] == 2 * 2 * config.vocab_size
    few = few.model_copy(update={"tensor": 4})
    assert bytes_per_rank(config, few)["loss"] == 2 * 4 * 2 * config.vocab_size / 4
