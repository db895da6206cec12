"""How late a switch answers, compared with its best."""

from __future__ import annotations

import pytest

from ryu_apps.streams import BEST_SPAN_S, BEST_SPANS, SwitchEcho, Target


def echo() -> SwitchEcho:
    return SwitchEcho(Target(rate=lambda now: 4.0, send=lambda now: None))


def test_a_switch_that_always_answers_alike_is_not_late_however_far_it_is() -> None:
    far = echo()
    for number in range(100):
        far.add(1000 + number / 4, 0.080)
    assert far.late_s == 0


def test_a_switch_that_has_become_busy_is_late_by_the_difference() -> None:
    busy = echo()
    for number in range(100):
        busy.add(1000 + number / 4, 0.001 if number < 50 else 0.006)
    assert busy.late_s == pytest.approx(0.005)


def test_the_best_of_long_ago_does_not_count_for_ever() -> None:
    moved = echo()
    moved.add(1000, 0.001)
    for number in range(BEST_SPANS + 1):
        moved.add(1010 + BEST_SPAN_S * number, 0.030)
    assert moved.late_s == 0


def test_nothing_is_late_before_the_first_answer() -> None:
    assert echo().late_s == 0
