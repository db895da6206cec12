"""Switches that exist only as OpenFlow connections: many of them, or broken ones, without root and emulation.

They speak as much OpenFlow 1.3 as the controller needs: they carry packet-outs over cables, send measuring
packets up, keep flow rules as they were received, and answer requests. Hosts answer ARP and echo requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ryu_apps import packets, probe

HEADER = struct.Struct("!BBHI")
HELLO, ERROR, ECHO_REQUEST, ECHO_REPLY, FEATURES_REQUEST, FEATURES_REPLY = 0, 1, 2, 3, 5, 6
PACKET_IN, PORT_STATUS, PACKET_OUT, FLOW_MOD = 10, 12, 13, 14
MULTIPART_REQUEST, MULTIPART_REPLY, BARRIER_REQUEST, BARRIER_REPLY = 18, 19, 20, 21
DESCRIPTION, FLOW_STATS, PORT_STATS, PORT_DESC = 0, 1, 4, 13
LOCAL = 0xFFFFFFFE
CONTROLLER_PORT = 0xFFFFFFFD
ADD, DELETE, DELETE_STRICT = 0, 3, 4
_PORT = struct.Struct("!I4x6s2x16sIIIIIIII")


def message(kind: int, body: bytes = b"", xid: int = 0) -> bytes:
    """Return an OpenFlow 1.3 message."""
    return HEADER.pack(4, kind, HEADER.size + len(body), xid) + body


def packet_in(port: int, frame: bytes) -> bytes:
    """Return the message that sends a frame up."""
    match = struct.pack("!HHIIxxxx", 1, 12, 0x80000004, port)
    return message(
        PACKET_IN, struct.pack("!IHBBQ", 0xFFFFFFFF, len(frame), 1, 0, 0) + match + b"\0\0" + frame
    )


def port_description(dpid: int, number: int, *, up: bool = True) -> bytes:
    """Return what a switch tells of a port."""
    name = b"local" if number == LOCAL else b"p%d" % number
    return _PORT.pack(number, bytes(6), b"%d-" % dpid + name, 0, 0 if up else 1, 0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Rule:
    """A flow rule as it was received: its match and instructions are raw bytes."""

    priority: int
    cookie: int
    match: bytes
    instructions: bytes


@dataclass(eq=False)
class Switch:
    """One switch; what it does can be changed while it runs."""

    farm: Farm
    dpid: int
    ports: dict[int, tuple[int, int] | str]
    """Port number to (switch, port) at the other end, or to the address of a host."""
    rules: dict[tuple[int, bytes], Rule] = field(default_factory=dict)
    log: list[tuple[float, str, Rule]] = field(default_factory=list)
    received: Counter[int] = field(default_factory=Counter)
    silent: frozenset[int] = frozenset()
    """Kinds of multipart requests that get no answer."""
    connected: threading.Event = field(default_factory=threading.Event)
    connections: int = 0
    writer: asyncio.StreamWriter | None = None

    async def run(self) -> None:
        """Connect, serve, and connect again when the connection is lost, for ever."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, self.writer = await asyncio.open_connection("127.0.0.1", self.farm.openflow_port)
                self.send(message(HELLO))
                try:
                    await self._serve(reader)
                finally:
                    self.connected.clear()
                    self.writer.close()
                    self.writer = None
            await asyncio.sleep(0.3)

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        while True:
            _, kind, length, xid = HEADER.unpack(await reader.readexactly(HEADER.size))
            self._take(kind, xid, await reader.readexactly(length - HEADER.size))

    def send(self, data: bytes) -> None:
        """Send to the controller, if it is there."""
        if self.writer is not None:
            self.writer.write(data)

    def _take(self, kind: int, xid: int, body: bytes) -> None:
        self.received[kind] += 1
        if kind == ECHO_REQUEST:
            self.send(message(ECHO_REPLY, body, xid))
        elif kind == FEATURES_REQUEST:
            self.send(message(FEATURES_REPLY, struct.pack("!QIBB2xII", self.dpid, 0, 254, 0, 0, 0), xid))
        elif kind == BARRIER_REQUEST:
            self.send(message(BARRIER_REPLY, b"", xid))
        elif kind == PACKET_OUT:
            self._packet_out(body)
        elif kind == FLOW_MOD:
            self._flow_mod(body)
        elif kind == MULTIPART_REQUEST:
            self._multipart(xid, struct.unpack_from("!H", body)[0])

    def _multipart(self, xid: int, what: int) -> None:
        if what in self.silent:
            return
        if what == PORT_DESC:
            answer = b"".join(port_description(self.dpid, number) for number in (*self.ports, LOCAL))
            self.connections += 1
            self.connected.set()
        elif what == PORT_STATS:
            answer = self.farm.port_stats(self)
        elif what == DESCRIPTION:
            answer = bytes(1056)
        elif what == FLOW_STATS:
            answer = b"".join(_flow_entry(rule) for rule in self.rules.values())
        else:
            answer = b""
        self.send(message(MULTIPART_REPLY, struct.pack("!HH4x", what, 0) + answer, xid))

    def _packet_out(self, body: bytes) -> None:
        action_bytes = struct.unpack_from("!H", body, 8)[0]
        actions, frame = body[16 : 16 + action_bytes], body[16 + action_bytes :]
        for start in range(0, action_bytes, 16):
            self.farm.carry(self, struct.unpack_from("!I", actions, start + 4)[0], frame)

    def _flow_mod(self, body: bytes) -> None:
        cookie, mask, _, command, _, _, priority = struct.unpack_from("!QQBBHHH", body)
        length = struct.unpack_from("!H", body, 42)[0]
        padded = (length + 7) // 8 * 8
        match = body[40 : 40 + padded]
        rule = Rule(priority=priority, cookie=cookie, match=match, instructions=body[40 + padded :])
        if command == ADD:
            self.rules[priority, match] = rule
        else:
            for key, old in list(self.rules.items()):
                named = key == (priority, match) if command == DELETE_STRICT else length == 4
                if named and old.cookie & mask == cookie & mask:
                    del self.rules[key]
        self.log.append((time.time(), {0: "add", 3: "delete", 4: "delete"}.get(command, "?"), rule))

    def port_is(self, number: int, *, up: bool) -> None:
        """Tell the controller that a port went up or down."""
        self.send(message(PORT_STATUS, b"\2" + bytes(7) + port_description(self.dpid, number, up=up)))


