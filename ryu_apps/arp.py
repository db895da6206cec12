"""Answer ARP for hosts, so that no broadcast ever crosses the network.

The controller answers for hosts it knows and for its own virtual addresses. For an unknown address it asks at
the edge ports only, in the name of the virtual host, and answers those who waited when the host shows up.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ryu_apps import openflow, packets, probe
from ryu_apps.discovery import Host, Network, Port, Switch
from ryu_apps.signals import Change, Signals

ASK_INTERVAL_S = 0.5
WAIT_S = 3.0
MAX_QUESTIONS = 256
MAX_WAITING = 64
VIRTUAL_IPS = (probe.VIRTUAL_IP, probe.FILLER_IP, probe.PROBE_IP)


@dataclass(slots=True)
class _Question:
    """An address that was asked for, and who waits for the answer."""

    asked_at: float
    waiting: set[str] = field(default_factory=set)


class ArpProxy:
    """Own the open questions."""

    def __init__(self, network: Network, signals: Signals) -> None:
        self._network = network
        self._questions: dict[bytes, _Question] = {}
        self.counts: Counter[str] = Counter()
        signals.connect(Change.HOST_LEARNED, self._answer_waiting)

    def arrived(self, now: float, frame: bytes, dpid: int, port: int) -> None:
        """Take an ARP packet in: learn its sender, answer a request.

        Raises:
            MalformedPacketError: it is no ARP packet.
        """
        packet = packets.parse_arp(frame)
        self.counts["packets"] += 1
        sender = None
        if self._is_believable(packet, frame):
            sender = self._network.host_seen(
                now, packets.ip_text(packet.sender_ip), packet.sender_mac, dpid, port
            )
        if packet.operation == packets.ARP_REQUEST and sender is not None:
            self._answer(now, sender, packet.target_ip)

    @staticmethod
    def _is_believable(packet: packets.Arp, frame: bytes) -> bool:
        return (
            packets.is_host_ip(packet.sender_ip)
            and packet.sender_ip not in VIRTUAL_IPS
            and packets.is_unicast_mac(packet.sender_mac)
            and packet.sender_mac == frame[6:12]
            and packet.sender_mac != probe.VIRTUAL_MAC
        )

    def _answer(self, now: float, asking: Host, wanted: bytes) -> None:
        text = packets.ip_text(wanted)
        if wanted in VIRTUAL_IPS:
            self._reply(asking, wanted, probe.VIRTUAL_MAC)
        elif text in self._network.hosts:
            if text != asking.ip:
                self._reply(asking, wanted, self._network.hosts[text].mac)
        elif packets.is_host_ip(wanted):
            self.ask(now, wanted, waiting=asking.ip)

    def ask(self, now: float, wanted: bytes, *, waiting: str | None = None) -> None:
        """Ask for an unknown address at every edge port, at most twice a second and address."""
        question = self._questions.get(wanted)
        if question is None:
            self._forget(now)
            if len(self._questions) >= MAX_QUESTIONS:
                self.counts["refused"] += 1
                return
            question = self._questions[wanted] = _Question(asked_at=0.0)
        if waiting is not None and len(question.waiting) < MAX_WAITING:
            question.waiting.add(waiting)
        if now - question.asked_at >= ASK_INTERVAL_S:
            question.asked_at = now
            for switch, port in self._network.edge_ports(now):
                self._send_question(switch, port, wanted)

    def _forget(self, now: float) -> None:
        for wanted in [w for w, question in self._questions.items() if now - question.asked_at > WAIT_S]:
            del self._questions[wanted]

    def ask_for_lost(self, now: float) -> None:
        """Ask for hosts that vanished with their port, once it is an edge port again."""
        for host in list(self._network.lost_hosts.values()):
            if self._network.is_edge(now, *host.place):
                self.ask_at(host.place, packets.ip_bytes(host.ip))

    def ask_for_claimed(self, now: float) -> None:
        """Ask where an address was claimed whose host has fallen silent: it may have moved there."""
        for ip, claim in self._network.open_claims(now):
            self.ask_at((claim.dpid, claim.port), packets.ip_bytes(ip))

    def ask_at(self, place: tuple[int, int], wanted: bytes) -> None:
        """Ask for an address at one edge port."""
        switch = self._network.switches[place[0]]
        self._send_question(switch, switch.ports[place[1]], wanted)

    @staticmethod
    def _send_question(switch: Switch, port: Port, wanted: bytes) -> None:
        if openflow.congested(switch.datapath):
            return
        frame = packets.build_arp(
            operation=packets.ARP_REQUEST,
            sender_mac=probe.VIRTUAL_MAC,
            sender_ip=probe.VIRTUAL_IP,
            target_mac=bytes(6),
            target_ip=wanted,
        )
        switch.datapath.send(openflow.packet_out(frame, port.number))

    def _answer_waiting(self, host: Host) -> None:
        question = self._questions.pop(packets.ip_bytes(host.ip), None)
        if question is None:
            return
        for ip in question.waiting:
            asking = self._network.hosts.get(ip)
            if asking is not None:
                self._reply(asking, packets.ip_bytes(host.ip), host.mac)

    def _reply(self, asking: Host, wanted: bytes, mac: bytes) -> None:
        switch = self._network.switches.get(asking.dpid)
        if switch is None:
            return
        frame = packets.build_arp(
            operation=packets.ARP_REPLY,
            sender_mac=mac,
            sender_ip=wanted,
            target_mac=asking.mac,
            target_ip=packets.ip_bytes(asking.ip),
        )
        switch.datapath.send(openflow.packet_out(frame, asking.port))
