"""The order of a pipeline's passes: complete, few in flight, and such that no stage waits for ever."""

from hypothesis import given
from hypothesis import strategies as st

from yalm.training.pipeline import Pass, order


@given(st.integers(1, 8), st.integers(1, 20))
def test_every_micro_batch_goes_forward_and_then_backward_with_few_in_flight(count: int, micro_batches: int) -> None:
    for stage in range(count):
        passes = list(order(stage, count, micro_batches))
        for direction in ("forward", "backward"):
            assert [number for way, number in passes if way == direction] == list(range(micro_batches))
        in_flight = 0
        for way, number in passes:
            in_flight += 1 if way == "forward" else -1
            assert 0 <= in_flight <= count - stage
            if way == "backward":
                assert passes.index(("forward", number)) < passes.index(("backward", number))
        assert in_flight == 0


def test_one_stage_takes_micro_batches_in_turn() -> None:
    assert list(order(0, 1, 2)) == [("forward", 0), ("backward", 0), ("forward", 1), ("backward", 1)]


@given(st.integers(1, 8), st.integers(1, 20))
def test_no_stage_waits_for_ever(count: int, micro_batches: int) -> None:
    """A pass begins when its neighbour's has been sent; all get to their ends, and in the time 1F1B promises."""
    left = [list(order(stage, count, micro_batches)) for stage in range(count)]
    done: set[tuple[int, Pass, int]] = set()
    rounds = 0
    while any(left):
        ready = []
        for stage, passes in enumerate(left):
            if passes:
                way, number = passes[0]
                source = stage - 1 if way == "forward" else stage + 1
                if not 0 <= source < count or (source, way, number) in done:
                    ready.append((stage, *left[stage].pop(0)))
        assert ready
        done.update(ready)
        rounds += 1
    # Passes of equal length: filling and draining cost two rounds for each stage behind the first.
    assert rounds == 2 * (micro_batches + count - 1)