def _flow_entry(rule: Rule) -> bytes:
    body = rule.match + rule.instructions
    return (
        struct.pack("!HBxIIHHHH4xQQQ", 48 + len(body), 0, 9, 0, rule.priority, 0, 0, 0, rule.cookie, 7, 700)
        + body
    )


class Farm:
    """All switches, in a thread of their own."""

    def __init__(self, openflow_port: int, *, delay_s: float = 0.002) -> None:
        self.openflow_port = openflow_port
        self.delay_s = delay_s
        self.switches: dict[int, Switch] = {}
        self.heard: dict[str, list[bytes]] = {}
        self.counters: Callable[[Switch, int], tuple[int, int, float]] | None = None
        """What a port counts: bytes received and sent, seconds since its start; told by a test."""
        self._began = time.time()
        self._loop = asyncio.new_event_loop()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def add(self, dpid: int, ports: dict[int, tuple[int, int] | str], *, key: int | None = None) -> Switch:
        """Start a switch; `key` tells two of one dpid apart."""
        switch = Switch(farm=self, dpid=dpid, ports=ports)
        self.switches[dpid if key is None else key] = switch

        async def start() -> None:
            self._tasks[id(switch)] = asyncio.ensure_future(switch.run())

        self.do(start())
        return switch

    def remove(self, switch: Switch) -> None:
        """End a switch: its connection closes."""

        async def stop() -> None:
            task = self._tasks.pop(id(switch))
            task.cancel()
            await asyncio.wait([task])

        self.switches = {key: other for key, other in self.switches.items() if other is not switch}
        self.do(stop())

    def do(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something in the switches' thread and wait for it."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=10)

    def close(self) -> None:
        """End all switches."""
        for switch in list(self.switches.values()):
            self.remove(switch)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=10)

    def port_stats(self, switch: Switch) -> bytes:
        """Return the counters of all ports."""
        entries = []
        for number in switch.ports:
            rx, tx, age_s = (
                self.counters(switch, number) if self.counters else (0, 0, time.time() - self._began)
            )
            entries.append(
                struct.pack("!I4x12QII", number, 0, 0, rx, tx, *[0] * 8, int(age_s), int(age_s % 1 * 1e9))
            )
        return b"".join(entries)

    def carry(self, switch: Switch, port: int, frame: bytes) -> None:
        """Carry a frame that leaves a switch over its cable, with a delay."""
        end = switch.ports.get(port)
        if isinstance(end, tuple):
            self._loop.call_later(self.delay_s, self._enter, *end, frame)
        elif end is not None:
            self._loop.call_later(self.delay_s, self._host, switch, port, end, frame)

    def _enter(self, dpid: int, port: int, frame: bytes) -> None:
        switch = self.switches.get(dpid)
        if switch is not None:
            switch.send(packet_in(port, frame[:128]))

    def _host(self, switch: Switch, port: int, ip: str, frame: bytes) -> None:
        self.heard.setdefault(ip, []).append(frame)
        del self.heard[ip][:-50]
        if packets.ethertype(frame) == packets.ETHERTYPE_ARP:
            question = packets.parse_arp(frame)
            if question.operation == packets.ARP_REQUEST and question.target_ip == packets.ip_bytes(ip):
                reply = arp(ip, question.sender_ip, operation=packets.ARP_REPLY)
                self._loop.call_later(self.delay_s, switch.send, packet_in(port, reply))
        elif frame[34] == packets.ICMP_ECHO_REQUEST and frame[23] == packets.PROTOCOL_ICMP:
            self._loop.call_later(self.delay_s, switch.send, packet_in(port, echo_reply(frame)))

    def say(self, switch: Switch, port: int, *frames: bytes) -> None:
        """Let a host send frames into a port."""
        data = b"".join(packet_in(port, frame) for frame in frames)
        self._loop.call_soon_threadsafe(switch.send, data)

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call something in the switches' thread, soon."""
        self._loop.call_soon_threadsafe(function, *arguments)


