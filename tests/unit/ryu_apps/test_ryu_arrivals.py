"""When bytes of a switch arrived: as the kernel says, and never nonsense."""

from __future__ import annotations

import socket
import struct
import time

import pytest

from ryu_apps.arrivals import SO_TIMESTAMPNS, received_at

NOW = 1_800_000_000.0
STAMPS = SO_TIMESTAMPNS


def note(at: float, *, kind: int = STAMPS) -> tuple[int, int, bytes]:
    """Return a note of the kernel that bytes arrived then."""
    return socket.SOL_SOCKET, kind, struct.pack("@ll", int(at), round(at % 1 * 1e9))


def test_the_time_is_that_of_the_kernel_however_late_the_bytes_are_read() -> None:
    assert received_at([note(NOW - 0.25)], NOW) == pytest.approx(NOW - 0.25, abs=1e-6)


@pytest.mark.parametrize(
    "notes", [[], [note(NOW - 3600)], [note(NOW + 1)], [note(NOW - 0.25, kind=29)], [(1, STAMPS, b"short")]]
)
def test_a_stamp_that_is_missing_or_of_another_clock_is_not_taken(
    notes: list[tuple[int, int, bytes]],
) -> None:
    assert received_at(notes, NOW) == NOW


def test_the_kernel_stamps_tcp_here() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door, socket.create_connection(door.getsockname()) as ours:
        theirs, _ = door.accept()
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, STAMPS, 1)
            before = time.time()
            ours.sendall(b"hello")
            _, notes, _, _ = theirs.recvmsg(100, 100)
            assert before - 0.001 <= received_at(notes, time.time()) <= time.time()
