"""Read from a socket's notes when the kernel received what was just read: pure, time is an argument."""

from __future__ import annotations

import socket
import struct

SO_TIMESTAMPNS = 35
"""Linux's socket option that asks for those notes (socket(7)); with TCP they are of the last bytes read."""
_STAMP = struct.Struct("@ll")
ROOM = socket.CMSG_SPACE(_STAMP.size)
MOST_UNREAD_S = 5.0
"""A stamp that is older, or in the future, is of a clock that was set meanwhile."""


def received_at(notes: list[tuple[int, int, bytes]], now: float) -> float:
    """Return when the kernel received what was just read (Unix seconds); `now` where it does not tell."""
    for level, kind, content in notes:
        if (level, kind, len(content)) == (socket.SOL_SOCKET, SO_TIMESTAMPNS, _STAMP.size):
            seconds, nanoseconds = _STAMP.unpack(content)
            stamp = float(seconds) + float(nanoseconds) * 1e-9
            return stamp if 0 <= now - stamp < MOST_UNREAD_S else now
    return now
