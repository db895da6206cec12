"""Connections that are not encrypted, for this benchmark alone: what the encryption costs is the difference.

The product's link takes any connected socket that can say whose it is; its pool and its workers ask an
authority and an identity for contexts that make such sockets. Here contexts do not encrypt, and the socket
says what the other side claimed. No product code makes these, and none of its settings leads here.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from orchestrator.adapters.certificates import NodeTrust
from workers.wire import tls

_NAME_BYTES = 64
_SERIAL = 1


class NamedSocket(socket.socket):
    """A plain socket that shows, in place of a certificate, the name that the peer gave."""

    def __init__(self, sock: socket.socket, peer: str | None) -> None:
        super().__init__(sock.family, sock.type, sock.proto, fileno=sock.detach())
        self._peer = peer

    def getpeercert(self) -> dict[str, Any] | None:
        """Give the fields of a certificate that the link reads."""
        if self._peer is None:
            return None
        return {"subject": ((("commonName", self._peer),),), "serialNumber": f"{_SERIAL:x}"}


class PlainContext:
    """Stands where an SSLContext does: the dialler says its name, nothing is encrypted or verified."""

    def __init__(self, name: str, on_name: Callable[[str, int], None] | None = None) -> None:
        self._name = name
        self._on_name = on_name

    def wrap_socket(
        self, sock: socket.socket, *, server_side: bool = False, server_hostname: str | None = None
    ) -> NamedSocket:
        """Exchange names."""
        timeout_s = sock.gettimeout()
        if not server_side:
            sock.sendall(self._name.encode().ljust(_NAME_BYTES))
            return _timed(NamedSocket(sock, server_hostname), timeout_s)
        name = b""
        while len(name) < _NAME_BYTES:
            part = sock.recv(_NAME_BYTES - len(name))
            if not part:
                raise ConnectionResetError("the peer left before it said its name")
            name += part
        if self._on_name is not None:
            address = sock.getpeername()
            self._on_name(f"{address[0]}:{address[1]}", _SERIAL)
        return _timed(NamedSocket(sock, name.decode().strip()), timeout_s)


def _timed(sock: NamedSocket, timeout_s: float | None) -> NamedSocket:
    sock.settimeout(timeout_s)
    return sock


class PlainIdentity:
    """A worker's identity without keys."""

    def __init__(self, node: str) -> None:
        self._node = node

    def client_context(self) -> PlainContext:
        """Dial by name."""
        return PlainContext(self._node)

    def server_context(self) -> PlainContext:
        """Take other nodes by name."""
        return PlainContext(self._node)


class PlainAuthority:
    """What the worker pool needs of an authority, for nodes that are believed what they say."""

    def __init__(self, nodes: tuple[str, ...]) -> None:
        self._nodes = nodes

    def server_context(self, on_certificate: Callable[[str, int], None]) -> PlainContext:
        """Take workers by name."""
        return PlainContext(tls.ORCHESTRATOR, on_certificate)

    def accepts(self, node: str, serial: int) -> bool:
        """Take the nodes of the benchmark."""
        return node in self._nodes and serial == _SERIAL

    def known(self) -> tuple[NodeTrust, ...]:
        """List the nodes of the benchmark."""
        return tuple(NodeTrust(node=node, trusted=True, serials=(_SERIAL,)) for node in self._nodes)
