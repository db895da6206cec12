"""The estimators behind measured values."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.stats import (
    DelayEstimator,
    LossEstimator,
    Measurement,
    moved,
    quantile,
    wilson_interval,
)


def test_a_measurement_has_either_a_value_or_a_reason() -> None:
    with pytest.raises(ValueError, match="has a value or a reason"):
        Measurement(value=None, source="probe", unit="s")
    with pytest.raises(ValueError, match="has a value or a reason"):
        Measurement(value=1.0, source="probe", unit="s", reason="why")
    with pytest.raises(ValueError, match="finite"):
        Measurement(value=math.inf, source="probe", unit="s")


def test_quantiles_are_interpolated() -> None:
    assert quantile([4.0, 1.0, 3.0, 2.0, 5.0], 0.25) == 2.0
    assert quantile([1.0, 2.0], 0.5) == 1.5
    assert quantile([7.0], 0.2) == 7.0


def fed(
    estimator: DelayEstimator, delay_s: float, *, start: float, seconds: float, rate: float = 5.0
) -> float:
    for step in range(int(seconds * rate)):
        estimator.add(start + step / rate, delay_s)
    return start + seconds


def test_delay_is_unknown_before_the_first_probe_and_stale_after_ten_seconds() -> None:
    estimator = DelayEstimator(source="probe")
    assert estimator.delay(0.0).reason == "no probe has arrived yet"
    fed(estimator, 0.02, start=0.0, seconds=1.0)
    assert estimator.delay(1.0).value == pytest.approx(0.02)
    stale = estimator.delay(20.0)
    assert stale.value is None
    assert stale.reason == "no probe has arrived for 19 s"


@pytest.mark.parametrize(("before", "after"), [(0.02, 0.04), (0.04, 0.02), (0.006, 0.3)])
def test_a_doubled_or_halved_delay_shows_within_three_seconds(before: float, after: float) -> None:
    estimator = DelayEstimator(source="probe")
    now = fed(estimator, before, start=0.0, seconds=10.0)
    now = fed(estimator, after, start=now, seconds=3.0)
    assert estimator.delay(now).value == pytest.approx(after, rel=0.1)


def test_what_queues_and_schedulers_add_to_two_thirds_of_the_probes_does_not_show() -> None:
    estimator = DelayEstimator(source="probe")
    for step in range(100):
        late_s = 0.015 if step % 3 else 0.0
        estimator.add(step / 10, 0.02 + late_s)
    assert estimator.delay(10.0).value == pytest.approx(0.02, rel=0.05)
    jitter = estimator.jitter(10.0).value
    assert jitter is not None
    assert 0.005 < jitter < 0.015


def test_samples_that_cannot_be_delays_are_left_out() -> None:
    estimator = DelayEstimator(source="probe")
    for wrong in (-0.001, math.nan, math.inf):
        estimator.add(0.0, wrong)
    assert estimator.delay(0.0).value is None


@given(st.integers(0, 300), st.integers(1, 300))
def test_the_wilson_interval_holds_the_ratio_and_stays_within_bounds(lost: int, sent: int) -> None:
    lost = min(lost, sent)
    low, high = wilson_interval(lost, sent)
    assert 0 <= low <= lost / sent <= high <= 1


def test_the_wilson_interval_covers_the_truth_about_95_times_in_100() -> None:
    stream = random.Random(1)
    covered = 0
    for _ in range(1000):
        lost = sum(stream.random() < 0.02 for _ in range(300))
        low, high = wilson_interval(lost, 300)
        covered += low <= 0.02 <= high
    assert 920 <= covered <= 985


def probed(
    estimator: LossEstimator, *, seconds: int, lose_every: int, rate: int = 10, delay_s: float = 0.05
) -> float:
    for number in range(seconds * rate):
        now = 100 + number / rate
        estimator.sent(now, number)
        if number % lose_every:
            estimator.arrived(now + delay_s, number)
    return 100.0 + seconds


def test_loss_is_the_share_that_did_not_arrive() -> None:
    estimator = LossEstimator(source="probe", round_trip=False)
    loss = estimator.loss(probed(estimator, seconds=60, lose_every=10))
    assert loss.value == pytest.approx(0.1, abs=0.005)
    assert loss.low is not None
    assert loss.high is not None
    assert loss.low < 0.1 < loss.high
    assert 560 < loss.samples <= 600


def test_round_trips_count_for_both_directions() -> None:
    estimator = LossEstimator(source="echo", round_trip=True)
    loss = estimator.loss(probed(estimator, seconds=60, lose_every=10))
    assert loss.value == pytest.approx(1 - math.sqrt(0.9), abs=0.003)


def test_probes_in_flight_are_not_taken_for_lost() -> None:
    estimator = LossEstimator(source="probe", round_trip=False)
    for number in range(600):
        now = 100 + number / 10
        estimator.sent(now, number)
        if number >= 20:
            estimator.arrived(now, number - 20)
    assert estimator.loss(160.0).value == 0.0


def test_loss_needs_twenty_probes() -> None:
    estimator = LossEstimator(source="probe", round_trip=False)
    assert "20 are needed" in str(estimator.loss(probed(estimator, seconds=2, lose_every=3)).reason)


def test_a_probe_that_arrives_twice_counts_once() -> None:
    estimator = LossEstimator(source="probe", round_trip=False)
    estimator.sent(1.0, 1)
    assert estimator.arrived(1.1, 1) == 1.0
    assert estimator.arrived(1.2, 1) is None


def test_loss_keeps_no_more_than_its_window() -> None:
    estimator = LossEstimator(source="probe", round_trip=False)
    probed(estimator, seconds=1000, lose_every=2)
    assert len(estimator._seconds) < 80
    assert len(estimator._outstanding) < 200


def test_a_value_moves_when_it_changes_by_more_than_its_share() -> None:
    assert moved(None, 1.0, share=0.25, floor=0.0)
    assert moved(0.1, 0.13, share=0.25, floor=0.002)
    assert not moved(0.1, 0.12, share=0.25, floor=0.002)
    assert not moved(0.001, 0.0025, share=0.25, floor=0.002)
    assert not moved(1.0, None, share=0.25, floor=0.0)
