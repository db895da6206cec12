"""When counters were read, and when to read them next."""

from __future__ import annotations

import random

import pytest

from ryu_apps.readtimes import MANY, Rhythm, SwitchClock


def test_late_replies_are_placed_by_the_clock_of_the_switch() -> None:
    stream, clock, errors = random.Random(1), SwitchClock(), []
    for number in range(200):
        read_at = 1000.0003 + number / 2
        late_s = 0.001 + stream.expovariate(1 / 0.02)
        errors.append(clock.read_at(read_at + late_s, read_at - 700.0) - read_at)
    assert max(errors[30:]) < 0.008
    assert min(errors) >= 0
    assert len(clock._differences) <= MANY


def test_a_switch_that_started_anew_has_another_clock() -> None:
    clock = SwitchClock()
    clock.read_at(100.0, 50.25)
    assert clock.read_at(200.0, 10.25) == 200.0


def test_a_switch_that_counts_whole_seconds_has_no_clock_to_go_by() -> None:
    clock = SwitchClock()
    assert [clock.read_at(100.9, 50.0), clock.read_at(101.8, 51.0)] == [100.9, 101.8]


def test_a_clock_that_runs_slow_is_followed() -> None:
    clock = SwitchClock()
    at = [clock.read_at(1000.0 + second, 0.5 + second * 0.9999) for second in range(600)]
    assert at[-1] == pytest.approx(1599.0, abs=0.004)


def test_what_comes_regularly_is_expected() -> None:
    rhythm = Rhythm()
    for at in (10.0, 10.501, 11.0, 11.502):
        rhythm.came(at)
    assert rhythm.next_at() == pytest.approx(12.003, abs=0.003)


def test_after_a_gap_nothing_is_expected() -> None:
    rhythm = Rhythm()
    for at in (10.0, 10.5, 11.0, 14.0):
        rhythm.came(at)
    assert rhythm.next_at() is None
