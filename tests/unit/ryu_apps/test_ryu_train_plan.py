"""When packet trains go, and what their results do to the estimate, over links that are simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.capacity import MIN_MARKERS, check_rate, train_rate
from ryu_apps.train_plan import ALARM_PAUSE_S, FRAME_BYTES, Order, Pace, TrainPlan

PACE = Pace(interval_s=20.0, check_interval_s=1.5, check_share=0.03)
ROUND_TRIP_S = 0.2
BUFFER_FRAMES = 400


@dataclass
class Link:
    """A link of a rate that may change, and the plan that measures it."""

    rate_bps: Callable[[float], float]
    pace: Pace = PACE
    buffer_frames: int = 10_000
    disturb: Callable[[float, Order, float], float] = lambda now, order, at: at
    plan: TrainPlan = field(init=False)
    sent: list[tuple[float, Order]] = field(default_factory=list)
    values: list[tuple[float, float | None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = TrainPlan(pace=self.pace, full_at=1.0)

    def run(self, until: float) -> None:
        """Let time pass, from where it was."""
        now, step_s = self.values[-1][0] if self.values else 0.0, 0.05
        while now < until:
            order = self.plan.next_train(now)
            if order is not None:
                self.sent.append((now, order))
                self.plan.started(now, order)
                now += self.cross(now, order)
            self.values.append((now, self.plan.estimator.value_bps))
            now += step_s

    def cross(self, now: float, order: Order) -> float:
        """Send a train; return how long it was under way."""
        per_frame_s = FRAME_BYTES * 8 / self.rate_bps(now)
        last = min(order.frames, self.buffer_frames)
        marked = range(order.every, order.every * order.count + 1, order.every)
        arrivals = [
            (index * FRAME_BYTES, self.disturb(now, order, now + index * per_frame_s))
            for index in marked
            if index <= last
        ]
        took_s = ROUND_TRIP_S + last * per_frame_s
        result = check_rate(arrivals) if order.check else train_rate(arrivals)
        self.plan.learn(now + took_s, order, result, lost=0.0)
        return took_s

    def checks(self) -> list[Order]:
        return [order for _, order in self.sent if order.check]

    def shows(self, since: float, rate_bps: float) -> float:
        """Return how long after `since` the estimate was within a tenth of a rate."""
        return next(
            at - since
            for at, value in self.values
            if at >= since and value is not None and abs(value / rate_bps - 1) < 0.1
        )


@pytest.mark.parametrize("rate_bps", [2e6, 7.5e6, 16e6, 60e6, 150e6])
def test_the_first_trains_find_the_rate(rate_bps: float) -> None:
    link = Link(lambda now: rate_bps)
    link.run(10.0)
    assert link.plan.estimator.value_bps == pytest.approx(rate_bps, rel=0.02)
    assert link.plan.alarms == 0


@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("rate_bps", [2e6, 7.5e6, 16e6, 60e6])
def test_a_rate_that_changes_twofold_shows_within_seconds(rate_bps: float, factor: float) -> None:
    link = Link(lambda now: rate_bps if now < 30.0 else factor * rate_bps)
    link.run(45.0)
    assert link.shows(30.0, factor * rate_bps) < 3.0


def test_without_checks_it_takes_the_next_full_train() -> None:
    pace = Pace(interval_s=20.0, check_interval_s=0.0, check_share=0.03)
    link = Link(lambda now: 16e6 if now < 30.0 else 8e6, pace=pace)
    link.run(60.0)
    assert link.checks() == []
    assert link.shows(30.0, 8e6) > 3.0


@given(st.floats(0.2e6, 170e6))
def test_checks_take_no_more_than_their_share(rate_bps: float) -> None:
    link = Link(lambda now: rate_bps)
    link.run(60.0)
    settled = [(at, order) for at, order in link.sent if order.check]
    if len(settled) > 1:
        seconds = settled[-1][0] - settled[0][0]
        spent_bps = sum(order.sent_bytes for _, order in settled[:-1]) * 8 / seconds
        assert spent_bps <= 1.1 * PACE.check_share * rate_bps


def test_a_check_that_was_held_up_does_not_change_the_estimate() -> None:
    stalled = iter(range(1000))

    def late(now: float, order: Order, at: float) -> float:
        return now + 3 * (at - now) if order.check and next(stalled) < 12 else at

    link = Link(lambda now: 16e6, disturb=late)
    link.run(30.0)
    assert link.plan.alarms >= 1
    assert {round(value / 16e6, 1) for _, value in link.values if value is not None} == {1.0}


def test_alarms_that_prove_false_again_and_again_become_rarer() -> None:
    link = Link(
        lambda now: 16e6,
        disturb=lambda now, order, at: now + 3 * (at - now) if order.check else at,
    )
    link.run(60.0)
    assert 2 <= link.plan.alarms < 60.0 / ALARM_PAUSE_S / 2
    assert link.plan.estimator.value_bps == pytest.approx(16e6, rel=0.02)


def test_small_changes_add_up_to_an_alarm() -> None:
    link = Link(lambda now: 16e6 if now < 30.0 else 12.8e6)
    link.run(45.0)
    assert link.shows(30.0, 12.8e6) < 14.0


def test_a_link_that_is_too_fast_says_so_and_is_noticed_when_it_becomes_slow() -> None:
    link = Link(lambda now: 1e9 if now < 30.0 else 8e6)
    link.run(29.0)
    assert link.plan.estimator.value_bps is None
    assert link.plan.estimator.reason.startswith("faster than a train of 1.0 MB can tell")
    assert all(order.frames == 24 for order in link.checks())
    link.run(45.0)
    assert link.shows(30.0, 8e6) < 4.0


def test_an_estimate_is_forgotten_when_the_link_becomes_too_fast() -> None:
    link = Link(lambda now: 50e6 if now < 30.0 else 1e9, buffer_frames=BUFFER_FRAMES)
    link.run(29.0)
    assert link.plan.estimator.value_bps == pytest.approx(50e6, rel=0.02)
    link = Link(lambda now: 50e6 if now < 30.0 else 1e9)
    link.run(40.0)
    assert link.plan.estimator.value_bps is None


def test_a_train_of_which_nothing_comes_back_tells_nothing() -> None:
    link = Link(lambda now: 16e6, buffer_frames=0)
    link.run(30.0)
    assert link.plan.estimator.reason == f"0 markers came back, {MIN_MARKERS} are needed"
    assert len(link.sent) < 15


def test_a_busy_link_waits_and_says_why() -> None:
    plan = TrainPlan(pace=PACE, full_at=1.0)
    order = plan.next_train(1.0)
    assert order is not None
    plan.busy(1.0, order, "the link carries 5.00 Mbit/s")
    assert plan.next_train(2.0) is None
    assert plan.next_train(3.5) == order
    assert plan.estimator.reason == "the link carries 5.00 Mbit/s"


def test_no_train_goes_when_they_are_switched_off() -> None:
    link = Link(lambda now: 16e6, pace=Pace(interval_s=0.0, check_interval_s=1.5, check_share=0.03))
    link.run(30.0)
    assert link.sent == []


def test_one_full_train_that_a_stall_held_up_like_the_check_before_it_changes_nothing() -> None:
    stalled_until = 10.0

    def late(now: float, order: Order, at: float) -> float:
        return now + 1.8 * (at - now) if 8.0 < now < stalled_until else at

    link = Link(lambda now: 40e6, disturb=late)
    link.run(8.0)
    alarm_at = next(at for at in (8.0 + step * 0.05 for step in range(100)) if at >= link.plan.check_at)
    stalled_until = alarm_at + 0.45
    link.run(30.0)
    assert link.plan.alarms >= 1
    assert {round(value / 40e6, 1) for _, value in link.values if value is not None} == {1.0}
