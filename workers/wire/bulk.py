"""How large frames leave a process: one after another while their receivers keep up, in whole segments.

A dozen that leave at once share the processors and are all whole at the same late time, and the answers to
them come when nothing else is left to do. One at a time, the first is answered while the next leaves. That
holds where the processors are what limits: who has to wait for the network lets the next one begin, and
nobody waits long for a turn.
"""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LARGE_BYTES = 1 << 20
PATIENCE_MS = 5
"""A receiver that takes nothing for this long does not keep up."""
LONGEST_WAIT_S = 0.5
"""Whoever has waited for so long for its turn begins without."""

_lane = threading.Lock()


class Turn:
    """The time in which a frame leaves alone."""

    def __init__(self, *, wanted: bool, most_s: float) -> None:
        """Wait for the turn, for `most_s` seconds at most."""
        self._held = wanted and _lane.acquire(timeout=max(0.0, min(most_s, LONGEST_WAIT_S)))

    def lasts_until(self, writable: select.poll) -> bool:
        """Wait until the receiver takes more; False if it does not keep up: the turn is over then."""
        if self._held and writable.poll(PATIENCE_MS):
            return True
        self.end()
        return False

    def end(self) -> None:
        """Let the next one begin; may be called again."""
        if self._held:
            self._held = False
            _lane.release()


@contextmanager
def leaving(sock: socket.socket, size_bytes: int, *, most_s: float) -> Iterator[Turn]:
    """Send a frame of `size_bytes` within; a large one has its turn, and leaves in whole segments.

    TLS hands over records of 16 KB, each of which would become a segment of its own (tcp(7), TCP_CORK).
    """
    large = size_bytes >= LARGE_BYTES
    turn = Turn(wanted=large, most_s=most_s)
    try:
        if large:
            _cork(sock, 1)
        yield turn
    finally:
        turn.end()
        if large:
            _cork(sock, 0)


def _cork(sock: socket.socket, on: int) -> None:
    if hasattr(socket, "TCP_CORK"):
        with suppress(OSError, ValueError):  # not TCP, or closed meanwhile
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, on)
