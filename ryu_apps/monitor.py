"""Poll the port counters of every switch, staggered, and keep what each link direction carries."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from ryu_apps import openflow
from ryu_apps.discovery import Network, Port, Switch
from ryu_apps.options import Options
from ryu_apps.rates import CounterRate, PortCount
from ryu_apps.signals import Change, Signals

LOG = logging.getLogger(__name__)

MAX_ASKED = 64
"""So many single counts may be outstanding; then the oldest is forgotten."""
MAX_POLLS = 4
"""So many polls of one switch may be outstanding."""


@dataclass(slots=True)
class _OwnBytes:
    """How many bytes of packet trains of ours a port has seen."""

    tx: float = 0.0
    rx: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPackets:
    """How many packets a port has carried since it came up, `duration_s` ago."""

    tx: int
    rx: int
    duration_s: float


PortReader = Callable[[float, int, int, PortPackets], None]
"""Takes (Unix time, datapath id, port, packets)."""


class _PortCounters:
    """The two directions of one port."""

    def __init__(self) -> None:
        self.tx = CounterRate()
        self.rx = CounterRate()
        self.own = _OwnBytes()
        self.totals: dict[str, int] = {}


class Monitor:
    """Own the counters of all ports."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        options: Options,
        *,
        sleep: Callable[[float], None],
    ) -> None:
        self._network = network
        self._interval_s = options.poll_interval_s
        self._sleep = sleep
        self._ports: dict[tuple[int, int], _PortCounters] = {}
        self._asked: dict[tuple[int, int], tuple[_OwnBytes, Callable[[PortCount], None]]] = {}
        self._polls: dict[int, dict[int, dict[int, _OwnBytes]]] = {}
        """By switch and transaction, what each port had seen of our trains when it was asked."""
        self.readers: dict[tuple[int, int], PortReader] = {}
        """Who is told of every reply about a port."""
        signals.connect(Change.PORT_UP, self._port_up)
        signals.connect(Change.PORT_DOWN, self._port_down)
        signals.connect(Change.SWITCH_DOWN, lambda switch: self._polls.pop(switch.dpid, None))

    def _port_up(self, change: tuple[Switch, Port]) -> None:
        switch, port = change
        self._ports[switch.dpid, port.number] = _PortCounters()
        for poll in self._polls.get(switch.dpid, {}).values():
            poll.pop(port.number, None)

    def _port_down(self, change: tuple[Switch, Port]) -> None:
        switch, port = change
        self._ports.pop((switch.dpid, port.number), None)

    def run(self) -> None:
        """Ask one switch after the other, each once per interval, for ever."""
        while True:
            switches = list(self._network.switches.values())
            for switch in switches:
                self.poll(switch)
                self._sleep(self._interval_s / len(switches))
            if not switches:
                self._sleep(self._interval_s)

    def poll(self, switch: Switch) -> None:
        """Ask for a switch's counters; they will hold the trains that were sent to it before."""
        if openflow.congested(switch.datapath):
            return
        request = openflow.port_stats_request(switch.datapath)
        polls = self._polls.setdefault(switch.dpid, {})
        while len(polls) >= MAX_POLLS:
            del polls[next(iter(polls))]
        polls[request.xid] = {
            number: replace(self._ports[switch.dpid, number].own)
            for number in switch.ports
            if (switch.dpid, number) in self._ports
        }
        switch.datapath.send_msg(request)

    def count(self, dpid: int, port: int, take: Callable[[PortCount], None]) -> None:
        """Have a port's counters of this moment handed to `take`; it is not called if no reply comes."""
        switch, counters = self._network.switches.get(dpid), self._ports.get((dpid, port))
        if switch is None or counters is None:
            return
        request = openflow.port_stats_request(switch.datapath, port)
        while len(self._asked) >= MAX_ASKED:
            del self._asked[next(iter(self._asked))]
        self._asked[dpid, request.xid] = replace(counters.own), take
        switch.datapath.send_msg(request)

    def replied(self, now: float, dpid: int, transaction: int, body: list[Any]) -> None:
        """Take a counter reply in; the packet trains of ours that it holds are left out.

        Only replies to the regular polls make rates: their intervals are even, and what was ours is known for
        the moment of the request. Somebody else's request for one port is for the readers alone.
        """
        self._tell(now, dpid, body)
        asked = self._asked.pop((dpid, transaction), None)
        if asked is not None:
            own, take = asked
            for entry in body[:1]:
                take(_count(entry, own))
            return
        polled = self._polls.get(dpid, {}).get(transaction, {})
        for entry in body:
            counters, own_bytes = self._ports.get((dpid, entry.port_no)), polled.get(entry.port_no)
            if counters is None or own_bytes is None:
                continue
            duration_s = entry.duration_sec + entry.duration_nsec * 1e-9
            counters.tx.add(now, duration_s, entry.tx_bytes, own_bytes.tx)
            counters.rx.add(now, duration_s, entry.rx_bytes, own_bytes.rx)
            counters.totals = {
                "of_port_tx_bytes": entry.tx_bytes,
                "of_port_rx_bytes": entry.rx_bytes,
                "of_port_tx_packets": entry.tx_packets,
                "of_port_rx_packets": entry.rx_packets,
                "of_port_tx_dropped": entry.tx_dropped,
                "of_port_rx_dropped": entry.rx_dropped,
                "of_port_tx_errors": entry.tx_errors,
                "of_port_rx_errors": entry.rx_errors,
            }

    def _tell(self, now: float, dpid: int, body: list[Any]) -> None:
        for entry in body:
            read = self.readers.get((dpid, entry.port_no))
            if read is not None:
                duration_s = entry.duration_sec + entry.duration_nsec * 1e-9
                packets = PortPackets(tx=entry.tx_packets, rx=entry.rx_packets, duration_s=duration_s)
                read(now, dpid, entry.port_no, packets)

    def add_own(self, dpid: int, port: int, *, tx: float = 0.0, rx: float = 0.0) -> None:
        """Note how many bytes of a packet train of ours a port has sent or received."""
        counters = self._ports.get((dpid, port))
        if counters is not None:
            counters.own.tx += tx
            counters.own.rx += rx

    def sent(self, dpid: int, port: int) -> CounterRate:
        """Return what leaves a port; an empty rate for a port that is down."""
        counters = self._ports.get((dpid, port))
        return CounterRate() if counters is None else counters.tx

    def received(self, dpid: int, port: int) -> CounterRate:
        """Return what enters a port."""
        counters = self._ports.get((dpid, port))
        return CounterRate() if counters is None else counters.rx

    def totals(self) -> dict[tuple[int, int], dict[str, int]]:
        """Return the raw counters of every port, for the metrics."""
        return {place: dict(counters.totals) for place, counters in self._ports.items()}


def _count(entry: Any, own: _OwnBytes) -> PortCount:
    return PortCount(
        duration_s=entry.duration_sec + entry.duration_nsec * 1e-9,
        tx_bytes=entry.tx_bytes,
        rx_bytes=entry.rx_bytes,
        own_tx_bytes=own.tx,
        own_rx_bytes=own.rx,
    )
