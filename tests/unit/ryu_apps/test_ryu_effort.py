"""What measuring costs, as rates."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ryu_apps.effort import WINDOW, Effort, Rates, Totals


def growing() -> Iterator[Totals]:
    """Yield totals of a controller with 5 probes of 100 bytes a second and a train every other second."""
    second = 0
    while True:
        yield Totals(
            at=1000.0 + second,
            probe_packets=5 * second,
            probe_bytes=500 * second,
            trains=second // 2,
            train_bytes=1000 * (second // 2),
            cpu_s=0.1 * second,
            probe_limit_per_s=400.0 + second,
            probe_limit_reason="the switches answer late",
            late_switch_s=0.005,
        )
        second += 1


def effort(seconds: int) -> Effort:
    totals = growing()
    made = Effort(lambda: next(totals), sleep=lambda _seconds: None)
    for _ in range(seconds):
        made.note()
    return made


@pytest.mark.parametrize("seconds", [0, 1])
def test_rates_are_unknown_until_there_is_a_span(seconds: int) -> None:
    assert effort(seconds).rates() == Rates(reason="the controller has just started")


def test_rates_are_differences_over_the_window_only() -> None:
    rates = effort(100).rates()
    assert rates.over_s == WINDOW
    assert rates.probe_packets_per_s == 5
    assert rates.probe_bps == 4000
    assert rates.trains_per_s == 0.5
    assert rates.train_bps == 4000
    assert rates.controller_cpu_ratio == pytest.approx(0.1)
    assert (rates.probe_limit_per_s, rates.late_switch_s) == (499.0, 0.005)
    assert rates.probe_limit_reason == "the switches answer late"
    assert rates.reason is None
