"""How TCP transfers begin."""

from __future__ import annotations

import pytest

from orchestrator.simulation.tcp import beginning, initial_window_bits, recovery_s, wire_bits

FRAME_BITS = 8 * 1514


def test_a_transfer_that_fits_the_window_begins_at_once():
    begun = beginning(bits=5 * FRAME_BITS, rate_bps=10e6, rtt_s=0.1, window_bits=initial_window_bits())
    assert begun.lost_s == 0
    assert begun.window_bits == initial_window_bits()


def test_a_long_transfer_loses_the_round_trips_until_the_path_is_full():
    # 80 segments fill the path: 10, 20 and 40 are sent in three round trips, then it runs at full speed.
    rate_bps = 80 * FRAME_BITS / 0.1
    begun = beginning(bits=1e9, rate_bps=rate_bps, rtt_s=0.1, window_bits=initial_window_bits())
    assert begun.lost_s == pytest.approx(3 * 0.1 - 70 * FRAME_BITS / rate_bps)
    assert begun.window_bits == pytest.approx(80 * FRAME_BITS)


def test_a_short_transfer_ends_in_slow_start():
    # 25 segments: 10, then the last 15; the second round trip is not waited for.
    rate_bps = 1000 * FRAME_BITS / 0.1
    begun = beginning(bits=25 * FRAME_BITS, rate_bps=rate_bps, rtt_s=0.1, window_bits=initial_window_bits())
    assert begun.lost_s == pytest.approx(0.1 - 10 * FRAME_BITS / rate_bps)


def test_frames_take_more_than_their_payload():
    assert wire_bits(1448) == FRAME_BITS


def test_a_loss_on_the_way_up_costs_a_round_trip_as_often_as_it_is_likely():
    rate_bps = 80 * FRAME_BITS / 0.1
    given = {"bits": 1e9, "rate_bps": rate_bps, "rtt_s": 0.1, "window_bits": initial_window_bits()}
    more_s = beginning(**given, loss_ratio=0.01).lost_s - beginning(**given).lost_s
    assert more_s == pytest.approx(0.1 * (1 - 0.99**70))


def test_the_end_of_a_lossy_transfer_comes_up_to_a_round_trip_later():
    lossy = recovery_s(bits=1e9, rate_bps=1e9, rtt_s=0.2, loss_ratio=0.05)
    assert 0.19 < lossy < 0.2
    assert recovery_s(bits=1e9, rate_bps=1e9, rtt_s=0.2, loss_ratio=0.0) == 0.0


def test_a_rare_loss_costs_a_long_transfer_what_it_costs_on_average():
    # One loss a second on average, R = 0.1 s: the integral of (0.1 - g) exp(-g) over 0..0.1.
    found = recovery_s(bits=1e9, rate_bps=100 * FRAME_BITS, rtt_s=0.1, loss_ratio=0.01)
    assert found == pytest.approx(0.1 - (1 - 2.718281828**-0.1), rel=1e-6)
