"""A controller without a network: its parts, with switches that are simulated down to their packets.

Switches carry out flow rules and packet-outs, and answer barriers; hosts answer echo requests. Nothing runs
by itself: tests move the clock and deliver what is under way.
"""

from __future__ import annotations

import itertools
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ryu.ofproto import ofproto_v1_3, ofproto_v1_3_parser

from ryu_apps import packets, probe
from ryu_apps.discovery import Port, Switch
from ryu_apps.options import Options
from ryu_apps.parts import Parts

KEY = bytes(range(32))
START = 1_800_000_000.0
OPTIONS = Options(
    probe_rate=5.0,
    echo_rate=8.0,
    max_probe_rate=400.0,
    cpu_share=0.25,
    poll_interval_s=1.0,
    train_interval_s=20.0,
    check_interval_s=1.5,
    check_share=0.03,
    host_timeout_s=60.0,
    capacities_file=None,
)


@dataclass
class Queue:
    """Stands for a switch's queue of messages; empty unless a test says otherwise."""

    waiting: int = 0

    def qsize(self) -> int:
        """Return how many messages wait."""
        return self.waiting


@dataclass(eq=False)
class FakeSwitch:
    """A switch: a rule table, ports that lead somewhere, a control channel."""

    id: int
    world: World
    ofproto: Any = ofproto_v1_3
    ofproto_parser: Any = ofproto_v1_3_parser
    send_q: Any = field(default_factory=Queue)
    rules: dict[tuple[int, frozenset[Any]], int] = field(default_factory=dict)
    """Output port by priority and match."""
    table: dict[tuple[int, frozenset[Any]], Any] = field(default_factory=dict)
    """The message that wrote each rule, those for measuring included."""
    polls: list[int] = field(default_factory=list)
    """The transactions of the requests for the counters of all ports."""
    lists_rules: bool = True
    transactions: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    answers_barriers: bool = True
    heard_at: float = 0.0
    address: tuple[str, int] = ("127.0.0.1", 50000)
    closed: bool = False

    def close(self) -> None:
        self.closed = True

    def set_xid(self, message: Any) -> None:
        message.set_xid(next(self.transactions))

    def send_msg(self, message: Any) -> None:
        """Carry a message out at once; confirmations go to the world's mailbox."""
        if isinstance(message, ofproto_v1_3_parser.OFPBarrierRequest):
            if self.answers_barriers:
                self.world.mail.append(
                    lambda: self.world.parts.forwarding.barrier_arrived(self.id, message.xid)
                )
        elif isinstance(message, ofproto_v1_3_parser.OFPPortStatsRequest):
            if message.port_no == ofproto_v1_3.OFPP_ANY:
                self.polls.append(message.xid)
        elif isinstance(message, ofproto_v1_3_parser.OFPFlowMod):
            self._change(message)
        elif isinstance(message, ofproto_v1_3_parser.OFPFlowStatsRequest) and self.lists_rules:
            entries = [
                rule
                for rule in self.table.values()
                if not (rule.cookie ^ message.cookie) & message.cookie_mask
            ]
            self.world.mail.append(
                lambda: self.world.parts.rules_arrived(
                    self.world.now, self.id, message.xid, entries, more=False
                )
            )

    def _change(self, message: Any) -> None:
        rule = message.priority, frozenset(message.match.items())
        match = dict(rule[1])
        if message.command == ofproto_v1_3.OFPFC_DELETE:
            self.table.clear()
        elif message.command == ofproto_v1_3.OFPFC_DELETE_STRICT:
            self.table.pop(rule, None)
        else:
            self.table[rule] = message
        if message.command == ofproto_v1_3.OFPFC_DELETE:
            self.rules.clear()
        elif "ipv4_src" in match:
            if message.command == ofproto_v1_3.OFPFC_DELETE_STRICT:
                self.rules.pop(rule, None)
            else:
                self.rules[rule] = message.instructions[0].actions[0].port
                self.world.history.append((self.id, (match["ipv4_src"], match["ipv4_dst"])))

    def output(self, in_port: int, packet: packets.Ipv4) -> int | None:
        """Return where the rules send a packet, None when none matches."""
        fields: dict[str, Any] = {
            "in_port": in_port,
            "eth_type": packets.ETHERTYPE_IPV4,
            "ipv4_src": packets.ip_text(packet.source),
            "ipv4_dst": packets.ip_text(packet.destination),
            "ip_proto": packet.protocol,
        }
        if packet.protocol == packets.PROTOCOL_UDP and len(packet.payload) >= 4:
            fields["udp_src"], fields["udp_dst"] = struct.unpack_from("!HH", packet.payload)
        found = [
            (priority, out_port)
            for (priority, match), out_port in self.rules.items()
            if match <= fields.items()
        ]
        assert len({priority for priority, _ in found}) == len(found), f"ambiguous: {found}"
        return max(found)[1] if found else None

    def has_rule(self, src: str, dst: str) -> bool:
        """Tell whether there is any rule for a pair."""
        return any({("ipv4_src", src), ("ipv4_dst", dst)} <= match for _, match in self.rules)

    def send(self, data: bytes) -> bool:
        """Carry out packed packet-outs; echo requests are answered by `World.advance`."""
        if data[1] == ofproto_v1_3.OFPT_ECHO_REQUEST:
            return True
        while data:
            length, action_bytes = struct.unpack_from("!H", data, 2)[0], struct.unpack_from("!H", data, 16)[0]
            actions, frame = data[24 : 24 + action_bytes], data[24 + action_bytes : length]
            for start in range(0, action_bytes, 16):
                self.world.out(self.id, struct.unpack_from("!I", actions, start + 4)[0], frame)
            data = data[length:]
        return True


