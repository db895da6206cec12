"""How TCP transfers begin."""

from __future__ import annotations

import pytest

from orchestrator.simulation.tcp import beginning, initial_window_bits, wire_bits

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
