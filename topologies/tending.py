"""Start a part of the testbed again when it has ended by itself, a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

LIMIT = 5
WITHIN_S = 300.0
"""A part that ends so often in so short a time is left: starting it again does not help."""
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


class Part(Protocol):
    """A process; `ended` is its exit status, None while it runs."""

    name: str

    @property
    def ended(self) -> int | None: ...

    def log_end(self) -> str: ...

    def stop(self) -> None: ...


class Tended:
    """A part that is started again: after a pause that doubles each time, until it has ended too often.

    What is started is not waited for: whoever watches calls `tend` about once a second.
    """

    def __init__(self, part: Part, again: Callable[[], Part]) -> None:
        """`again` starts the part anew; it may raise, which counts as an end."""
        self.part = part
        self._again = again
        self._ends_s: list[float] = []
        self._due_s: float | None = None
        self._given_up = False

    def tend(self, now_s: float) -> str | None:
        """Look after the part; return what happened since the last call, None if nothing did.

        `now_s` is of any monotonic clock.
        """
        status = self.part.ended
        if status is None or self._given_up:
            return None
        if self._due_s is None:
            return self._note_end(f"ended with status {status}", now_s)
        if now_s < self._due_s:
            return None
        self._due_s = None
        try:
            self.part = self._again()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told, and the number of tries is bounded
            return self._note_end(f"cannot be started again: {error}", now_s)
        return f"ended with status {status} and was started again ({self._count(now_s)} of {LIMIT} times)"

    def stop(self) -> None:
        """End the part, and start it no more."""
        self._given_up = True
        self.part.stop()

    def _count(self, now_s: float) -> int:
        return sum(now_s - at_s <= WITHIN_S for at_s in self._ends_s)

    def _note_end(self, what: str, now_s: float) -> str:
        self._ends_s = [*self._ends_s[-LIMIT:], now_s]
        count = self._count(now_s)
        if count > LIMIT:
            self._given_up = True
            return (
                f"{what}: {count} times within {WITHIN_S:g} s, so it is not started again; "
                f"take the testbed down and start it anew when the cause is found; {self.part.log_end()}"
            )
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (count - 1))
        self._due_s = now_s + pause_s
        return f"{what}; it is started again in {pause_s:g} s"
