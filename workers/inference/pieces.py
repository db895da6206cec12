"""Pieces of prompts: those that wait at a stage, and how many of a head's may be in its ring. No torch.

Shape letters: T rows (tokens) of one sequence, H hidden.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from workers.inference.timing import Way

if TYPE_CHECKING:
    from workers.inference.stage import Place, Rows

GAIN = 2.0
"""How much more than keeps the ring busy may be in it: less leaves gaps where stages and links waver, and a
connection that begins slowly doubles what it carries each round trip."""
_LONELY_KEPT = 4


class Piece(NamedTuple):
    """Rows [T, H] of one sequence, the first at its place; `partial`: more of them follow.

    `way` is what was spent on them so far, and `came_s` when they came to this node.
    """

    place: Place
    rows: Rows
    partial: bool
    way: Way = ()
    came_s: float = 0.0


class WaitingPieces:
    """The pieces that have come to a stage and were not run yet, in their order; any thread may add."""

    def __init__(self) -> None:
        self._pieces: deque[Piece] = deque()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, piece: Piece) -> None:
        """Let a piece wait behind the others."""
        with self._lock:
            self._pieces.append(piece)

    def take(self) -> Piece | None:
        """Take the first, None if none waits."""
        with self._lock:
            return self._pieces.popleft() if self._pieces else None

    def drop(self, number: int) -> None:
        """Forget those of a sequence that has ended."""
        with self._lock:
            if any(piece.place.number == number for piece in self._pieces):
                self._pieces = deque(piece for piece in self._pieces if piece.place.number != number)

    def clear(self) -> None:
        """Forget them all."""
        with self._lock:
            self._pieces.clear()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Out:
    sequence: int
    rows: int
    sent_s: float
    returned_before: int
    alone: bool


class PieceWindow:
    """How many rows of prompts a head lets into its ring before some have come round.

    In any pipe as much is under way as it carries per second times what the way takes (Little 1961). The rate
    is that at which rows came round during a piece's way, the greatest seen; it falls with pieces that had
    to wait for others longer than they should. The way is that of a piece that was alone in the ring, the
    shortest of the last four (as BBR, Cardwell and others 2016, has both of packets). Never less than one
    piece for every stage and one that waits.
    """

    def __init__(self, *, stages: int, piece_rows: int) -> None:
        self._piece_rows = piece_rows
        self._least_rows = (stages + 1) * piece_rows
        self._out: dict[int, deque[_Out]] = {}
        self._rows_out = 0
        self._rows_returned = 0
        self._rows_per_s = 0.0
        self._lonely_s: deque[float] = deque(maxlen=_LONELY_KEPT)

    @property
    def rows_out(self) -> int:
        """Rows in the ring now."""
        return self._rows_out

    @property
    def limit_rows(self) -> int:
        """Rows that may be in the ring at once."""
        return max(self._least_rows, int(GAIN * self._rows_per_s * self._least_way_s))

    @property
    def _least_way_s(self) -> float:
        return min(self._lonely_s, default=0.0)

    def takes_more(self) -> bool:
        """Tell whether another piece may go."""
        return not self._rows_out or self._rows_out + self._piece_rows <= self.limit_rows

    def sent(self, number: int, sequence: int, *, rows: int, now_s: float) -> None:
        """Take in that a piece of sequence `number` went, as its pass `sequence`."""
        out = _Out(
            sequence=sequence,
            rows=rows,
            sent_s=now_s,
            returned_before=self._rows_returned,
            alone=not self._rows_out,
        )
        self._rows_out += rows
        self._out.setdefault(number, deque()).append(out)

    def returned(self, number: int, sequence: int, *, now_s: float) -> bool:
        """Take in that a pass has come round, and all before it; tells whether any was under way."""
        waiting = self._out.get(number)
        if not waiting or waiting[0].sequence > sequence:
            return False
        while waiting and waiting[0].sequence <= sequence:
            out = waiting.popleft()
            self._rows_out -= out.rows
            self._rows_returned += out.rows
            self._learn(out, now_s - out.sent_s)
        if not waiting:
            del self._out[number]
        return True

    def awaits(self, number: int) -> bool:
        """Tell whether pieces of a sequence are in the ring."""
        return number in self._out

    def forget(self, number: int) -> None:
        """Expect nothing more of a sequence that has ended."""
        self._rows_out -= sum(out.rows for out in self._out.pop(number, ()))

    def _learn(self, out: _Out, way_s: float) -> None:
        if way_s <= 0:
            return
        if out.alone:
            self._lonely_s.append(way_s)
        rows_per_s = (self._rows_returned - out.returned_before) / way_s
        if rows_per_s > self._rows_per_s:
            self._rows_per_s = rows_per_s
        elif way_s > GAIN * self._least_way_s:
            self._rows_per_s += (rows_per_s - self._rows_per_s) * min(1.0, out.rows / self.limit_rows)
