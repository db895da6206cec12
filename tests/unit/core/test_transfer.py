"""What TCP gets out of a path: bounds, directions, and the textbook's own numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.transfer import PathShape, sustained_bps, transfer_s, window_segments

rates, rtts, losses = st.floats(1e4, 1e9), st.floats(1e-3, 1.0), st.floats(1e-5, 0.3)


def path(rate_bps: float = 16e6, rtt_s: float = 0.116, loss_ratio: float = 0.01) -> PathShape:
    return PathShape(rate_bps=rate_bps, rtt_s=rtt_s, loss_ratio=loss_ratio)


def test_bbr_fills_the_path_with_frames_whose_payload_is_what_counts() -> None:
    assert sustained_bps(path(loss_ratio=0.0), "bbr") == pytest.approx(16e6 * 1448 / 1514)
    assert sustained_bps(path(), "bbr") == pytest.approx(0.99 * 16e6 * 1448 / 1514)


def test_cubic_at_one_percent_has_the_window_of_mathis_or_that_of_rfc_9438_if_it_is_larger() -> None:
    assert window_segments(path(rtt_s=0.01)) == pytest.approx((1.5 / 0.01) ** 0.5)
    # RFC 9438, section 5.1, for C = 0.4 and beta = 0.7: 1.054 * (RTT / p)^0.75
    assert window_segments(path(rtt_s=1.0)) == pytest.approx(1.054 * (1.0 / 0.01) ** 0.75, rel=1e-3)


def test_cubic_is_far_below_a_lossy_paths_rate_and_bbr_is_not() -> None:
    assert sustained_bps(path(), "cubic") == pytest.approx(12.2 * 8 * 1448 / 0.116, rel=0.05)


@given(rate=rates, rtt=rtts, loss=losses, more=st.floats(1.0, 3.0))
def test_worse_paths_are_never_faster(rate: float, rtt: float, loss: float, more: float) -> None:
    for control in ("bbr", "cubic"):
        here = transfer_s(1e6, path(rate, rtt, loss), control)
        assert transfer_s(1e6, path(rate / more, rtt, loss), control) >= here * (1 - 1e-6)
        assert transfer_s(1e6, path(rate, rtt, min(0.9, loss * more)), control) >= here * (1 - 1e-6)
        assert transfer_s(2e6, path(rate, rtt, loss), control) >= here
        assert here >= 8e6 / rate


def test_nothing_takes_no_time() -> None:
    assert transfer_s(0, path(), "bbr") == 0.0


def test_slow_start_costs_a_few_round_trips_on_a_fat_long_path() -> None:
    fat = path(rate_bps=1e9, rtt_s=0.1, loss_ratio=0.0)
    bare = 8 * 50e6 / sustained_bps(fat, "bbr")
    assert 0.3 < transfer_s(50e6, fat, "bbr") - bare < 1.2
