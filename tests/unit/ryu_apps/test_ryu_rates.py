"""Rates from counters, and what is left of a link."""

from __future__ import annotations

import pytest

from ryu_apps.rates import CounterRate, PortCount, available
from ryu_apps.stats import Measurement, unknown


def measured(value: float, *, samples: int = 3, age_s: float = 0.5) -> Measurement:
    return Measurement(value=value, raw=value, samples=samples, age_s=age_s, source="counters", unit="bit/s")


def test_rates_divide_by_the_replies_own_durations() -> None:
    counter = CounterRate()
    assert counter.add(0.0, 100.0, 1_000) is None
    assert counter.add(5.0, 101.25, 126_000) == pytest.approx(800_000)
    assert counter.rate(5.0).value == pytest.approx(800_000)


def test_a_counter_that_goes_back_starts_anew() -> None:
    counter = CounterRate()
    counter.add(0.0, 100.0, 5_000_000)
    assert counter.add(1.0, 101.0, 1_000) is None
    assert counter.add(2.0, 102.0, 126_000) == pytest.approx(1_000_000)


def test_a_device_that_restarted_gives_no_sample() -> None:
    counter = CounterRate()
    counter.add(0.0, 100.0, 5_000)
    assert counter.add(1.0, 0.5, 9_000) is None
    assert counter.add(2.0, 1.5, 134_000) == pytest.approx(1_000_000)


def test_a_counter_that_wraps_goes_on() -> None:
    counter = CounterRate()
    counter.add(0.0, 100.0, (1 << 64) - 25_000)
    assert counter.add(1.0, 101.0, 100_000) == pytest.approx(1_000_000)


def test_a_missing_reply_makes_the_rate_old_and_then_unknown() -> None:
    counter = CounterRate()
    counter.add(0.0, 100.0, 0)
    counter.add(1.0, 101.0, 125_000)
    assert counter.rate(4.0).age_s == 3.0
    assert counter.rate(30.0).reason == "no counter reply for 29 s"


def test_trains_of_our_own_are_no_use_of_the_link() -> None:
    counter = CounterRate()
    counter.add(0.0, 100.0, 0, 0)
    assert counter.add(1.0, 101.0, 125_000, 0) == pytest.approx(1_000_000)
    assert counter.add(2.0, 102.0, 1_125_000, 875_000) == pytest.approx(1_000_000)
    assert counter.add(3.0, 103.0, 1_250_000, 875_000) == pytest.approx(1_000_000)
    assert counter.rate(3.0).value == pytest.approx(1_000_000)


def test_a_train_that_is_known_before_it_is_counted_is_taken_off_the_next_interval() -> None:
    counter = CounterRate()
    counter.add(0.0, 100.0, 0, 0)
    assert counter.add(1.0, 101.0, 125_000, 200_000) == 0.0
    assert counter.add(2.0, 102.0, 450_000, 200_000) == pytest.approx(2_000_000)


def test_what_a_train_lost_on_its_way_is_not_owed_for_ever() -> None:
    counter = CounterRate()
    counter.add(0.0, 100.0, 0, 0)
    assert counter.add(1.0, 101.0, 0, 500_000) == 0.0
    assert counter.add(2.0, 102.0, 125_000, 500_000) == 0.0
    assert counter.add(3.0, 103.0, 250_000, 500_000) == pytest.approx(1_000_000)


def test_noise_is_smoothed_but_a_doubled_rate_shows_after_two_replies() -> None:
    counter = CounterRate()
    counter.add(0.0, 0.0, 0)
    counter.add(1.0, 1.0, 125_000)
    counter.add(2.0, 2.0, 125_000 + 150_000)
    assert counter.rate(2.0).value == pytest.approx(1_100_000)
    assert counter.rate(2.0).raw == pytest.approx(1_200_000)
    counter.add(3.0, 3.0, 275_000 + 275_000)
    counter.add(4.0, 4.0, 550_000 + 275_000)
    assert counter.rate(4.0).value == pytest.approx(2_200_000, rel=0.1)


def count(at_s: float, sent: int, received: int, own_sent: float = 0, own_received: float = 0) -> PortCount:
    return PortCount(
        duration_s=at_s,
        tx_bytes=sent,
        rx_bytes=received,
        own_tx_bytes=own_sent,
        own_rx_bytes=own_received,
    )


def test_what_others_sent_between_two_counts_leaves_our_trains_out() -> None:
    before, after = count(1.0, 1_000, 2_000), count(1.5, 64_500, 190_500, 1_000, 1_000)
    assert after.others_since(before) == (pytest.approx(1e6), pytest.approx(3e6))


def test_counters_that_went_back_tell_nothing_of_others() -> None:
    assert count(2.0, 10, 10).others_since(count(1.0, 500, 500)) is None
    assert count(1.0, 10, 10).others_since(count(1.0, 0, 0)) is None


def test_available_is_what_is_left_and_never_negative() -> None:
    assert available(measured(10e6), measured(4e6)).value == 6e6
    assert available(measured(10e6), measured(14e6)).value == 0.0


def test_available_names_what_is_unknown() -> None:
    left = available(unknown("no train", source="packet_train", unit="bit/s"), measured(1.0))
    assert left.reason == "capacity is unknown: no train"


@pytest.mark.parametrize("absurd", [(1 << 64) - 1, 1 << 62, 10**18])
def test_a_reply_that_no_port_could_give_is_left_out(absurd: int) -> None:
    counter = CounterRate()
    counter.add(0.0, 100.0, 1_000)
    counter.add(1.0, 101.0, 126_000)
    before = counter.rate(1.0).value
    assert counter.add(2.0, 102.0, absurd) is None
    assert counter.rate(2.0).value == before
    counter.add(3.0, 103.0, 376_000)
    assert counter.add(4.0, 104.0, 501_000) == pytest.approx(1_000_000)


def test_a_transfer_that_stalls_for_a_moment_still_counts_as_recent_use() -> None:
    rate = CounterRate()
    assert rate.recent_peak_bps is None
    for second, byte_count in enumerate((0, 1_000_000, 1_000_000, 1_000_000)):
        rate.add(100.0 + second, float(second), byte_count)
    assert rate.recent_peak_bps == 8e6
    rate.add(104.0, 4.0, 1_000_000)
    assert rate.recent_peak_bps == 0.0
