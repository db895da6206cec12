"""Capacities from packet trains."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.capacity import CapacityEstimator, train_rate, without_cross


def train(
    rate_bps: float, *, frames: int, burst: int = 0, late_s: float = 0.0, seed: int = 1
) -> list[tuple[int, float]]:
    """Return the arrivals of a train behind a token bucket that lets `burst` frames pass at once."""
    stream = random.Random(seed)
    spaced = [max(0, number - burst) * 1442 * 8 / rate_bps for number in range(frames)]
    return [(number * 1442, at + stream.random() * late_s) for number, at in enumerate(spaced, 1)]


@given(st.floats(2e6, 80e6))
def test_a_train_tells_the_rate_behind_a_token_bucket(rate_bps: float) -> None:
    frames = max(24, round(rate_bps * 0.06 / 8 / 1442))
    result = train_rate(train(rate_bps, frames=frames, burst=frames // 5, late_s=0.001))
    assert result.rate_bps == pytest.approx(rate_bps, rel=0.05)


def test_a_train_that_is_too_short_says_so() -> None:
    result = train_rate(train(100e6, frames=24))
    assert result.rate_bps is None
    assert result.reason == "the train was spread over 1.8 ms only"


def test_a_stall_on_the_way_is_no_rate() -> None:
    stalled = [
        (bytes_so_far, at + (0.045 if bytes_so_far > 30_000 else 0.0))
        for bytes_so_far, at in train(500e6, frames=40)
    ]
    result = train_rate(stalled)
    assert result.rate_bps is None
    assert result.reason == "the train arrived in lumps"


def test_lost_and_swapped_markers_do_not_change_the_rate() -> None:
    arrivals = train(10e6, frames=50)
    kept = [arrival for number, arrival in enumerate(arrivals) if number % 7]
    kept.reverse()
    assert train_rate(kept).rate_bps == pytest.approx(10e6, rel=0.01)


def test_too_few_markers_are_no_rate() -> None:
    assert train_rate(train(2e6, frames=5)).reason == "5 markers came back, 6 are needed"


def test_the_capacity_is_the_median_of_recent_trains() -> None:
    estimator = CapacityEstimator()
    for at, rate in enumerate((10e6, 10.2e6, 31e6, 9.9e6, 10.1e6)):
        estimator.add(float(at), rate)
    assert estimator.capacity(5.0).value == 10.1e6


def test_two_trains_that_agree_replace_what_was_before() -> None:
    estimator = CapacityEstimator()
    for at in range(5):
        estimator.add(float(at), 20e6)
    estimator.add(5.0, 5e6)
    assert estimator.capacity(5.0).value == 20e6
    assert estimator.unsettled
    estimator.add(6.0, 5.1e6)
    assert estimator.capacity(6.0).value == pytest.approx(5.05e6)


@given(st.floats(1e6, 1e8), st.floats(0.0, 0.5))
def test_a_train_that_shared_its_queue_still_tells_the_capacity(capacity_bps: float, share: float) -> None:
    cross_bps = share * capacity_bps
    seen_bps = capacity_bps * capacity_bps / (capacity_bps + cross_bps)
    assert without_cross(seen_bps, cross_bps) == pytest.approx(capacity_bps)