@dataclass(eq=False)
class World:
    """Switches 1 to 4 in a ring with a chord, ports by number of the neighbour, hosts at ports above 10."""

    cables: set[frozenset[int]] = field(
        default_factory=lambda: {frozenset(ends) for ends in ((1, 2), (2, 4), (1, 3), (3, 4))}
    )
    now: float = START
    hosts: dict[str, tuple[int, int]] = field(default_factory=dict)
    macs: dict[str, bytes] = field(default_factory=dict)
    received: list[tuple[str, bytes]] = field(default_factory=list)
    history: list[tuple[int, tuple[str, str]]] = field(default_factory=list)
    mail: deque[Any] = field(default_factory=deque)
    switches: dict[int, FakeSwitch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = Parts(OPTIONS, key=KEY, clock=lambda: self.now, sleep=self._sleep)
        for dpid in (1, 2, 3, 4):
            self.join(dpid)

    def _sleep(self, seconds: float) -> None:
        raise AssertionError("no loop runs in these tests")

    def restart(self, key: bytes) -> None:
        """Let another controller take the place of this one; the switches keep their rules."""
        self.mail.clear()
        self.parts = Parts(OPTIONS, key=key, clock=lambda: self.now, sleep=self._sleep)
        for dpid in list(self.switches):
            self.join(dpid, keep_rules=True)

    def join(self, dpid: int, *, keep_rules: bool = False) -> None:
        """Connect a switch, an empty one or that which was there."""
        old = self.switches.get(dpid)
        switch = self.switches[dpid] = FakeSwitch(id=dpid, world=self)
        if keep_rules and old is not None:
            switch.rules, switch.table = old.rules, old.table
        ends = [next(iter(cable - {dpid})) for cable in self.cables if dpid in cable]
        ports = {
            number: Port(number=number, name=f"s{dpid}.{number}", up=True, since=self.now)
            for number in (*sorted(ends), 11, 12)
        }
        joined = Switch(dpid=dpid, name=f"s{dpid}", datapath=switch, connected_since=self.now, ports=ports)
        self.parts.switch_connected(self.now, joined)

    def host(self, ip: str, dpid: int, port: int) -> None:
        """Attach a host that has not spoken yet."""
        self.hosts[ip] = (dpid, port)
        self.macs[ip] = b"\x02\0" + packets.ip_bytes(ip)

    def advance(self, seconds: float, *, step_s: float = 0.01) -> None:
        """Let time pass: send probes that are due, answer them after 5 ms of delay, repair routes."""
        end = self.now + seconds
        while self.now < end:
            self.now += step_s
            queue = self.parts.prober._queue
            while queue and queue[0][0] <= self.now:
                self.parts.prober._send_next(self.now)
            self._echo_switches()
            self.deliver()
            self.parts.forwarding.look_after(self.now)
            self.parts.steering.look_after(self.now)
            self.parts.prober.drop_dead_links(self.now)
            if int(2 * self.now) != int(2 * (self.now - step_s)):
                self.parts.takeover.look_after(self.now)
            self.deliver()

    def _echo_switches(self) -> None:
        for dpid in self.switches:
            data = struct.pack("!4sd", b"UTOE", self.now - 0.001)
            self.parts.prober.switch_echo_arrived(self.now, dpid, data)

    def deliver(self) -> None:
        """Hand over everything that is under way, and what that causes."""
        while self.mail:
            self.mail.popleft()()

    def out(self, dpid: int, port: int, frame: bytes) -> None:
        """Carry a frame that leaves a switch."""
        if frozenset((dpid, port)) in self.cables:
            self.mail.append(lambda: self._enter(port, dpid, frame))
            return
        for ip, place in self.hosts.items():
            if place == (dpid, port):
                self.mail.append(lambda ip=ip: self._receive(ip, frame))

    def _enter(self, dpid: int, port: int, frame: bytes) -> None:
        """Let a frame enter a switch: measuring packets go up, the rest follows the rules."""
        packet = packets.parse_ipv4(frame) if packets.ethertype(frame) == packets.ETHERTYPE_IPV4 else None
        control = (probe.PROBE_IP, probe.VIRTUAL_IP)
        if packet is not None and packet.destination not in control:
            out_port = self.switches[dpid].output(port, packet)
            if out_port is not None:
                self.out(dpid, out_port, frame)
                return
        arrived_at = self.now + 0.006 if packet is not None and packet.destination in control else self.now
        self.parts.packet_arrived(arrived_at, frame, dpid, port)

    def _receive(self, ip: str, frame: bytes) -> None:
        self.received.append((ip, frame))
        if packets.ethertype(frame) == packets.ETHERTYPE_ARP:
            question = packets.parse_arp(frame)
            if question.operation == packets.ARP_REQUEST and question.target_ip == packets.ip_bytes(ip):
                self.say_arp(ip, packets.ip_text(question.sender_ip), packets.ARP_REPLY)
            return
        packet = packets.parse_ipv4(frame)
        if packet.source == probe.VIRTUAL_IP and packet.payload[0] == packets.ICMP_ECHO_REQUEST:
            reply = bytearray(frame)
            reply[26:30], reply[30:34], reply[34] = frame[30:34], frame[26:30], packets.ICMP_ECHO_REPLY
            self.send(ip, bytes(reply))

    def send(self, ip: str, frame: bytes) -> None:
        """Let a host send a frame into its switch."""
        dpid, port = self.hosts[ip]
        self.mail.append(lambda: self._enter(dpid, port, frame))

    def say_arp(self, ip: str, wanted: str, operation: int = packets.ARP_REQUEST) -> None:
        """Let a host ask for (or answer about) an address."""
        self.send(
            ip,
            packets.build_arp(
                operation=operation,
                sender_mac=self.macs[ip],
                sender_ip=packets.ip_bytes(ip),
                target_mac=probe.VIRTUAL_MAC,
                target_ip=packets.ip_bytes(wanted),
            ),
        )

    def say(self, src: str, dst: str, payload: bytes = b"hello", *, port: int = 9) -> None:
        """Let a host send a datagram to another one."""
        self.send(src, self.datagram(src, dst, payload, port=port))

    def datagram(self, src: str, dst: str, payload: bytes, *, port: int = 9) -> bytes:
        """Return the frame of a datagram, from and to the same UDP port."""
        return packets.build_udp(
            source_mac=self.macs[src],
            destination_mac=self.macs.get(dst, probe.PROBE_MAC),
            source=packets.ip_bytes(src),
            destination=packets.ip_bytes(dst),
            port=port,
            payload=payload,
        )

    def datagrams(self, ip: str) -> list[bytes]:
        """Return the payloads of the datagrams that a host received, and forget them."""
        got = []
        for at, frame in self.received:
            if at == ip and packets.ethertype(frame) == packets.ETHERTYPE_IPV4:
                packet = packets.parse_ipv4(frame)
                if packet.protocol == packets.PROTOCOL_UDP and packet.destination != probe.PROBE_IP:
                    got.append(packets.udp_payload(packet))
        self.received.clear()
        return got
