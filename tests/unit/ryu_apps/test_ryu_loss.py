"""Loss ratios, their intervals, and how often those hold."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.loss import LossEstimator, loss_measurement, path_interval, wilson_interval
from ryu_apps.tally import NOTHING, Tally


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


def steady(tally: Tally) -> Callable[[float], Tally]:
    """Return tallies of any window up to a minute, of which `tally` is that of the whole."""

    def of(window_s: float) -> Tally:
        return Tally(sent=tally.sent * window_s / 60, lost=tally.lost * window_s / 60)

    return of


def changed(before: float, after: float, *, rate: float, ago_s: float) -> Callable[[float], Tally]:
    """Return tallies of a loss that changed some seconds ago."""

    def of(window_s: float) -> Tally:
        new, old = min(window_s, ago_s) * rate, max(0.0, window_s - ago_s) * rate
        return Tally(sent=new + old, lost=after * new + before * old)

    return of


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.10), (0.10, 0.05), (0.0, 0.02), (0.01, 1.0)])
@pytest.mark.parametrize("ago_s", [2.0, 3.0, 4.0])
def test_a_changed_loss_shows_after_two_seconds_of_traffic(before: float, after: float, ago_s: float) -> None:
    estimator = LossEstimator(source="probe", round_trip=False)
    loss = estimator.loss(100.0, changed(before, after, rate=300, ago_s=ago_s))
    assert loss.value == pytest.approx(after, abs=0.1 * abs(after - before))
    assert 0.95 * 300 * ago_s <= loss.samples < 2 * 300 * ago_s


def test_a_loss_that_goes_back_shows_as_soon_as_one_that_came() -> None:
    def of(window_s: float) -> Tally:
        spans = ((4.0, 0.05), (12.0, 0.10), (44.0, 0.05))
        sent = lost = 0.0
        for length_s, ratio in spans:
            part = 300 * max(0.0, min(window_s, length_s))
            window_s -= length_s
            sent, lost = sent + part, lost + ratio * part
        return Tally(sent=sent, lost=lost)

    assert LossEstimator(source="probe", round_trip=False).loss(100.0, of).value == pytest.approx(
        0.05, abs=0.002
    )


def test_a_change_soon_after_another_is_not_held_against_a_mixture() -> None:
    def of(window_s: float) -> Tally:
        spans = ((3.0, 0.05), (9.0, 0.10), (9.0, 0.05), (9.0, 0.10), (30.0, 0.05))
        sent = lost = 0.0
        for length_s, ratio in spans:
            part = 300 * max(0.0, min(window_s, length_s))
            window_s -= length_s
            sent, lost = sent + part, lost + ratio * part
        return Tally(sent=sent, lost=lost)

    loss = LossEstimator(source="probe", round_trip=False).loss(100.0, of)
    assert loss.value == pytest.approx(0.05, abs=0.005)
    assert loss.samples < 9 * 300


def test_what_blurred_counters_tell_is_no_change() -> None:
    def of(window_s: float) -> Tally:
        return Tally(sent=300 * window_s, lost=15 * window_s + 25, variance=15.0**2)

    loss = LossEstimator(source="probe", round_trip=False).loss(100.0, of)
    assert loss.value == pytest.approx(0.05, abs=0.003)
    assert loss.samples > 0.5 * 300 * 60


def test_loss_that_has_not_changed_is_told_nearly_as_well_as_by_the_whole_window() -> None:
    stream = random.Random(5)
    estimator = LossEstimator(source="probe", round_trip=False)
    off, chance = [], []
    for _ in range(300):
        lost = [sum(stream.random() < 0.02 for _ in range(50)) for _ in range(60)]
        loss = estimator.loss(
            100.0,
            lambda window_s, lost=lost: Tally(
                sent=50 * math.ceil(window_s), lost=sum(lost[-math.ceil(window_s) :])
            ),
        )
        assert loss.value is not None
        off.append(abs(loss.value - 0.02))
        chance.append(abs(sum(lost) / 3000 - 0.02))
    assert sorted(off)[150] < 1.25 * sorted(chance)[150]
    assert sorted(off)[285] < 1.5 * sorted(chance)[285]


def test_loss_is_the_share_that_did_not_arrive() -> None:
    estimator = LossEstimator(source="probe", round_trip=False)
    loss = estimator.loss(probed(estimator, seconds=60, lose_every=10))
    assert loss.value == pytest.approx(0.1, abs=0.005)
    assert loss.low is not None
    assert loss.high is not None
    assert loss.low < 0.1 < loss.high
    assert 300 < loss.samples <= 600


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


Link = tuple[float, int, bool]
"""(true loss of one direction, packets, whether they are round trips)"""


def drawn(stream: random.Random, link: Link) -> tuple[float, float]:
    """Return what is measured of a link: (ratio, trials)."""
    ratio, sent, round_trip = link
    chance = 1 - (1 - ratio) ** 2 if round_trip else ratio
    tally = Tally(sent=sent, lost=sum(stream.random() < chance for _ in range(sent)))
    measured = loss_measurement(tally, NOTHING, source="probe", age_s=1.0, round_trip=round_trip)
    assert measured.value is not None
    assert measured.trials is not None
    return measured.value, measured.trials


@pytest.mark.parametrize(
    "links",
    [
        [(0.01, 470, True), (0.0, 290, False), (0.0, 290, False), (0.0, 470, True)],
        [(0.0, 290, True), (0.01, 580, False)],
        [(0.005, 290, True), (0.0, 290, False), (0.005, 290, True)],
        [(0.01, 4500, False), (0.0, 290, False), (0.01, 300, True)],
        [(0.002, 300, True), (0.001, 300, False)],
        [(0.2, 100, True), (0.1, 300, False)],
    ],
)
def test_the_interval_of_a_path_holds_its_loss(links: list[Link]) -> None:
    truth = 1 - math.prod(1 - ratio for ratio, _, _ in links)
    stream = random.Random(5)
    repeats, covered = 250, 0
    for _ in range(repeats):
        low, high = path_interval([drawn(stream, link) for link in links])
        covered += low <= truth <= high
    assert covered >= 0.93 * repeats


@pytest.mark.parametrize("ratio", [0.003, 0.005, 0.01, 0.02])
@pytest.mark.parametrize("sent", [360, 480, 600])
def test_the_interval_of_a_path_holds_where_one_host_link_loses_everything(ratio: float, sent: int) -> None:
    either_way, covered = 1 - (1 - ratio) ** 2, 0.0
    for lost in range(80):
        measured = loss_measurement(
            Tally(sent=sent, lost=lost), NOTHING, source="echo", age_s=1.0, round_trip=True
        )
        assert measured.value is not None
        assert measured.trials is not None
        low, high = path_interval([(0.0, 3000.0), (0.0, 960.0), (measured.value, measured.trials)])
        chance = math.comb(sent, lost) * either_way**lost * (1 - either_way) ** (sent - lost)
        covered += chance * (low <= ratio <= high)
    assert covered >= 0.94


def test_the_interval_of_a_path_is_narrower_than_the_sum_of_the_links_own() -> None:
    links = [(0.0, 290.0), (0.0, 290.0), (0.0, 290.0), (0.01, 900.0)]
    low, high = path_interval(links)
    ends = [wilson_interval(ratio * trials, trials) for ratio, trials in links]
    assert low > 0
    assert high < 0.7 * sum(end for _, end in ends)
    assert (high - low) / 2 <= 0.01


def test_a_path_of_which_nothing_is_known_may_lose_anything() -> None:
    assert path_interval([]) == (0.0, 1.0)
    assert path_interval([(0.0, 0.0), (0.1, 50.0)]) == (0.0, 1.0)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(20, 1e5)), min_size=1, max_size=6))
def test_the_interval_of_a_path_holds_what_was_measured(links: list[tuple[float, float]]) -> None:
    low, high = path_interval(links)
    value = 1 - math.prod(1 - ratio for ratio, _ in links)
    assert 0 <= low <= high <= 1
    assert low <= value + 1e-9
    assert high >= min(value, 0.9)


def test_what_is_not_known_of_which_packets_were_counted_widens_the_interval() -> None:
    sure = loss_measurement(Tally(sent=3000, lost=30), NOTHING, source="counters", age_s=1.0)
    unsure = loss_measurement(Tally(sent=3000, lost=30, variance=400), NOTHING, source="counters", age_s=1.0)
    assert sure.low is not None
    assert unsure.low is not None
    assert unsure.low < sure.low
    assert unsure.trials is not None
    assert unsure.trials < 300
    assert unsure.value == sure.value


def test_counted_packets_and_probes_of_one_direction_are_pooled() -> None:
    estimator = LossEstimator(source="probe", round_trip=False)
    now = probed(estimator, seconds=60, lose_every=10)
    alone = estimator.loss(now)
    pooled = estimator.loss(now, steady(Tally(sent=9_400, lost=0)))
    assert pooled.source == "counters+probe"
    assert 0.9 * 10_000 < pooled.samples <= 10_000
    assert pooled.samples > 10 * alone.samples
    assert pooled.value == pytest.approx(60 / 10_000, rel=0.05)


def test_counters_of_one_direction_stand_in_for_round_trips_when_they_tell_more() -> None:
    estimator = LossEstimator(source="echo", round_trip=True)
    now = probed(estimator, seconds=60, lose_every=10)
    assert estimator.loss(now, steady(Tally(sent=50, lost=5))).source == "echo"
    counted = estimator.loss(now, steady(Tally(sent=9_000, lost=90)))
    assert (counted.source, counted.value) == ("counters", pytest.approx(0.01))


def test_more_received_than_sent_is_no_negative_loss() -> None:
    measured = loss_measurement(Tally(sent=1000, lost=-3), NOTHING, source="counters", age_s=1.0)
    assert (measured.value, measured.low) == (0.0, 0.0)
