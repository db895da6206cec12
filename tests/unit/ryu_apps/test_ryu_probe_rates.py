"""More probes where a link is not known well enough, within the limit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ryu_world import OPTIONS, World

from ryu_apps.probe_rates import MOST, NONE_LOST, shares, wanted_rate
from ryu_apps.tally import Tally

H1 = "198.18.1.1"


def test_a_quiet_link_that_loses_nothing_gets_enough_to_say_so() -> None:
    assert wanted_rate(5.0, Tally(sent=300), round_trip=False, jitter_s=0.0005) == NONE_LOST / 60
    assert wanted_rate(15.0, Tally(sent=300), round_trip=False, jitter_s=0.0005) == 15.0
    assert wanted_rate(1.0, Tally(sent=300), round_trip=True, jitter_s=0.0005) == NONE_LOST / 120


def test_a_link_that_loses_one_percent_gets_enough_to_tell() -> None:
    rate = wanted_rate(5.0, Tally(sent=300, lost=3), round_trip=False, jitter_s=None)
    assert 1.96 * (0.01 * 0.99 / (rate * 60)) ** 0.5 == pytest.approx(0.006, rel=0.01)


def test_a_link_whose_delay_is_restless_gets_more() -> None:
    assert wanted_rate(5.0, Tally(sent=300), round_trip=True, jitter_s=0.010) == pytest.approx(15.0)


@given(st.floats(1, 30), st.integers(0, 300), st.floats(0, 10), st.booleans())
def test_nobody_gets_less_than_configured_or_more_than_the_most(
    base: float, lost: int, jitter_s: float, round_trip: bool
) -> None:
    rate = wanted_rate(base, Tally(sent=300, lost=lost), round_trip=round_trip, jitter_s=jitter_s)
    assert base <= rate <= max(base, MOST)


@given(st.lists(st.floats(0, 50), max_size=20), st.floats(-100, 1000))
def test_no_more_is_shared_out_than_there_is_or_is_wanted(extra: list[float], spare: float) -> None:
    given_out = shares(extra, spare)
    assert sum(given_out) <= max(0.0, spare) + 1e-6
    assert all(got <= wants for got, wants in zip(given_out, extra, strict=True))


def test_probes_stay_within_the_limit_and_lossy_links_get_the_spare_ones() -> None:
    world = World()
    world.host(H1, 1, 11)
    world.advance(2.0)
    world.say_arp(H1, "198.18.1.2")
    world.deliver()
    world.advance(3.0)
    prober = world.parts.prober
    stream = prober.host_stream(H1)
    assert stream is not None
    for number in range(10_000, 10_040):
        stream.loss.sent(world.now, number)
    world.advance(5.0)
    prober._budget(world.now)
    assert stream.extra_rate > 5
    wanted = sum(target.rate(world.now) for _, _, target in prober._queue if not target.closed)
    assert wanted <= OPTIONS.max_probe_rate
