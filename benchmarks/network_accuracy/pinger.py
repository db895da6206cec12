"""Ping many hosts at once: the truth that delays are judged by.

An echo request per target and interval, spread in time; the kernel stamps the replies when they arrive, so
that a busy machine adds nothing behind the wire. Round trips are kept with the time of their request.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from workers.namespaces import make_inside

_HEADER = struct.Struct("!BBHHH")
_TIMES = struct.Struct("=qq")
_SO_TIMESTAMPNS = 35
_PAYLOAD = bytes(48)


@dataclass(slots=True, eq=False)
class _Target:
    src: str
    dst: str
    address: str
    sock: socket.socket
    due: float
    number: int = 0


class Pinger:
    """Ping pairs of hosts until closed; `round_trip_s` answers what a ping saw at a time."""

    def __init__(
        self, pairs: Iterable[tuple[str, str]], hosts: dict[str, dict[str, str]], *, interval_s: float
    ) -> None:
        self._interval_s = interval_s
        self._identifier = os.getpid() & 0xFFFF
        sockets: dict[str, socket.socket] = {}
        now, pairs = time.monotonic(), list(pairs)
        self._targets: list[_Target] = []
        for number, (src, dst) in enumerate(pairs):
            if src not in sockets:
                sockets[src] = make_inside(hosts[src]["netns"], _raw_socket)
            due = now + interval_s * number / len(pairs)
            self._targets.append(
                _Target(src=src, dst=dst, address=hosts[dst]["ip"], sock=sockets[src], due=due)
            )
        self._sockets = list(sockets.values())
        self._by_reply = {(t.sock.fileno(), t.address): t for t in self._targets}
        self._lock = threading.Lock()
        self._sent: dict[tuple[_Target, int], float] = {}
        self._seen: dict[tuple[str, str], list[tuple[float, float]]] = {pair: [] for pair in pairs}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="pinger", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            now = time.monotonic()
            for target in self._targets:
                if target.due <= now:
                    target.due = max(target.due + self._interval_s, now)
                    self._send(target)
            wait_s = max(0.0, min(target.due for target in self._targets) - time.monotonic())
            readable, _, _ = select.select(self._sockets, [], [], min(wait_s, 0.1))
            for sock in readable:
                self._receive(sock)

    def _send(self, target: _Target) -> None:
        target.number = (target.number + 1) & 0xFFFF
        head = _HEADER.pack(8, 0, 0, self._identifier, target.number)
        message = _HEADER.pack(8, 0, _checksum(head + _PAYLOAD), self._identifier, target.number) + _PAYLOAD
        self._sent[target, target.number] = time.time()
        try:
            target.sock.sendto(message, (target.address, 0))
        except OSError:  # the kernel still looks for the hardware address: a lost ping
            self._sent.pop((target, target.number), None)

    def _receive(self, sock: socket.socket) -> None:
        while True:
            try:
                data, extra, _, (address, _port) = sock.recvmsg(2048, 256, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            header = (data[0] & 0x0F) * 4
            kind, _, _, identifier, number = _HEADER.unpack_from(data, header)
            target = self._by_reply.get((sock.fileno(), address))
            if kind != 0 or identifier != self._identifier or target is None:
                continue
            sent_at = self._sent.pop((target, number), None)
            if sent_at is not None:
                with self._lock:
                    self._seen[target.src, target.dst].append((sent_at, _stamp(extra) - sent_at))

    def replies(self, src: str, dst: str) -> int:
        """Return how many pings of a pair came back."""
        with self._lock:
            return len(self._seen[src, dst])

    def round_trip_s(self, src: str, dst: str, since: float, until: float) -> float | None:
        """Return the median round trip of the pings sent in a span of Unix time; None without any."""
        with self._lock:
            seen = self._seen[src, dst]
            first = bisect_left(seen, (since, 0.0))
            trips = [trip for at, trip in seen[first:] if at <= until]
        return median(trips) if trips else None

    def close(self) -> None:
        """Stop."""
        self._stopping = True
        self._thread.join()
        for sock in self._sockets:
            sock.close()


def _raw_socket() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return sock


def _stamp(extra: list[tuple[int, int, bytes]]) -> float:
    for level, kind, data in extra:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, nanos = _TIMES.unpack_from(data)
            return float(seconds + nanos * 1e-9)
    return time.time()


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF
