"""The learning rate: warm-up, cosine, end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yalm.training.optimizer import learning_rate, make_optimizer
from yalm.training.settings import OptimizerSettings, ScheduleSettings

SCHEDULES = st.integers(1, 10**12).flatmap(
    lambda tokens: st.builds(
        ScheduleSettings,
        tokens=st.just(tokens),
        warmup_tokens=st.integers(0, tokens),
        final_lr_ratio=st.floats(0, 1),
    )
)


@given(SCHEDULES, st.floats(1e-6, 1), st.data())
def test_shape(schedule: ScheduleSettings, lr: float, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, 2 * schedule.tokens))
    rate = learning_rate(tokens, lr, schedule)
    assert 0 <= rate <= lr * (1 + 1e-9)
    later = learning_rate(tokens + 1, lr, schedule)
    if tokens + 1 <= schedule.warmup_tokens:
        assert later > rate
    elif tokens >= schedule.warmup_tokens:
        assert later <= rate * (1 + 1e-9)
    if tokens >= schedule.tokens > schedule.warmup_tokens:
        assert rate == pytest.approx(lr * schedule.final_lr_ratio, abs=1e-12)


def test_known_points() -> None:
    schedule = ScheduleSettings(tokens=1100, warmup_tokens=100, final_lr_ratio=0.2)
    assert learning_rate(50, 1.0, schedule) == pytest.approx(0.5)
    assert learning_rate(100, 1.0, schedule) == pytest.approx(1.0)
    # Half-way down the cosine lies the mean of peak and end.
    assert learning_rate(600, 1.0, schedule) == pytest.approx((1.0 + 0.2) / 2)


def test_only_matrices_decay() -> None:
    from yalm.model.network import build
    from yalm.model.presets import preset

    model = build(preset("demo"), "meta")
    decayed, kept = make_optimizer(model, OptimizerSettings(weight_decay=0.3), seed=0).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all("norm" in names[id(p)] or names[id(p)].endswith("bias") for p in kept["params"])
    assert len(decayed["params"]) + len(kept["params"]) == len(names)
    assert all(p.dim() == 2 for p in decayed["params"])
