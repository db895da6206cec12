"""What TCP gets out of a path."""

from __future__ import annotations

import pytest

from orchestrator.simulation.tcp import (
    PathShape,
    beginning,
    initial_window_bits,
    sustained_bps,
    wire_bits,
)

FRAME_BITS = 8 * 1514


def test_without_loss_both_fill_the_path():
    path = PathShape(rate_bps=16e6, rtt_s=0.1, loss_ratio=0.0)
    assert sustained_bps(path, "bbr") == sustained_bps(path, "cubic") == 16e6


def test_bbr_loses_no_more_than_what_is_lost():
    path = PathShape(rate_bps=16e6, rtt_s=0.1, loss_ratio=0.02)
    assert sustained_bps(path, "bbr") == pytest.approx(0.98 * 16e6)


def test_cubic_at_one_percent_and_a_short_way_is_as_fast_as_reno():
    path = PathShape(rate_bps=1e9, rtt_s=0.02, loss_ratio=0.01)
    assert sustained_bps(path, "cubic") == pytest.approx(1.2247 / 0.1 * FRAME_BITS / 0.02, rel=1e-3)


def test_cubic_on_a_long_clean_way_is_faster_than_reno():
    path = PathShape(rate_bps=1e9, rtt_s=0.2, loss_ratio=1e-5)
    # RFC 8312, Eq. 6 with C 0.4 and beta 0.7: 1.054 * RTT^0.75 / p^0.75 segments.
    assert sustained_bps(path, "cubic") == pytest.approx(
        1.054 * (0.2 / 1e-5) ** 0.75 * FRAME_BITS / 0.2, rel=1e-3
    )


def test_an_unknown_congestion_control_is_refused():
    with pytest.raises(ValueError, match="vegas"):
        sustained_bps(PathShape(rate_bps=1e6, rtt_s=0.1, loss_ratio=0.0), "vegas")


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
