"""Counts of windows of seconds, told from running totals, are those of the seconds themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ryu_apps.seconds import Seconds

KEEP_S = 20


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), st.booleans()), max_size=80),
    st.integers(0, KEEP_S - 1),
    st.integers(0, KEEP_S - 1),
)
def test_a_window_holds_what_was_sent_in_it_and_what_of_that_arrived(
    steps: list[tuple[int, int, bool]], oldest_s: int, newest_s: int
) -> None:
    seconds, now = Seconds(keep_s=KEEP_S), 1000
    sent: list[int] = []
    arrived: list[int] = []
    for pause_s, late_s, arrives in steps:
        now += pause_s
        seconds.sent(now)
        sent.append(now)
        if arrives and now - late_s in sent and now - late_s > now - KEEP_S:
            seconds.arrived(now - late_s)
            arrived.append(now - late_s)
    after, until = sorted((now - oldest_s, now - newest_s))

    def count(of: list[int]) -> int:
        return sum(after < second <= until for second in of)

    assert seconds.between(after, until) == (count(sent), count(arrived))
    assert len(seconds) <= KEEP_S


def test_a_long_silence_forgets_what_was_before_it() -> None:
    seconds = Seconds(keep_s=KEEP_S)
    for second in (10, 11, 500):
        seconds.sent(second)
    assert seconds.between(400, 500) == (1, 0)
    assert len(seconds) == 1


def test_an_arrival_that_is_too_late_counts_for_no_second() -> None:
    seconds = Seconds(keep_s=KEEP_S)
    for second in range(100, 150):
        seconds.sent(second)
    seconds.arrived(105)
    assert seconds.between(135, 150) == (14, 0)


def test_a_clock_that_goes_back_counts_neither_twice_nor_backwards() -> None:
    seconds = Seconds(keep_s=KEEP_S)
    for second in (100, 101, 100, 90):
        seconds.sent(second)
    seconds.arrived(100)
    assert seconds.between(95, 101) == (3, 1)
