"""Put the controller's parts together, and hand every packet that arrives to the part it is for.

The only place where the parts meet. Nothing here or in the parts needs Ryu's runtime: the clock and the way
to sleep are passed in.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ryu_apps import packets, probe
from ryu_apps.arp import ArpProxy
from ryu_apps.capacities import ConfiguredCapacities
from ryu_apps.discovery import Network, Switch, dpid_text
from ryu_apps.effort import Effort, Totals
from ryu_apps.errors import MalformedPacketError
from ryu_apps.events import EventStream
from ryu_apps.flowcounters import FlowCounters
from ryu_apps.forwarding import Forwarding
from ryu_apps.goodputs import Goodputs
from ryu_apps.hostcounters import HostCounters
from ryu_apps.limits import PortLimits
from ryu_apps.metrics import Metrics
from ryu_apps.monitor import Monitor
from ryu_apps.options import Options
from ryu_apps.own_traffic import OwnTraffic
from ryu_apps.pin_views import PinViews
from ryu_apps.pins import PinFile
from ryu_apps.probe import Kind
from ryu_apps.prober import Prober
from ryu_apps.signals import Signals
from ryu_apps.steering import Steering
from ryu_apps.takeover import Takeover
from ryu_apps.trains import Trains
from ryu_apps.views import Views
from ryu_apps.watcher import Watcher

LOG = logging.getLogger(__name__)


class Parts:
    """All parts of one controller."""

    def __init__(
        self,
        options: Options,
        *,
        key: bytes,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.signals = signals = Signals()
        self.events = EventStream(signals, clock)
        capacities = ConfiguredCapacities(options.capacities_file)
        self.network = Network(signals)
        self.prober = Prober(
            self.network, signals, options, key=key, clock=clock, sleep=sleep, cpu_s=time.process_time
        )
        self.monitor = Monitor(self.network, signals, options, sleep=sleep)
        self.flow_counters = FlowCounters(
            self.network, signals, options, prober=self.prober, clock=clock, sleep=sleep
        )
        self.host_counters = HostCounters(
            self.network, signals, prober=self.prober, monitor=self.monitor, clock=clock, sleep=sleep
        )
        self.trains = Trains(
            self.network,
            signals,
            options,
            prober=self.prober,
            monitor=self.monitor,
            key=key,
            clock=clock,
            sleep=sleep,
            is_configured=capacities.has,
        )
        self.arp = ArpProxy(self.network, signals)
        self.forwarding = Forwarding(
            self.network,
            signals,
            prober=self.prober,
            arp=self.arp,
            clock=clock,
            sleep=sleep,
            first_number=int.from_bytes(key[2:6], "big"),
        )
        self.takeover = Takeover(self.network, signals, arp=self.arp, forwarding=self.forwarding)
        self.own_traffic = OwnTraffic(self.network, signals, forwarding=self.forwarding, clock=clock)
        self.views = Views(
            network=self.network,
            prober=self.prober,
            monitor=self.monitor,
            flow_counters=self.flow_counters,
            host_counters=self.host_counters,
            trains=self.trains,
            forwarding=self.forwarding,
            capacities=capacities,
            goodputs=Goodputs(),
            own_traffic=self.own_traffic,
            clock=clock,
        )
        self.steering = Steering(
            self.network,
            signals,
            forwarding=self.forwarding,
            link_values=self.views.all_values,
            file=PinFile(options.pins_file),
            clock=clock,
            sleep=sleep,
        )
        self.pin_views = PinViews(
            network=self.network,
            forwarding=self.forwarding,
            steering=self.steering,
            link_values=self.views.all_values,
        )
        self.watcher = Watcher(
            network=self.network,
            signals=signals,
            options=options,
            prober=self.prober,
            trains=self.trains,
            arp=self.arp,
            takeover=self.takeover,
            views=self.views,
            clock=clock,
            sleep=sleep,
        )
        self.effort = Effort(lambda: self._totals(clock()), sleep=sleep)
        self.metrics = Metrics(
            network=self.network,
            monitor=self.monitor,
            views=self.views,
            effort=self.effort,
            steering=self.steering,
            counts=self.counts,
        )
        self._malformed = 0
        self._limits = PortLimits(probe_rate=options.max_probe_rate)
        self.connection_counts: Counter[str] = Counter()
        """What went wrong on switches' connections, counted by whoever owns those."""

    def loops(self) -> list[Callable[[], None]]:
        """Return the loops that must run, each in a thread of its own."""
        counting = (self.monitor, self.flow_counters, self.host_counters)
        measuring = (self.prober, *counting, self.trains, self.watcher)
        return [part.run for part in (*measuring, self.forwarding, self.steering, self.effort)]

    def _totals(self, now: float) -> Totals:
        probes, trains = self.prober.counts, self.trains.counts
        return Totals(
            at=now,
            probe_packets=probes["sent"],
            probe_bytes=probes["sent_bytes"],
            trains=trains["train_sent"] + trains["check_sent"],
            train_bytes=trains["train_sent_bytes"] + trains["check_sent_bytes"],
            cpu_s=time.process_time(),
            probe_limit_per_s=self.prober.budget.rate,
            probe_limit_reason=self.prober.budget.reason,
            late_switch_s=self.prober.late_switch_s,
        )

    def counts(self) -> dict[str, float]:
        """Return what was counted since the start, by name."""
        return {
            **{f"probes_{name}": value for name, value in self.prober.counts.items()},
            **{f"forwarding_{name}": value for name, value in self.forwarding.counts.items()},
            **{f"flow_counters_{name}": value for name, value in self.flow_counters.counts.items()},
            **{f"takeover_{name}": value for name, value in self.takeover.counts.items()},
            **{f"host_counters_{name}": value for name, value in self.host_counters.counts.items()},
            **{f"arp_{name}": value for name, value in self.arp.counts.items()},
            **{f"connections_{name}": value for name, value in self.connection_counts.items()},
            **{f"steering_{name}": value for name, value in self.steering.counts.items()},
            **{name: float(value) for name, value in self.trains.counts.items()},
            **{f"flooded_{name}": value for name, value in self._limits.counts.items()},
            "malformed_packets": self._malformed,
            **{f"network_{name}": value for name, value in self.network.counts.items()},
            "process_cpu_seconds": time.process_time(),
        }

    def switch_connected(self, now: float, switch: Switch) -> None:
        """Take a switch in, or turn it away while another one has its id; close what is replaced."""
        earlier = self.network.switches.get(switch.dpid)
        if not self.network.switch_joined(now, switch):
            self.connection_counts["refused_switches"] += 1
            switch.datapath.close()
        elif earlier is not None:
            self.connection_counts["replaced_switches"] += 1
            earlier.datapath.close()

    def rules_arrived(
        self, now: float, dpid: int, transaction: int, entries: list[Any], *, more: bool
    ) -> None:
        """Hand a list of rules, or a part of one, to whoever asked for it."""
        if self.takeover.awaits(dpid, transaction):
            self.takeover.listed(now, dpid, entries, more=more)
        else:
            self.flow_counters.replied(dpid, entries, more=more)
            self.own_traffic.counted(dpid, entries)

    def packet_arrived(self, now: float, frame: bytes, dpid: int, port: int) -> None:
        """Take a packet that a switch sent up; malformed ones and floods are counted and ignored."""
        measuring = frame[30:34] in (probe.PROBE_IP, probe.VIRTUAL_IP)
        if not self._limits.allow(now, (dpid, port), measuring=measuring):
            return
        try:
            self._take(now, frame, dpid, port)
        except MalformedPacketError as error:
            self._malformed += 1
            LOG.debug("ignored a packet at %s: %s", dpid_text(dpid), error)

    def _take(self, now: float, frame: bytes, dpid: int, port: int) -> None:
        kind = packets.ethertype(frame)
        if kind == packets.ETHERTYPE_ARP:
            self.arp.arrived(now, frame, dpid, port)
        elif kind == packets.ETHERTYPE_IPV4:
            destination = frame[30:34]
            if destination == probe.PROBE_IP:
                self._take_probe(now, packets.parse_ipv4(frame), dpid, port)
            elif destination == probe.VIRTUAL_IP:
                self._take_echo(now, packets.parse_ipv4(frame), dpid, port)
            else:
                self.forwarding.packet_arrived(now, frame, dpid, port)

    def _take_probe(self, now: float, packet: packets.Ipv4, dpid: int, port: int) -> None:
        sent = self.prober.read(packets.udp_payload(packet))
        if sent is None:
            return
        if sent.kind == Kind.LINK:
            self.prober.link_probe_arrived(now, sent, dpid, port)
        elif sent.kind == Kind.LINK_TRAIN and sent.dpid != dpid:
            self.trains.arrived(now, sent)

    def _take_echo(self, now: float, packet: packets.Ipv4, dpid: int, port: int) -> None:
        sent = self.prober.read(packets.echo_payload(packet))
        if sent is None:
            return
        if sent.kind == Kind.ECHO:
            self.prober.echo_arrived(now, packets.ip_text(packet.source), sent, dpid, port)
        elif sent.kind == Kind.ECHO_TRAIN and (sent.dpid, sent.port) == (dpid, port):
            self.trains.arrived(now, sent)