def mac(ip: str) -> bytes:
    """Return a host's hardware address."""
    return b"\x02\0" + packets.ip_bytes(ip)


def arp(
    ip: str, target: bytes, *, operation: int = packets.ARP_REQUEST, hardware: bytes | None = None
) -> bytes:
    """Return a host's ARP packet about or to `target`."""
    return packets.build_arp(
        operation=operation,
        sender_mac=hardware or mac(ip),
        sender_ip=packets.ip_bytes(ip),
        target_mac=probe.VIRTUAL_MAC,
        target_ip=target,
    )


def echo_reply(request: bytes) -> bytes:
    """Return a host's answer to an echo request."""
    reply = bytearray(request)
    reply[0:6], reply[6:12] = request[6:12], request[0:6]
    reply[26:30], reply[30:34], reply[34] = request[30:34], request[26:30], packets.ICMP_ECHO_REPLY
    return bytes(reply)


def ring(farm: Farm, switches: int, hosts: int) -> None:
    """Build a ring of switches with chords (up to 2 * switches cables) and hosts spread over them."""
    cables = {(a, a % switches + 1) for a in range(1, switches + 1)}
    cables |= {(a, (a + switches // 2 - 1) % switches + 1) for a in range(1, switches + 1, 2)}
    ports: dict[int, dict[int, tuple[int, int] | str]] = {dpid: {} for dpid in range(1, switches + 1)}
    for a, b in sorted(cables):
        if a != b:
            port_a, port_b = len(ports[a]) + 1, len(ports[b]) + 1
            ports[a][port_a], ports[b][port_b] = (b, port_b), (a, port_a)
    for number in range(hosts):
        dpid = number % switches + 1
        ports[dpid][len(ports[dpid]) + 1] = f"198.18.{number // 200}.{number % 200 + 1}"
    for dpid, theirs in ports.items():
        farm.add(dpid, theirs)


def speak(farm: Farm) -> None:
    """Let every host ask for an address, so that it is known."""
    for switch in list(farm.switches.values()):
        for port, end in switch.ports.items():
            if isinstance(end, str):
                farm.say(switch, port, arp(end, packets.ip_bytes("198.18.0.1")))
