"""The connection to one switch: Ryu's, made for measuring, and such that no switch can hold up another.

What differs from Ryu's own:
- packets and echo replies, of which hundreds come per second, are handed on as soon as their bytes are read,
  with the time at which the kernel had received them, so that what this process was busy with meanwhile does
  not look like a slow link; Ryu parses, wraps and queues everything else;
- `send` never waits: it writes at once what the switch takes and keeps the rest; a switch that leaves
  MAX_WAITING_BYTES unread, or does not read for some seconds, is cut off;
- connections that have not named their switch are few and get a deadline, so that noise on the port costs
  little.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections import Counter, deque
from typing import Any, Protocol

from eventlet.greenio import GreenSocket
from eventlet.hubs import trampoline
from ryu.controller import controller
from ryu.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER
from ryu.lib import hub

from ryu_apps import arrivals, openflow
from ryu_apps.errors import MalformedPacketError

LOG = logging.getLogger(__name__)

RECEIVE_BYTES = 65536
MESSAGES_PER_TURN = 64
"""A connection that has so much to say lets the others have a turn in between."""
MAX_WAITING_BYTES = 1 << 20
UNREAD_S = 5.0
HANDSHAKE_S = 10.0
MAX_STRANGERS = 64
"""So many connections at a time may be without a switch's id."""


class Receiver(Protocol):
    """Who takes what is not worth a detour through Ryu; must neither wait nor raise."""

    def packet_arrived(self, now: float, connection: Any, port: int, frame: bytes) -> None:
        """Take a packet in that a switch sent up."""

    def echo_arrived(self, now: float, connection: Any, data: bytes) -> None:
        """Take the reply to an echo request of ours in."""


class Backlog:
    """Messages that a switch has not taken yet, and how many bytes they have."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.waiting_bytes = 0

    def put(self, data: bytes) -> None:
        """Keep a message, or the rest of one."""
        self.messages.append(data)
        self.waiting_bytes += len(data)

    def qsize(self) -> int:
        """Return how many messages wait."""
        return len(self.messages)


class Connection(controller.Datapath):  # type: ignore[misc]
    """One switch's connection; Ryu knows it as a Datapath."""

    def __init__(self, connected: Any, address: Any, door: Door) -> None:
        super().__init__(connected, address)
        self.socket.settimeout(None)
        self._door = door
        self._direct = connected.fd if isinstance(connected, GreenSocket) else None
        """The socket below eventlet's, which never waits; none with TLS."""
        if self._direct is not None:
            with contextlib.suppress(OSError):
                self._direct.setsockopt(socket.SOL_SOCKET, arrivals.SO_TIMESTAMPNS, 1)
        self.send_q: Backlog | None = Backlog()
        self._filled = hub.Event()
        self.heard_at = time.time()

    @property
    def is_open(self) -> bool:
        """Tell whether the connection has not been ended from this side."""
        return self.send_q is not None

    # Receiving.

    def _recv_loop(self) -> None:
        try:
            self._receive()
        finally:
            self.set_state(DEAD_DISPATCHER)
            with contextlib.suppress(OSError):
                self.socket.close()

    def _receive(self) -> None:
        rest = b""
        while self.is_open:
            data = self._read()
            if not data:
                return
            rest = self._take_all(rest + data if rest else data)

    def _read(self) -> bytes:
        """Wait for bytes, the others having their turn meanwhile; none at the end of the connection."""
        try:
            if self._direct is None:
                data, notes = self.socket.recv(RECEIVE_BYTES), []
            else:
                trampoline(self._direct, read=True)
                data, notes, _, _ = self._direct.recvmsg(RECEIVE_BYTES, arrivals.ROOM)
            self.heard_at = arrivals.received_at(notes, time.time())
            return bytes(data)
        except BlockingIOError:
            return self._read()
        except OSError:
            return b""

    def _take_all(self, data: bytes) -> bytes:
        """Take every whole message of `data`; return what follows them."""
        start = taken = 0
        while self.is_open and len(data) - start >= openflow.HEADER_BYTES:
            header = openflow.header(data, start)
            version, kind, length, _ = header
            if version not in openflow.KNOWN_VERSIONS or length < openflow.HEADER_BYTES:
                self._cut_off(f"a message of version {version} and {length} bytes")
                break
            if len(data) - start < length:
                break
            self._take(kind, header, data[start : start + length])
            start += length
            taken += 1
            if taken % MESSAGES_PER_TURN == 0:
                hub.sleep(0)
        return data[start:]

    def _take(self, kind: int, header: tuple[int, int, int, int], message: bytes) -> None:
        if self.state == MAIN_DISPATCHER:
            if kind == openflow.PACKET_IN:
                self._take_packet(message)
                return
            if kind == openflow.ECHO_REPLY and len(message) > openflow.HEADER_BYTES:
                self._door.receiver.echo_arrived(self.heard_at, self, message[openflow.HEADER_BYTES :])
                return
        self._let_ryu_take(header, message)

    def _cut_off(self, what: str) -> None:
        """End a connection whose messages cannot be told apart any more."""
        self._door.counts["malformed_messages"] += 1
        LOG.warning("cut off %s, which sent %s", self.address, what)
        self.close()

    def _ignore(self, kind: int) -> None:
        """Leave out a message that cannot be read; who begins with one is no switch."""
        if self.state != MAIN_DISPATCHER:
            self._cut_off(f"a message of type {kind} that cannot be read")
            return
        self._door.counts["malformed_messages"] += 1
        LOG.info("ignored a message of type %d of %s that cannot be read", kind, self.address)

    def _take_packet(self, message: bytes) -> None:
        try:
            port, frame = openflow.parse_packet_in(message)
        except MalformedPacketError as error:
            self._door.counts["malformed_messages"] += 1
            LOG.debug("ignored a message of %s: %s", self.address, error)
            return
        self._door.receiver.packet_arrived(self.heard_at, self, port, frame)

    def _let_ryu_take(self, header: tuple[int, int, int, int], message: bytes) -> None:
        """Do what Ryu's own loop does: parse, tell the observers, call Ryu's handlers."""
        event = openflow.parse_event(self, header, message)
        if event is None:
            self._ignore(header[1])
            return
        self.ofp_brick.send_event_to_observers(event, self.state)
        for handler in self.ofp_brick.get_handlers(event, self.state):
            handler(event)
        if self.state == MAIN_DISPATCHER:
            self._door.introduced(self)

    # Sending.

    def send(self, buf: bytes, close_socket: bool = False) -> bool:
        """Send a message, now or as soon as the switch takes it; tell whether it is on its way."""
        backlog = self.send_q
        if backlog is None:
            return False
        rest = bytes(buf) if backlog.messages or self._direct is None else self._write(buf)
        if rest:
            backlog.put(rest)
            if backlog.waiting_bytes > MAX_WAITING_BYTES:
                self._door.counts["unread_cut_off"] += 1
                LOG.warning("cut off %s: it left %d bytes unread", self.address, backlog.waiting_bytes)
                self.close()
                return False
            self._filled.set()
        if close_socket:
            hub.spawn_after(1.0, self.close)
        return True

    def _write(self, data: bytes) -> bytes:
        """Write what can be written without waiting; return the rest."""
        try:
            return bytes(data[self._direct.send(data) :])
        except BlockingIOError:
            return bytes(data)
        except OSError:
            self.close()
            return b""

    def _send_loop(self) -> None:
        """Write what had to wait, as fast as the switch takes it."""
        try:
            while self.is_open:
                self._filled.wait()
                self._filled.clear()
                self._drain()
        except OSError as error:
            LOG.info("lost %s while sending: %s", self.address, error)
            self.close()

    def _drain(self) -> None:
        backlog = self.send_q
        while backlog is not None and backlog.messages:
            with hub.Timeout(UNREAD_S, TimeoutError(f"it has read nothing for {UNREAD_S:g} s")):
                self.socket.sendall(backlog.messages[0])
            backlog.waiting_bytes -= len(backlog.messages.popleft())

    def close(self) -> None:
        """End the connection, whatever is under way; may be called from anywhere, and again.

        The receiving side notices and tells Ryu, in its own thread: that may have to wait.
        """
        self.send_q = None
        with contextlib.suppress(OSError):
            (self._direct or self.socket).shutdown(socket.SHUT_RDWR)


