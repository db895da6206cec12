"""How many pieces of prompts a head lets into its ring, in simulated pipes; and the queue of a stage."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.inference.pieces import Piece, PieceWindow, WaitingPieces
from workers.inference.stage import Place

ROWS = 64


class Pipe:
    """A ring in which each piece is worked on at each station, in `stations_s`, and then is under way."""

    def __init__(self, stations_s: Sequence[float], delay_s: float) -> None:
        self._stations_s, self._delay_s = stations_s, delay_s
        self._free_s = [0.0] * len(stations_s)
        self.now_s = 0.0

    def came_round_s(self) -> float:
        """Return when a piece that goes now comes round."""
        at_s = self.now_s
        for place, takes_s in enumerate(self._stations_s):
            self._free_s[place] = at_s = max(at_s, self._free_s[place]) + takes_s
            at_s += self._delay_s
        return at_s

    def carry(self, pieces: int, window: PieceWindow | None, *, number: int = 1) -> tuple[float, int]:
        """Send a prompt; returns the seconds until its last piece came round, and the most rows under way."""
        began_s, most = self.now_s, 0
        coming: list[tuple[float, int]] = []
        for sequence in range(1, pieces + 1):
            while window is not None and not window.takes_more():
                self._hear(coming, window, number)
            heapq.heappush(coming, (self.came_round_s(), sequence))
            if window is not None:
                window.sent(number, sequence, rows=ROWS, now_s=self.now_s)
                most = max(most, window.rows_out)
            self.now_s = max(self.now_s, self._free_s[0])  # the head computes, too
            while window is not None and coming and coming[0][0] <= self.now_s:
                self._hear(coming, window, number)
        while coming:
            self._hear(coming, window, number)
        return self.now_s - began_s, most

    def _hear(self, coming: list[tuple[float, int]], window: PieceWindow | None, number: int) -> None:
        at_s, sequence = heapq.heappop(coming)
        self.now_s = max(self.now_s, at_s)
        if window is not None:
            assert window.returned(number, sequence, now_s=self.now_s)


@pytest.mark.parametrize("stations_s", [(0.02, 0.02), (0.02, 0.01, 0.03), (0.0, 0.02, 0.02, 0.02, 0.02)])
def test_stages_side_by_side_are_kept_busy_by_twice_as_many_pieces_as_they_work_on(
    stations_s: Sequence[float],
) -> None:
    unbounded_s, _ = Pipe(stations_s, 0.0).carry(15, None)
    window = PieceWindow(stages=len(stations_s), piece_rows=ROWS)
    bounded_s, most = Pipe(stations_s, 0.0).carry(15, window)
    assert bounded_s == pytest.approx(unbounded_s)
    assert most <= (2 * len(stations_s) + 1) * ROWS


@pytest.mark.parametrize(
    ("station_s", "delay_s"), [(0.001, 0.1), (0.001, 0.05), (0.01, 0.1), (0.1, 0.1), (0.02, 0.01)]
)
def test_a_long_way_is_filled_from_the_second_prompt_on(station_s: float, delay_s: float) -> None:
    stations_s = (station_s / 10, station_s)
    unbounded_s, _ = Pipe(stations_s, delay_s).carry(250, None)
    window, pipe = PieceWindow(stages=2, piece_rows=ROWS), Pipe(stations_s, delay_s)
    pipe.carry(250, window)
    took_s, most = pipe.carry(250, window, number=2)
    assert took_s <= 1.05 * unbounded_s
    way_s = sum(stations_s) + 2 * delay_s
    assert most <= ROWS * (2 * way_s / station_s + 4)


def test_a_way_that_has_become_slow_is_filled_with_less() -> None:
    window, pipe = PieceWindow(stages=2, piece_rows=ROWS), Pipe((0.0, 0.001), 0.1)
    pipe.carry(250, window)
    before = window.limit_rows
    slow = Pipe((0.0, 0.02), 0.1)
    slow.now_s = pipe.now_s
    for number in range(2, 8):
        slow.carry(100, window, number=number)
    assert window.limit_rows < before / 4


def test_a_window_of_short_prompts_counts_their_rows() -> None:
    window = PieceWindow(stages=2, piece_rows=ROWS)
    sent = 0
    while window.takes_more():
        sent += 1
        window.sent(sent, 1, rows=4, now_s=0.0)
    assert sent == 33, "a full piece must still have room: (3 - 1) pieces and one more of 4 rows"


@given(st.lists(st.tuples(st.sampled_from("srf"), st.integers(1, 3), st.integers(1, 64)), max_size=60))
def test_what_is_under_way_is_what_went_and_did_not_return(steps: list[tuple[str, int, int]]) -> None:
    window = PieceWindow(stages=3, piece_rows=ROWS)
    out: dict[int, list[tuple[int, int]]] = {1: [], 2: [], 3: []}
    sequence = 0
    for time, (kind, number, rows) in enumerate(steps):
        if kind == "s":
            sequence += 1
            window.sent(number, sequence, rows=rows, now_s=float(time))
            out[number].append((sequence, rows))
        elif kind == "r" and out[number]:
            until = out[number][len(out[number]) // 2][0]
            assert window.returned(number, until, now_s=float(time))
            out[number] = [one for one in out[number] if one[0] > until]
        elif kind == "f":
            window.forget(number)
            out[number] = []
        assert not window.returned(9, sequence, now_s=float(time)), "nobody's"
        assert window.rows_out == sum(rows for ones in out.values() for _, rows in ones)
        assert window.awaits(number) == bool(out[number])
        assert window.rows_out or window.takes_more(), "an empty ring takes a piece"


def piece(number: int, sequence: int) -> Piece:
    return Piece(Place(number, 0, sequence), np.zeros((1, 4), dtype=np.float32), partial=True)


def test_pieces_of_a_sequence_that_ended_are_dropped_and_the_others_keep_their_order() -> None:
    waiting = WaitingPieces()
    for sequence in range(1, 4):
        waiting.add(piece(1, sequence))
        waiting.add(piece(2, sequence))
    waiting.drop(1)
    taken = [waiting.take() for _ in range(3)]
    assert [one.place for one in taken if one] == [Place(2, 0, sequence) for sequence in (1, 2, 3)]
    assert waiting.take() is None
