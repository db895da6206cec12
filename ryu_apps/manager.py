"""The Ryu application: `ryu-manager ryu_apps/manager.py`.

A thin shell: it puts the parts together, hands them what Ryu receives, and runs their loops.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from typing import Any, ClassVar

from ryu.app.wsgi import WSGIApplication
from ryu.base import app_manager
from ryu.controller import ofp_event
from ryu.controller.handler import CONFIG_DISPATCHER, DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from ryu.lib import hub
from ryu.ofproto import ofproto_v1_3

from ryu_apps import openflow, options, packets, probe
from ryu_apps.arp import ArpProxy
from ryu_apps.capacities import ConfiguredCapacities
from ryu_apps.discovery import Network, Port, Switch, dpid_text
from ryu_apps.errors import MalformedPacketError
from ryu_apps.events import EventStream
from ryu_apps.forwarding import Forwarding
from ryu_apps.metrics import Metrics
from ryu_apps.monitor import Monitor
from ryu_apps.northbound import Api, NorthboundController
from ryu_apps.probe import Kind
from ryu_apps.prober import Prober
from ryu_apps.signals import Signals
from ryu_apps.trains import Trains
from ryu_apps.views import Views
from ryu_apps.watcher import Watcher

LOG = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0

options.register()


class NetworkManager(app_manager.RyuApp):  # type: ignore[misc]
    """Measure and forward, and tell the northbound side."""

    OFP_VERSIONS: ClassVar = openflow.OFP_VERSIONS
    _CONTEXTS: ClassVar = {"wsgi": WSGIApplication}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = options.read()
        key = secrets.token_bytes(probe.KEY_BYTES)
        signals = Signals()
        clock, sleep = time.time, hub.sleep
        events = EventStream(signals, clock)
        capacities = ConfiguredCapacities(settings.capacities_file)
        self._network = Network(signals)
        self._prober = Prober(self._network, signals, settings, key=key, clock=clock, sleep=sleep)
        self._monitor = Monitor(self._network, signals, settings, sleep=sleep)
        self._trains = Trains(
            self._network,
            signals,
            settings,
            prober=self._prober,
            monitor=self._monitor,
            key=key,
            clock=clock,
            sleep=sleep,
            is_configured=capacities.has,
        )
        self._arp = ArpProxy(self._network, signals)
        self._forwarding = Forwarding(
            self._network, signals, prober=self._prober, arp=self._arp, clock=clock, sleep=sleep
        )
        self._malformed = 0
        views = Views(
            network=self._network,
            prober=self._prober,
            monitor=self._monitor,
            trains=self._trains,
            forwarding=self._forwarding,
            capacities=capacities,
            clock=clock,
        )
        self._watcher = Watcher(
            network=self._network,
            signals=signals,
            options=settings,
            prober=self._prober,
            trains=self._trains,
            arp=self._arp,
            views=views,
            clock=clock,
            sleep=sleep,
        )
        metrics = Metrics(network=self._network, monitor=self._monitor, views=views, counts=self._counts)
        kwargs["wsgi"].register(NorthboundController, Api(views=views, events=events, metrics=metrics))

    def start(self) -> None:
        """Start the loops (Ryu calls this once all applications exist)."""
        super().start()
        for part in (self._prober, self._monitor, self._trains, self._forwarding, self._watcher):
            self.threads.append(hub.spawn(_keep_running, part.run))

    def stop(self) -> None:
        """Stop the loops."""
        for thread in self.threads[1:]:
            hub.kill(thread)
        super().stop()

    def _counts(self) -> dict[str, float]:
        return {
            **{f"probes_{name}": value for name, value in self._prober.counts.items()},
            **{f"forwarding_{name}": value for name, value in self._forwarding.counts.items()},
            **dict(self._arp.counts.items()),
            "train_sent_bytes": self._trains.sent_bytes,
            "malformed_packets": self._malformed,
            "process_cpu_seconds": time.process_time(),
        }

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])
    def _state_changed(self, event: Any) -> None:
        datapath = event.datapath
        if event.state == DEAD_DISPATCHER:
            if datapath.id is not None:
                self._network.switch_left(time.time(), datapath)
        else:
            self._network.switch_joined(time.time(), _switch(datapath, time.time()))

    @set_ev_cls(ofp_event.EventOFPPortStatus, MAIN_DISPATCHER)
    def _port_changed(self, event: Any) -> None:
        message, description = event.msg, event.msg.desc
        if description.port_no > openflow.MAX_PHYSICAL_PORT:
            return
        if message.reason == ofproto_v1_3.OFPPR_DELETE:
            self._network.port_removed(event.timestamp, message.datapath.id, description.port_no)
            return
        self._network.port_changed(
            event.timestamp,
            message.datapath.id,
            description.port_no,
            openflow.port_name(description),
            up=openflow.port_is_up(description),
        )

    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)
    def _packet_arrived(self, event: Any) -> None:
        message = event.msg
        try:
            self._take(event.timestamp, message.data, message.datapath.id, message.match["in_port"])
        except MalformedPacketError as error:
            self._malformed += 1
            LOG.debug("ignored a packet at %s: %s", dpid_text(message.datapath.id), error)

    def _take(self, now: float, frame: bytes, dpid: int, port: int) -> None:
        kind = packets.ethertype(frame)
        if kind == packets.ETHERTYPE_ARP:
            self._arp.arrived(now, frame, dpid, port)
        elif kind == packets.ETHERTYPE_IPV4:
            destination = frame[30:34]
            if destination == probe.PROBE_IP:
                self._take_probe(now, packets.parse_ipv4(frame), dpid, port)
            elif destination == probe.VIRTUAL_IP:
                self._take_echo(now, packets.parse_ipv4(frame), dpid, port)
            else:
                self._forwarding.packet_arrived(now, frame, dpid, port)

    def _take_probe(self, now: float, packet: packets.Ipv4, dpid: int, port: int) -> None:
        sent = self._prober.read(packets.udp_payload(packet))
        if sent is None:
            return
        if sent.kind == Kind.LINK:
            self._prober.link_probe_arrived(now, sent, dpid, port)
        elif sent.kind == Kind.LINK_TRAIN and sent.dpid != dpid:
            self._trains.arrived(now, sent)

    def _take_echo(self, now: float, packet: packets.Ipv4, dpid: int, port: int) -> None:
        sent = self._prober.read(packets.echo_payload(packet))
        if sent is None:
            return
        if sent.kind == Kind.ECHO:
            self._prober.echo_arrived(now, packets.ip_text(packet.source), sent, dpid, port)
        elif sent.kind == Kind.ECHO_TRAIN and (sent.dpid, sent.port) == (dpid, port):
            self._trains.arrived(now, sent)

    @set_ev_cls(ofp_event.EventOFPEchoReply, [CONFIG_DISPATCHER, MAIN_DISPATCHER])
    def _switch_echo_arrived(self, event: Any) -> None:
        if event.msg.datapath.id is not None:
            self._prober.switch_echo_arrived(event.timestamp, event.msg.datapath.id, event.msg.data)

    @set_ev_cls(ofp_event.EventOFPPortStatsReply, MAIN_DISPATCHER)
    def _counters_arrived(self, event: Any) -> None:
        self._monitor.replied(event.timestamp, event.msg.datapath.id, event.msg.body)

    @set_ev_cls(ofp_event.EventOFPBarrierReply, MAIN_DISPATCHER)
    def _barrier_arrived(self, event: Any) -> None:
        self._forwarding.barrier_arrived(event.msg.datapath.id, event.msg.xid)

    @set_ev_cls(ofp_event.EventOFPErrorMsg, MAIN_DISPATCHER)
    def _error_arrived(self, event: Any) -> None:
        message = event.msg
        LOG.warning(
            "switch %s refused a message: type %d, code %d",
            dpid_text(message.datapath.id),
            message.type,
            message.code,
        )


def _switch(datapath: Any, now: float) -> Switch:
    """Return what a switch told of itself when it connected; its local port has its name."""
    name, ports = "", {}
    for number, description in datapath.ports.items():
        if number == openflow.LOCAL:
            name = openflow.port_name(description)
        elif number <= openflow.MAX_PHYSICAL_PORT:
            ports[number] = Port(
                number=number,
                name=openflow.port_name(description),
                up=openflow.port_is_up(description),
                since=now,
            )
    return Switch(dpid=datapath.id, name=name, datapath=datapath, connected_since=now, ports=ports)


def _keep_running(loop: Callable[[], None]) -> None:
    """Run a part's loop; a failure is logged in full and the loop goes on after a pause."""
    while True:
        try:
            loop()
        except Exception:
            LOG.exception("%s failed, it goes on in %g s", loop.__qualname__, RESTART_PAUSE_S)
        hub.sleep(RESTART_PAUSE_S)
