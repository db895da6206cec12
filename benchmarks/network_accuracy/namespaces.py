"""Make sockets inside the hosts' network namespaces, without being there."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable

_CLONE_NEWNET = 0x40000000


def make_socket(netns: str, make: Callable[[], socket.socket]) -> socket.socket:
    """Return the socket that `make` makes in the namespace at `netns`.

    A socket stays in the namespace it was made in, and a thread can enter one alone: a short-lived one does.

    Raises:
        OSError: the namespace cannot be entered or the socket not be made.
    """
    made: list[socket.socket] = []
    failures: list[OSError] = []

    def work() -> None:
        try:
            _enter(netns)
            made.append(make())
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=work, name="make-socket")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return made[0]


def _enter(netns: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), netns)
    finally:
        os.close(descriptor)
