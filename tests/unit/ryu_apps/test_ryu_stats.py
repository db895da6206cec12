"""The estimators behind measured values."""

from __future__ import annotations

import math
import random

import pytest

from ryu_apps.stats import (
    DelayEstimator,
    Measurement,
    moved,
    quantile,
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


def test_what_schedulers_add_to_half_of_the_probes_does_not_show() -> None:
    estimator = DelayEstimator(source="probe")
    for step in range(100):
        late_s = 0.015 if step % 2 else 0.0
        estimator.add(step / 10, 0.02 + late_s)
    assert estimator.delay(10.0).value == pytest.approx(0.02, rel=0.05)
    jitter = estimator.jitter(10.0).value
    assert jitter is not None
    assert 0.005 < jitter < 0.016


def test_a_queue_that_most_packets_meet_shows() -> None:
    estimator = DelayEstimator(source="probe")
    for step in range(100):
        queue_s = 0.0 if step % 4 == 0 else 0.015 + 0.001 * (step % 3)
        estimator.add(step / 10, 0.02 + queue_s)
    assert estimator.delay(10.0).value == pytest.approx(0.035, rel=0.05)


def test_how_long_packets_queue_is_told_against_the_least_delay_of_the_last_minute() -> None:
    estimator = DelayEstimator(source="probe")
    assert estimator.queueing_s() == 0
    for step in range(1000):
        estimator.add(step / 10, 0.02 if step < 100 else 0.05)
        if step == 400:
            assert estimator.queueing_s() == pytest.approx(0.03, abs=0.001)
    assert estimator.queueing_s() == pytest.approx(0.0, abs=0.001)


def test_a_sum_of_delays_is_near_the_median_of_the_path_when_every_link_is_noisy() -> None:
    stream = random.Random(3)
    links = [DelayEstimator(source="probe") for _ in range(4)]
    trips = []
    for step in range(200):
        samples = [0.01 + stream.expovariate(1 / 0.004) for _ in links]
        for link, sample in zip(links, samples, strict=True):
            link.add(step / 8, sample)
        trips.append(sum(samples))
    total = sum(link.delay(25.0).value or 0.0 for link in links)
    assert total == pytest.approx(quantile(trips[-16:], 0.5), rel=0.15)


def test_samples_that_cannot_be_delays_are_left_out() -> None:
    estimator = DelayEstimator(source="probe")
    for wrong in (-0.001, math.nan, math.inf):
        estimator.add(0.0, wrong)
    assert estimator.delay(0.0).value is None


def test_a_value_moves_when_it_changes_by_more_than_its_share() -> None:
    assert moved(None, 1.0, share=0.25, floor=0.0)
    assert moved(0.1, 0.13, share=0.25, floor=0.002)
    assert not moved(0.1, 0.12, share=0.25, floor=0.002)
    assert not moved(0.001, 0.0025, share=0.25, floor=0.002)
    assert not moved(1.0, None, share=0.25, floor=0.0)