class Door:
    """Let switches in; know who has not said yet which one it is."""

    def __init__(self, receiver: Receiver, counts: Counter[str]) -> None:
        self.receiver = receiver
        self.counts = counts
        self._strangers: dict[Connection, float] = {}

    def open(self) -> None:
        """Have Ryu make its connections here from now on."""
        controller.datapath_connection_factory = self._serve
        logging.getLogger("ryu.ofproto.ofproto_parser").setLevel(logging.CRITICAL)  # it logs every byte

    def introduced(self, connection: Connection) -> None:
        """Note that a connection has named its switch."""
        self._strangers.pop(connection, None)

    def _serve(self, connected: Any, address: Any) -> None:
        now = time.monotonic()
        self._show_out(now)
        if len(self._strangers) >= MAX_STRANGERS:
            self.counts["refused_connections"] += 1
            LOG.debug("refused %s: %d connections are not known yet", address, MAX_STRANGERS)
            connected.close()
            return
        connection = Connection(connected, address, self)
        self._strangers[connection] = now
        timer = hub.spawn_after(HANDSHAKE_S, self._show_out_later)
        try:
            connection.serve()
        except Exception:
            LOG.exception("the connection of %s failed", address)
        finally:
            timer.cancel()
            self._strangers.pop(connection, None)
            connection.close()

    def _show_out_later(self) -> None:
        self._show_out(time.monotonic())

    def _show_out(self, now: float) -> None:
        """Close connections that have not named their switch in time."""
        for connection, since in list(self._strangers.items()):
            if now - since >= HANDSHAKE_S:
                self.counts["strangers_cut_off"] += 1
                LOG.debug("cut off %s: it did not introduce itself", connection.address)
                self.introduced(connection)
                connection.close()
