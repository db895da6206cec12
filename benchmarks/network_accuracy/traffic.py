"""Background traffic between hosts, in a process of its own: numbered UDP and paced or greedy TCP.

`python -m benchmarks.network_accuracy.traffic` reads the flows as one JSON line, then commands
(`{"flow": 0, "pps": 200}`; 0 pauses a UDP flow) until its input ends. Once a second, and at the end, it
writes a line with what every flow has sent and what arrived since the start (UDP: packets, told apart by
their numbers; TCP: bytes). The sockets are made inside the hosts' namespaces.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from workers.namespaces import make_inside

UDP_HEADERS = 42
"""Ethernet, IPv4 and UDP, in front of a datagram."""
_NUMBER = struct.Struct("!HI")
_BLOCK = bytes(16384)
_SO_MAX_PACING_RATE = 47
_FIRST_PORT = 20000
_TICK_S = 0.002
_MOST_AT_ONCE = 2
"""Datagrams of a flow in one go: who was held up sends less, not a burst that overruns switches' buffers."""
_PRIORITY = 2
"""Of real-time scheduling, below the emulator: hosts send when they want to, however busy the machine is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """One flow; `payload_bytes` and `pps` for UDP, `rate_bps` (None: greedy) for TCP."""

    kind: str
    src: str
    dst: str
    payload_bytes: int = 0
    pps: float = 0.0
    rate_bps: float | None = None

    @property
    def frame_bps(self) -> float | None:
        """What a UDP flow puts on the wire, in bit/s of Ethernet frames."""
        return self.pps * 8 * (self.payload_bytes + UDP_HEADERS) if self.kind == "udp" else self.rate_bps


class Traffic:
    """Run flows in a child process; `counts` is what they carried, by the time it was read (Unix seconds)."""

    def __init__(self, flows: Sequence[Flow], hosts: dict[str, dict[str, str]]) -> None:
        self.flows = list(flows)
        self.counts: list[dict[str, Any]] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.network_accuracy.traffic"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        described = [
            {
                **asdict(flow),
                "src_netns": hosts[flow.src]["netns"],
                "dst_netns": hosts[flow.dst]["netns"],
                "dst_ip": hosts[flow.dst]["ip"],
            }
            for flow in flows
        ]
        self._say(described)
        self._started = threading.Event()
        self._reader = threading.Thread(target=self._read, name="traffic", daemon=True)
        self._reader.start()
        if not self._started.wait(30):
            self.stop()
            raise RuntimeError("the background traffic did not start within 30 s")

    def _say(self, document: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(document) + "\n")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.counts.append(json.loads(line))
            self._started.set()

    def set_pps(self, flow: int, pps: float) -> None:
        """Change the rate of a UDP flow."""
        self._say({"flow": flow, "pps": pps})

    def stop(self) -> dict[str, Any]:
        """End all flows and return the last counts."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        return self.counts[-1] if self.counts else {"at": time.time(), "sent": [], "received": []}


