"""End an answer where one of the texts appears that its reader named: pure."""

from __future__ import annotations

from collections.abc import Sequence

MOST_STOPS = 16
LONGEST_STOP = 1000


class StopTexts:
    """Hold back what may become a stop text; what was given out is never part of one."""

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def __bool__(self) -> bool:
        """Tell whether there is any such text."""
        return bool(self._stops)

    def push(self, piece: str) -> tuple[str, bool]:
        """Take more text; return what is certain, and whether a stop text has appeared right behind it."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        found = [place for place in map(text.find, self._stops) if place >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        """Return what is held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
