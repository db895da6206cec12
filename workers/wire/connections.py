"""Opening channels: dialling a peer, and a server that accepts peers and makes a channel of each.

Here it is decided who gets a channel at all: how many connections there may be, how long a peer may take to
show who it is, and how little one without a certificate may send.
"""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any

from workers.errors import LinkError, RequestRefused
from workers.wire import tls
from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import DEFAULT_MAX_BODY_BYTES, MAX_HEADER_BYTES
from workers.wire.link import Channel, Handler, OnClose

logger = logging.getLogger(__name__)

ANONYMOUS_HEADER_BYTES = 64 << 10
ANONYMOUS_LIFETIME_S = 30.0
MAX_CONNECTIONS = 4096
MAX_UNPROVEN_CONNECTIONS = 256


def connect(
    address: str,
    port: int,
    *,
    context: ssl.SSLContext,
    expected_name: str | None,
    handler: Handler | None = None,
    on_close: OnClose | None = None,
    inline_kinds: Collection[str] = (),
    timeout_s: float = tls.HANDSHAKE_TIMEOUT_S,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
) -> Channel:
    """Dial a peer and open a channel to it; raises as `tls.dial` does."""
    sock = tls.dial(address, port, context=context, expected_name=expected_name, timeout_s=timeout_s)
    return Channel(
        FrameSocket(sock, max_body_bytes),
        peer_name=expected_name,
        handler=handler,
        on_close=on_close,
        inline_kinds=inline_kinds,
        peer_address=f"{address}:{port}",
    )


class Server:
    """Accepts connections on a listening socket and makes a channel of each; see `serve`."""

    def __init__(
        self,
        listening_socket: socket.socket,
        ssl_context: ssl.SSLContext,
        *,
        handler: Handler,
        on_channel: Callable[[Channel], None] | None,
        on_close: OnClose | None,
        inline_kinds: Collection[str],
        max_body_bytes: int,
        handshake_timeout_s: float,
        anonymous_lifetime_s: float,
    ) -> None:
        self._listening_socket = listening_socket
        self._ssl_context = ssl_context
        self._handler = handler
        self._on_channel = on_channel
        self._on_close = on_close
        self._inline_kinds = inline_kinds
        self._max_body_bytes = max_body_bytes
        self._handshake_timeout_s = handshake_timeout_s
        self._anonymous_lifetime_s = anonymous_lifetime_s
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._channels: set[Channel] = set()
        self._unproven: set[socket.socket] = set()
        listening_socket.setblocking(True)
        self._thread = threading.Thread(target=self._accept_all, name=f"accept {self.port}", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Give the port that is listened on."""
        return int(self._listening_socket.getsockname()[1])

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Give the channels that are open now."""
        with self._lock:
            return tuple(self._channels)

    def close(self, reason: str = "the server closed") -> None:
        """Stop accepting and end every channel."""
        self._closing.set()
        with suppress(OSError):
            self._listening_socket.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._thread.join(timeout=5.0)
        self._listening_socket.close()
        with self._lock:
            unproven = tuple(self._unproven)
        for sock in unproven:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for channel in self.channels:
            channel.close(reason)

    def _accept_all(self) -> None:
        while not self._closing.is_set():
            try:
                sock, address = self._listening_socket.accept()
            except OSError as error:
                if not self._closing.is_set():
                    logger.warning("accepting on port %d failed: %s", self.port, error)
                    self._closing.wait(0.2)  # out of descriptors, say: others may free some
                continue
            with self._lock:
                crowded = (
                    len(self._unproven) >= MAX_UNPROVEN_CONNECTIONS or len(self._channels) >= MAX_CONNECTIONS
                )
                if not crowded:
                    self._unproven.add(sock)
            if crowded:
                logger.warning("too many connections, %s:%d closed", *address[:2])
                sock.close()
                continue
            threading.Thread(
                target=self._welcome, args=(sock, address), name=f"handshake {address}", daemon=True
            ).start()

    def _welcome(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        """Do the handshake and open the channel, apart from the accepting thread."""
        where = f"{address[0]}:{address[1]}"
        try:
            secured = tls.accept(sock, self._ssl_context, timeout_s=self._handshake_timeout_s)
        except LinkError as error:
            logger.info("%s: %s", where, error)
            return
        finally:
            with self._lock:
                self._unproven.discard(sock)
        try:
            self._open(secured, where)
        except LinkError as error:
            logger.warning("%s: %s", where, error)
            secured.close()

    def _open(self, secured: ssl.SSLSocket, where: str) -> None:
        name, serial = tls.peer_name(secured), tls.peer_serial(secured)
        anonymous = name is None
        channel = Channel(
            FrameSocket(
                secured,
                0 if anonymous else self._max_body_bytes,
                max_header_bytes=ANONYMOUS_HEADER_BYTES if anonymous else MAX_HEADER_BYTES,
            ),
            peer_name=name,
            handler=self._handler,
            on_close=self._ended,
            inline_kinds=self._inline_kinds,
            peer_address=where,
            peer_serial=serial,
            start=False,
        )
        with self._lock:
            self._channels.add(channel)
        try:
            if self._closing.is_set():
                raise RequestRefused("closing", "the server is closing")
            if self._on_channel is not None:
                self._on_channel(channel)
        except RequestRefused as refusal:
            logger.info("%s refused: %s", channel, refusal)
            channel.close(str(refusal))
            return
        channel.start()
        if anonymous and not channel.wait_closed(self._anonymous_lifetime_s):
            channel.close(f"no certificate, and {self._anonymous_lifetime_s:g} s are over")

    def _ended(self, channel: Channel, reason: str) -> None:
        with self._lock:
            self._channels.discard(channel)
        if self._on_close is not None:
            self._on_close(channel, reason)


def serve(
    listening_socket: socket.socket,
    ssl_context: ssl.SSLContext,
    *,
    handler: Handler,
    on_channel: Callable[[Channel], None] | None = None,
    on_close: OnClose | None = None,
    inline_kinds: Collection[str] = (),
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    handshake_timeout_s: float = tls.HANDSHAKE_TIMEOUT_S,
    anonymous_lifetime_s: float = ANONYMOUS_LIFETIME_S,
) -> Server:
    """Accept on `listening_socket` (bound and listening, of any namespace) until the server is closed.

    Each connection has its handshake in a thread of its own, so that a slow, silent or garbage peer
    disturbs nobody. `on_channel(channel)` sees each channel before anything is read from it and may raise
    RequestRefused to turn it away. `channel.peer_name` is the certificate's common name; None without
    certificate, and then headers are small, bodies empty, and the connection is closed after
    `anonymous_lifetime_s`.
    """
    return Server(
        listening_socket,
        ssl_context,
        handler=handler,
        on_channel=on_channel,
        on_close=on_close,
        inline_kinds=inline_kinds,
        max_body_bytes=max_body_bytes,
        handshake_timeout_s=handshake_timeout_s,
        anonymous_lifetime_s=anonymous_lifetime_s,
    )
