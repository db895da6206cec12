"""Listening sockets in another network namespace."""

from __future__ import annotations

import socket
from pathlib import Path

from orchestrator.errors import Unavailable
from workers.namespaces import make_inside

_BACKLOG = 512


def listen(address: str, port: int, *, netns: Path | None) -> socket.socket:
    """Bind and listen on `address`:`port`, in the namespace at `netns` (None: this process's).

    Raises:
        Unavailable: the namespace cannot be entered or the address not be bound.
    """
    try:
        if netns is None:
            return _bind(address, port)
        return make_inside(netns, lambda: _bind(address, port))
    except OSError as error:
        where = f" in {netns}" if netns else ""
        raise Unavailable(
            f"cannot listen on {address} port {port}{where}: {error.strerror or error}; "
            "check data_address, data_port and data_netns"
        ) from error


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
