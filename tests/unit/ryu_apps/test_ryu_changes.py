"""Which packets tell what the loss is now, when it may have changed."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.changes import AGES_S, last_changes, since_last_change
from ryu_apps.tally import NOTHING, WINDOW_S, Tally, Z

PPS = 300


def lossy(stages: list[tuple[float, float]], *, seed: int, pps: int = PPS) -> Callable[[float], Tally]:
    """Return the tallies of traffic that lost so much (seconds, ratio), one stage after another."""
    stream = random.Random(seed)
    lost = [stream.random() < ratio for seconds, ratio in stages for _ in range(round(seconds * pps))]

    def of(window_s: float) -> Tally:
        last = lost[-round(min(window_s, WINDOW_S) * pps) :]
        return Tally(sent=len(last), lost=sum(last))

    return of


def test_a_steady_loss_is_told_by_most_of_the_window() -> None:
    tallies = [since_last_change(lossy([(60, 0.01)], seed=seed)) for seed in range(50)]
    assert sum(tally.sent for tally in tallies) > 0.6 * 50 * 60 * PPS
    chance = math.sqrt(0.01 / (60 * PPS))
    assert sum(abs(tally.ratio - 0.01) < Z * chance for tally in tallies) >= 45


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.10), (0.10, 0.05), (0.0, 0.05), (0.20, 0.0)])
def test_a_loss_that_has_changed_is_that_since_then(before: float, after: float) -> None:
    for seed in range(20):
        tally = since_last_change(lossy([(60, before), (6, after)], seed=seed))
        assert abs(tally.ratio - after) < abs(tally.ratio - before)
        assert tally.sent < 15 * PPS


def test_a_change_soon_after_another_is_not_mixed_with_it() -> None:
    for seed in range(20):
        tally = since_last_change(lossy([(50, 0.01), (6, 0.05), (4, 0.10)], seed=seed))
        assert tally.ratio > 0.06


def test_a_moment_of_more_losses_does_not_move_the_value() -> None:
    ratios = [since_last_change(lossy([(58, 0.01), (2, 0.015)], seed=seed)).ratio for seed in range(20)]
    assert sum(ratio < 0.013 for ratio in ratios) >= 18


@given(
    st.lists(st.tuples(st.floats(0, 500), st.floats(-20, 500), st.floats(0, 1e5)), min_size=60, max_size=60)
)
def test_whatever_the_counters_say_it_is_a_loss_ratio_of_packets_that_were_sent(
    seconds: list[tuple[float, float, float]],
) -> None:
    def of(window_s: float) -> Tally:
        return sum(
            (
                Tally(sent=sent, lost=min(lost, sent), variance=off)
                for sent, lost, off in seconds[: int(window_s)]
            ),
            start=NOTHING,
        )

    weights = last_changes(of)
    assert [age_s for age_s, _ in weights] == list(AGES_S)
    assert sum(weight for _, weight in weights) == pytest.approx(1.0)
    tally = since_last_change(of)
    assert 0 <= tally.ratio <= 1
    assert 0 <= tally.trials <= tally.sent + 1e-6
    assert tally.sent <= of(WINDOW_S).sent + 1e-6
