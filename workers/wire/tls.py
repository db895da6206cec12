"""Mutual TLS 1.3 between orchestrator and workers: contexts, dialling, and who the peer is.

A node's identity is the common name of its certificate, issued by the orchestrator's own authority
(docs/wire_protocol.md, Identity); host names and addresses play no part.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path

from workers.errors import ConnectFailed, IdentityMismatch

ORCHESTRATOR = "orchestrator"
KEEPALIVE_IDLE_S = 5
KEEPALIVE_INTERVAL_S = 2
KEEPALIVE_PROBES = 3
USER_TIMEOUT_S = 30
"""Without an acknowledgement for this long a connection is dead, data or keepalive probes alike (on Linux
it overrides their number). A full queue on a thin link delays by seconds, so it must not be much less."""
HANDSHAKE_TIMEOUT_S = 10.0
UNPACED = b"cubic"
"""The congestion control within a machine: BBR, the default of many, would pace what no link carries."""
NEAR_BUFFER_BYTES = 1 << 20
"""A socket's buffers within a machine: enough to keep both ends busy, little enough to stay cached."""


def server_context(
    *, ca_path: Path, certificate_path: Path, key_path: Path, anonymous: bool = False
) -> ssl.SSLContext:
    """Make the context of a listener whose clients show a certificate of the CA.

    With `anonymous` a client may also show none; one that shows a wrong certificate is refused either way.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(certificate_path, key_path)
    context.load_verify_locations(ca_path)
    context.verify_mode = ssl.CERT_OPTIONAL if anonymous else ssl.CERT_REQUIRED
    return context


def client_context(
    *, ca_path: Path | None, certificate_path: Path | None = None, key_path: Path | None = None
) -> ssl.SSLContext:
    """Make the context of a dialler: without a certificate it stays anonymous.

    Without `ca_path` nothing is verified, which is right only for asking for the CA's certificate, whose
    fingerprint the operator's token holds.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # identity is the common name, see `peer_name`
    if ca_path is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(ca_path)
    if certificate_path is not None:
        context.load_cert_chain(certificate_path, key_path)
    return context


def tune(sock: socket.socket) -> None:
    """Set no Nagle delay, keepalive, an end to unacknowledged sending, no pacing within a machine."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_S * 1000)
    if hasattr(socket, "TCP_CONGESTION") and _within_machine(sock):
        with suppress(OSError):  # a kernel without it keeps its own
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, UNPACED)
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, buffer, NEAR_BUFFER_BYTES)


def _within_machine(sock: socket.socket) -> bool:
    """Tell whether both ends have one address, so that nothing lies between them."""
    try:
        return bool(sock.getsockname()[0] == sock.getpeername()[0])
    except OSError:
        return False


def peer_name(sock: ssl.SSLSocket) -> str | None:
    """Give the common name of the peer's verified certificate, None if it showed none."""
    certificate = sock.getpeercert()
    if not certificate:
        return None
    subject: tuple[tuple[tuple[str, str], ...], ...] = certificate.get("subject", ())  # type: ignore[assignment]
    names = [value for pairs in subject for key, value in pairs if key == "commonName"]
    if len(names) != 1 or not names[0]:
        raise IdentityMismatch(f"the peer's certificate has {len(names)} common names, not one")
    return names[0]


def peer_serial(sock: ssl.SSLSocket) -> int | None:
    """Give the serial number of the peer's verified certificate, None if it showed none."""
    certificate = sock.getpeercert()
    return int(str(certificate["serialNumber"]), 16) if certificate else None


def accept(sock: socket.socket, context: ssl.SSLContext, *, timeout_s: float) -> ssl.SSLSocket:
    """Do the server's side of the handshake on an accepted socket, which is closed if it fails."""
    try:
        tune(sock)
        sock.settimeout(timeout_s)
        return context.wrap_socket(sock, server_side=True)
    except (OSError, ValueError) as error:
        sock.close()
        raise ConnectFailed(f"handshake failed: {_explain(error)}") from error


def dial(
    address: str,
    port: int,
    *,
    context: ssl.SSLContext,
    expected_name: str | None,
    timeout_s: float = HANDSHAKE_TIMEOUT_S,
) -> ssl.SSLSocket:
    """Connect to a peer and check that its certificate names `expected_name` (None: nobody is checked).

    Raises:
        ConnectFailed: no connection or no handshake within `timeout_s`.
        IdentityMismatch: the peer is not of our authority, or is somebody else.
    """
    deadline_s = time.monotonic() + timeout_s
    where = f"{expected_name or 'peer'} at {address}:{port}"
    try:
        plain = socket.create_connection((address, port), timeout=timeout_s)
    except OSError as error:
        raise ConnectFailed(f"{where}: cannot connect: {_explain(error)}") from error
    try:
        tune(plain)
        plain.settimeout(max(deadline_s - time.monotonic(), 0.1))
        sock = context.wrap_socket(plain, server_hostname=expected_name)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise IdentityMismatch(
            f"{where}: its certificate is not valid here: {error.verify_message}"
        ) from error
    except (OSError, ValueError) as error:
        plain.close()
        raise ConnectFailed(f"{where}: handshake failed: {_explain(error)}") from error
    if expected_name is not None and (name := peer_name(sock)) != expected_name:
        with suppress(OSError):
            sock.close()
        raise IdentityMismatch(f"{where}: the certificate there names {name!r}")
    return sock


def _explain(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