class _Runner:
    """The child: sends what is due, receives what comes, writes counts."""

    def __init__(self, flows: list[dict[str, Any]]) -> None:
        self._flows = flows
        self.sent = [0] * len(flows)
        self.received = [0] * len(flows)
        self._due = [0.0] * len(flows)
        self._senders: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        now = time.monotonic()
        for number, flow in enumerate(flows):
            self._due[number] = now + 0.01 * number
            (self._open_udp if flow["kind"] == "udp" else self._open_tcp)(number, flow)
        self._commands = b""
        os.set_blocking(sys.stdin.fileno(), False)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, ("command", 0))

    def _open_udp(self, number: int, flow: dict[str, Any]) -> None:
        sink = make_inside(flow["dst_netns"], lambda: _bound(socket.SOCK_DGRAM, flow["dst_ip"], number))
        sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._selector.register(sink, selectors.EVENT_READ, ("udp", number))
        sender = make_inside(flow["src_netns"], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender.setblocking(False)
        sender.connect((flow["dst_ip"], _FIRST_PORT + number))
        self._senders[number] = sender

    def _open_tcp(self, number: int, flow: dict[str, Any]) -> None:
        listener = make_inside(flow["dst_netns"], lambda: _bound(socket.SOCK_STREAM, flow["dst_ip"], number))
        listener.listen(1)
        self._selector.register(listener, selectors.EVENT_READ, ("listen", number))
        sender = make_inside(flow["src_netns"], lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        if flow["rate_bps"] is not None:
            pace = round(flow["rate_bps"] / 8)
            sender.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, pace)
        sender.setblocking(False)
        sender.connect_ex((flow["dst_ip"], _FIRST_PORT + number))
        self._selector.register(sender, selectors.EVENT_WRITE, ("send", number))

    def run(self) -> None:
        """Run until the input ends."""
        told = 0.0
        going = True
        while going:
            for key, _ in self._selector.select(_TICK_S):
                what, number = key.data
                if what == "command":
                    going = self._take_commands()
                else:
                    self._serve(what, number, key.fileobj)
            now = time.monotonic()
            self._send_due(now)
            if now - told >= 1.0 or not going:
                told = now
                self._tell()
        self._drain()

    def _drain(self) -> None:
        """Receive what is still under way, then tell the final counts."""
        deadline = time.monotonic() + 1.0
        for sender in self._senders.values():
            sender.close()
        for key in list(self._selector.get_map().values()):
            if key.data[0] in ("send", "command"):
                self._selector.unregister(key.fileobj)
        while time.monotonic() < deadline:
            for key, _ in self._selector.select(0.05):
                self._serve(*key.data, key.fileobj)
        self._tell()

    def _tell(self) -> None:
        print(json.dumps({"at": time.time(), "sent": self.sent, "received": self.received}), flush=True)

    def _take_commands(self) -> bool:
        block = sys.stdin.buffer.read1(65536)
        if not block:
            return False
        *lines, self._commands = (self._commands + block).split(b"\n")
        for line in lines:
            command = json.loads(line)
            self._flows[command["flow"]]["pps"] = command["pps"]
            self._due[command["flow"]] = time.monotonic()
        return True

    def _send_due(self, now: float) -> None:
        for number, sender in self._senders.items():
            flow = self._flows[number]
            if flow["pps"] <= 0:
                continue
            period_s = 1 / flow["pps"]
            for _ in range(_MOST_AT_ONCE):
                if self._due[number] > now:
                    break
                self._due[number] += period_s
                datagram = _NUMBER.pack(number, self.sent[number] & 0xFFFFFFFF)
                try:
                    sender.send(datagram.ljust(flow["payload_bytes"], b"\0"))
                    self.sent[number] += 1
                except OSError:  # a full socket buffer, or a port that just closes: not sent, not counted
                    break
            else:
                self._due[number] = now  # too slow to catch up: go on from here

    def _serve(self, what: str, number: int, sock: Any) -> None:
        if what == "udp":
            self._receive_udp(number, sock)
        elif what == "listen":
            connection, _ = sock.accept()
            connection.setblocking(False)
            self._selector.register(connection, selectors.EVENT_READ, ("tcp", number))
        elif what == "tcp":
            self._receive_tcp(number, sock)
        elif what == "send":
            self._send_tcp(number, sock)

    def _receive_udp(self, number: int, sock: socket.socket) -> None:
        for _ in range(64):
            try:
                datagram = sock.recv(2048, socket.MSG_DONTWAIT)
            except OSError:
                return
            if len(datagram) >= _NUMBER.size and _NUMBER.unpack_from(datagram)[0] == number:
                self.received[number] += 1

    def _receive_tcp(self, number: int, sock: socket.socket) -> None:
        try:
            block = sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            block = b""
        self.received[number] += len(block)
        if not block:
            self._selector.unregister(sock)
            sock.close()

    def _send_tcp(self, number: int, sock: socket.socket) -> None:
        try:
            self.sent[number] += sock.send(_BLOCK)
        except BlockingIOError:
            return
        except OSError:
            self._selector.unregister(sock)
            sock.close()


def _bound(kind: int, address: str, number: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, _FIRST_PORT + number))
    return sock


def main() -> None:
    """Run from the command line; see the module's text."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_PRIORITY))
    _Runner(json.loads(sys.stdin.buffer.readline())).run()


if __name__ == "__main__":
    main()
