"""Modelled time and pacing."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.device import DeviceProfile, Pacer, forward_s, training_s
from workers.errors import ConfigError


def profile(**changes: Any) -> DeviceProfile:
    values: dict[str, Any] = {
        "device": "cpu",
        "cpu_count": 1,
        "memory_bytes": 10**6,
        "compute_flops": 1e9,
        "layer_overhead_s": 0.001,
        "power": 30.0,
        "emulated": True,
        "pacing": True,
        "torch": "2",
        "pid": 1,
    }
    return DeviceProfile(**(values | changes))


class Clock:
    """A clock that only moves when told, or by the wait of the event it lends."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class SteppingEvent(threading.Event):
    """An interrupt whose wait moves the clock instead of taking time."""

    def __init__(self, clock: Clock, *, interrupts_after: int | None = None) -> None:
        super().__init__()
        self.clock = clock
        self.waits: list[float] = []
        self.interrupts_after = interrupts_after

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        if self.interrupts_after is not None and len(self.waits) > self.interrupts_after:
            return True
        self.clock.now_s += timeout
        return False


def test_a_forward_pass_takes_two_flops_per_parameter_and_row_and_a_fixed_cost_per_layer() -> None:
    assert forward_s(profile(), parameters=500_000, layers=2, rows=10) == pytest.approx(0.01 + 0.002)


def test_training_takes_six_flops_per_parameter_and_token_and_three_passes_of_overhead() -> None:
    modelled_s = training_s(profile(), parameters=10**6, layers=8, tokens=1000, steps=4)
    assert modelled_s == pytest.approx(6.0 + 4 * 3 * 8 * 0.001)


def test_what_is_not_trained_costs_no_gradient_of_its_own() -> None:
    full = training_s(profile(), parameters=10**6, layers=0, tokens=1000, steps=1)
    same = training_s(profile(), parameters=10**6, trained=10**6, layers=0, tokens=1000, steps=1)
    adapters = training_s(profile(), parameters=10**6, trained=10**4, layers=0, tokens=1000, steps=1)
    assert same == full
    assert adapters == pytest.approx(full * (4 + 2 * 0.01) / 6)


@given(
    parameters=st.integers(1, 10**9),
    layers=st.integers(0, 100),
    rows=st.integers(1, 10**5),
    factor=st.floats(1.1, 100),
)
def test_a_faster_device_is_never_slower_and_more_work_never_faster(
    parameters: int, layers: int, rows: int, factor: float
) -> None:
    slow, fast = profile(), profile(compute_flops=1e9 * factor)
    work = {"parameters": parameters, "layers": layers}
    assert forward_s(fast, rows=rows, **work) <= forward_s(slow, rows=rows, **work)
    assert forward_s(slow, rows=rows, **work) < forward_s(slow, rows=rows + 1, **work)


def test_a_paced_device_waits_for_the_rest_of_the_modelled_time() -> None:
    clock = Clock()
    interrupt = SteppingEvent(clock)
    pacer = Pacer(profile(), clock=clock)
    span = pacer.begin()
    clock.now_s += 0.25
    timing = span.finish(1.0, interrupt=interrupt)
    assert interrupt.waits == [pytest.approx(0.75)]
    assert (timing.real_s, timing.elapsed_s, timing.late_s) == pytest.approx((0.25, 1.0, 0.0))
    assert not timing.interrupted


def test_work_that_took_longer_than_the_device_would_have_is_late_and_does_not_wait() -> None:
    clock = Clock()
    span = Pacer(profile(), clock=clock).begin()
    clock.now_s += 3.0
    timing = span.finish(1.0)
    assert (timing.elapsed_s, timing.late_s) == pytest.approx((3.0, 2.0))


def test_without_pacing_nothing_waits_and_nothing_is_late() -> None:
    clock = Clock()
    pacer = Pacer(profile(pacing=False), clock=clock)
    early = pacer.begin().finish(5.0)
    span = pacer.begin()
    clock.now_s += 9.0
    late = span.finish(5.0)
    assert (early.elapsed_s, late.elapsed_s, late.late_s) == (0.0, 9.0, 0.0)


def test_a_wait_can_be_interrupted() -> None:
    clock = Clock()
    timing = (
        Pacer(profile(), clock=clock).begin().finish(1.0, interrupt=SteppingEvent(clock, interrupts_after=0))
    )
    assert timing.interrupted
    assert timing.elapsed_s == 0.0


def test_closing_the_pacer_ends_waits_of_other_threads() -> None:
    pacer = Pacer(profile())
    timings = []
    thread = threading.Thread(target=lambda: timings.append(pacer.begin().finish(60.0)))
    thread.start()
    pacer.close()
    thread.join(5)
    assert [timing.interrupted for timing in timings] == [True]


def test_utilisation_is_the_busy_share_since_the_last_look() -> None:
    clock = Clock()
    pacer = Pacer(profile(), clock=clock)
    clock.now_s += 1
    span = pacer.begin()
    clock.now_s += 1
    assert pacer.utilisation() == pytest.approx(0.5)  # still running
    clock.now_s += 1
    span.finish(0.0)
    clock.now_s += 3
    assert pacer.utilisation() == pytest.approx(0.25)
    clock.now_s += 1
    assert pacer.utilisation() == 0.0


def test_work_in_parallel_does_not_use_more_than_the_whole_device() -> None:
    clock = Clock()
    pacer = Pacer(profile(), clock=clock)
    spans = [pacer.begin() for _ in range(3)]
    clock.now_s += 1
    for span in spans:
        span.abandon()
    assert pacer.utilisation() == 1.0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compute_flops": 0.0}, "compute_flops is 0"),
        ({"compute_flops": float("nan")}, "compute_flops is nan"),
        ({"memory_bytes": -1}, "memory_bytes is -1"),
        ({"layer_overhead_s": -0.1}, "layer_overhead_s is -0.1"),
        ({"device": "tpu"}, "device is 'tpu'"),
    ],
)
def test_an_impossible_profile_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        profile(**changes)
