"""Counters at both ends of a way: what they tell of the packets lost between."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable

import pytest

from ryu_apps.loss import loss_measurement
from ryu_apps.tallies import KEEP_S, MAX_READINGS, CounterPair, CounterSeries
from ryu_apps.tally import NOTHING

LOSS = 0.01
DELAY_S = 0.02
RATE = 150.0


def read(pair: CounterPair, at: float, sent: int, received: int, *, duration_s: float = 100.0) -> None:
    pair.sent.add(at, sent, duration_s + at)
    pair.add_received(at, received, duration_s + at)
    pair.match(delay_s=0.0, timing_s=0.0)


def test_what_left_and_did_not_arrive_is_lost() -> None:
    pair = CounterPair()
    for second in range(10):
        read(pair, second, 1000 + 200 * second, 900 + 190 * second)
    tally = pair.tally(9.0)
    assert (tally.sent, tally.lost) == (1800, 90)


def test_packets_on_their_way_are_not_taken_for_lost() -> None:
    pair = CounterPair()
    for second in range(10):
        pair.sent.add(second, 100 * second)
        pair.add_received(second, max(0, 100 * second - 50))
        pair.match(delay_s=0.5, timing_s=0.0)
    assert pair.tally(9.0).lost == pytest.approx(0.0, abs=1e-6)
    assert pair.tally(9.0).variance > 0


def test_a_counter_that_goes_back_costs_one_interval_and_is_no_loss() -> None:
    pair = CounterPair()
    for second in range(5):
        read(pair, second, 1000 + 100 * second, 1000 + 100 * second)
    for second in range(5, 10):
        read(pair, second, 1000 + 100 * second, 10 * second)
        if second == 5:
            assert pair.tally(5.0).lost == 0
    assert pair.tally(9.0).sent == 800
    assert pair.tally(9.0).lost == 4 * 90


@pytest.mark.parametrize("wrong", [-60, 60])
def test_one_reading_of_a_wrong_moment_is_left_out_once_the_next_shows_it(wrong: int) -> None:
    pair = CounterPair()
    for second in range(11):
        read(pair, second, 200 * second, 190 * second + (wrong if second == 8 else 0))
    assert [mark.at for mark in pair._runs[-1]] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10]
    assert pair.tally(10.0, 3.0).lost == 30


def test_of_two_marks_close_together_the_better_one_counts() -> None:
    pair = CounterPair()
    for second in range(10):
        pair.sent.add(second, 200 * second)
        for at in (second - 0.3, second):
            pair.add_received(at, round(200 * at))
            pair.match(delay_s=0.0, timing_s=0.0)
    assert [mark.at for mark in pair._runs[-1]] == list(range(10))


def test_a_good_mark_takes_the_place_of_all_bad_ones_just_before_it() -> None:
    pair = CounterPair()
    for second in range(10):
        pair.sent.add(second, 200 * second)
        for at in (second - 0.25, second - 0.2, second):
            pair.add_received(at, round(200 * at))
            pair.match(delay_s=0.0, timing_s=0.0)
    assert [mark.at for mark in pair._runs[-1]] == list(range(10))


def test_how_bursty_packets_come_does_not_depend_on_how_evenly_they_are_counted() -> None:
    series = CounterSeries()
    for second in range(40):
        for at in (second, second + 0.003, second + 0.4):
            series.add(at, round(300 * at))
    assert series.dispersion < 1.5


def test_a_rule_that_was_installed_anew_is_another_counter_even_if_it_counts_more() -> None:
    series = CounterSeries()
    series.add(0.0, 10, duration_s=50.0)
    series.add(1.0, 20, duration_s=0.5)
    assert series.epoch == 2
    assert series.at(1.0, timing_s=0.0).packets == 0  # type: ignore[union-attr]


def test_a_counter_that_wraps_goes_on() -> None:
    series = CounterSeries()
    series.add(0.0, (1 << 64) - 40)
    series.add(1.0, 60)
    assert series.epoch == 1
    assert series.at(1.0, timing_s=0.0).packets == 100  # type: ignore[union-attr]


def test_a_reading_that_is_not_newer_changes_nothing() -> None:
    series = CounterSeries()
    assert series.add(1.0, 10)
    assert not series.add(1.0, 20)
    assert not series.add(0.5, 5)
    assert series.at(2.0, timing_s=0.0) is None
    assert series.at(0.5, timing_s=0.0) is None


def test_no_more_is_kept_than_the_window_needs() -> None:
    pair = CounterPair()
    for number in range(5000):
        read(pair, number / 10, number, number)
    assert sum(len(run) for run in pair._runs) <= MAX_READINGS
    assert len(pair.sent._times) <= MAX_READINGS + 40
    assert pair.tally(5000.0) == NOTHING
    assert pair.tally(500.0, 1e9).sent <= KEEP_S * 10


def test_without_the_other_end_nothing_is_told_and_nothing_piles_up() -> None:
    pair = CounterPair()
    for second in range(100):
        pair.add_received(second, second)
        pair.match(delay_s=0.0, timing_s=0.0)
    assert pair.tally(100.0) == NOTHING
    assert len(pair._pending) < 20


Traffic = Callable[[random.Random, float], list[float]]


def steady(stream: random.Random, seconds: float) -> list[float]:
    start = stream.random() / RATE
    return [start + number / RATE for number in range(int(seconds * RATE))]


def by_chance(stream: random.Random, seconds: float) -> list[float]:
    times, now = [], 0.0
    while now < seconds:
        now += stream.expovariate(RATE)
        times.append(now)
    return times


def in_bursts(stream: random.Random, seconds: float) -> list[float]:
    """Return bursts of 50 packets within 25 ms."""
    times, now = [], 0.0
    while now < seconds:
        now += stream.expovariate(RATE / 50)
        times += [now + number * 0.0005 for number in range(50)]
    return sorted(times)


def simulated(stream: random.Random, traffic: Traffic, *, seconds: int, apart_s: float) -> CounterPair:
    """Read counters at both ends once a second, at moments known to 5 ms only, of a link that jitters."""
    left = traffic(stream, seconds)
    arrived = sorted(at + DELAY_S + abs(stream.gauss(0, 0.002)) for at in left if stream.random() >= LOSS)
    pair = CounterPair()
    for second in range(1, seconds):
        pair.sent.add(second, bisect_left(left, second + stream.gauss(0, 0.005)))
        at = second + apart_s
        pair.add_received(at, bisect_left(arrived, at + stream.gauss(0, 0.005)))
        pair.match(delay_s=DELAY_S + 0.0016, timing_s=0.007)
    return pair


@pytest.mark.parametrize(
    ("traffic", "apart_s"), [(steady, 0.0), (by_chance, 0.0), (in_bursts, 0.0), (steady, 0.4)]
)
def test_the_interval_holds_the_loss_whatever_the_traffic(traffic: Traffic, apart_s: float) -> None:
    stream = random.Random(11)
    repeats, covered = 120, 0
    for _ in range(repeats):
        tally = simulated(stream, traffic, seconds=32, apart_s=apart_s).tally(32.0)
        loss = loss_measurement(tally, NOTHING, source="counters", age_s=1.0)
        assert loss.low is not None
        assert loss.high is not None
        covered += loss.low <= LOSS <= loss.high
    assert covered >= 0.93 * repeats


def test_the_error_is_not_much_more_than_that_of_the_packets_themselves() -> None:
    stream = random.Random(12)
    errors = []
    for _ in range(100):
        tally = simulated(stream, steady, seconds=31, apart_s=0.0).tally(31.0)
        errors.append(abs(tally.ratio - LOSS))
    by_chance_alone = math.sqrt(LOSS * (1 - LOSS) / (RATE * 30))
    assert sorted(errors)[94] < 1.3 * 1.96 * by_chance_alone


def test_a_leap_of_missing_packets_is_believed_when_the_next_reading_says_so_too() -> None:
    pair, missing = CounterPair(), 0
    for second in range(12):
        missing += {8: 150, 9: -150, 11: 150}.get(second, 1)
        read(pair, second, 500 * second, 500 * second - missing)
        if second == 8:
            assert pair.tally(8.0, 3.0).lost <= 3, "read at a wrong moment, it would be a loss of 10 %"
    assert pair.tally(11.0, 3.0).lost <= 3
    read(pair, 12, 500 * 12, 500 * 12 - missing - 100)
    assert pair.tally(12.0, 3.0).lost > 200, "it has come to stay"
