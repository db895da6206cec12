"""Listening sockets in another network namespace."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from pathlib import Path

from orchestrator.errors import Unavailable

_CLONE_NEWNET = 0x40000000
_BACKLOG = 512


def listen(address: str, port: int, *, netns: Path | None) -> socket.socket:
    """Bind and listen on `address`:`port`, in the namespace at `netns` (None: this process's).

    A socket belongs to the namespace it was made in, and a thread may enter one alone; so a short-lived
    thread makes it and the process stays where it is.

    Raises:
        Unavailable: the namespace cannot be entered or the address not be bound.
    """
    made: list[socket.socket] = []
    failures: list[OSError] = []

    def make() -> None:
        try:
            if netns is not None:
                _enter(netns)
            made.append(_bind(address, port))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=make, name="make-socket")
    thread.start()
    thread.join()
    if failures:
        where = f" in {netns}" if netns else ""
        raise Unavailable(
            f"cannot listen on {address} port {port}{where}: {failures[0].strerror or failures[0]}; "
            "check data_address, data_port and data_netns"
        ) from failures[0]
    return made[0]


def _enter(netns: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(descriptor, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(netns))
    finally:
        os.close(descriptor)


def _bind(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
