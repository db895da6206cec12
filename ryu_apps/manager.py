"""The Ryu application: `ryu-manager ryu_apps/manager.py`.

A thin shell: it hands the parts what Ryu receives, and runs their loops.
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
from ryu.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from ryu.lib import hub
from ryu.ofproto import ofproto_v1_3

from ryu_apps import access, openflow, options, probe, web_server
from ryu_apps.connection import Connection, Door
from ryu_apps.discovery import Port, Switch, dpid_text
from ryu_apps.northbound import Api, NorthboundController
from ryu_apps.parts import Parts

LOG = logging.getLogger(__name__)

RESTART_PAUSE_S = 1.0

options.register()


class NetworkManager(app_manager.RyuApp):  # type: ignore[misc]
    """Measure and forward, and tell the northbound side."""

    OFP_VERSIONS: ClassVar = openflow.OFP_VERSIONS
    _CONTEXTS: ClassVar = {"wsgi": WSGIApplication}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        key = secrets.token_bytes(probe.KEY_BYTES)
        chosen = options.read()
        rules = access.from_options(chosen)
        self._parts = Parts(chosen, key=key, clock=time.time, sleep=hub.sleep)
        self._door = Door(self, self._parts.connection_counts)
        self._door.open()
        web_server.install()
        kwargs["wsgi"].register(NorthboundController, Api.of(self._parts, access=rules))

    def start(self) -> None:
        """Start the loops (Ryu calls this once all applications exist)."""
        super().start()
        for loop in self._parts.loops():
            self.threads.append(hub.spawn(_keep_running, loop))

    def stop(self) -> None:
        """Stop the loops."""
        for thread in self.threads[1:]:
            hub.kill(thread)
        super().stop()

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])
    def _state_changed(self, event: Any) -> None:
        datapath = event.datapath
        if event.state == DEAD_DISPATCHER:
            if datapath.id is not None:
                self._parts.network.switch_left(time.time(), datapath)
        else:
            self._parts.switch_connected(time.time(), _switch(datapath, time.time()))

    @set_ev_cls(ofp_event.EventOFPPortStatus, MAIN_DISPATCHER)
    def _port_changed(self, event: Any) -> None:
        message, description = event.msg, event.msg.desc
        if description.port_no > openflow.MAX_PHYSICAL_PORT or not self._is_current(message.datapath):
            return
        if message.reason == ofproto_v1_3.OFPPR_DELETE:
            self._parts.network.port_removed(event.timestamp, message.datapath.id, description.port_no)
            return
        self._parts.network.port_changed(
            event.timestamp,
            message.datapath.id,
            description.port_no,
            openflow.port_name(description),
            up=openflow.port_is_up(description),
        )

    def packet_arrived(self, now: float, connection: Connection, port: int, frame: bytes) -> None:
        """Take a packet in that a switch sent up; called for every one, past Ryu's events."""
        if self._is_current(connection):
            try:
                self._parts.packet_arrived(now, frame, connection.id, port)
            except Exception:
                LOG.exception("a packet of %d bytes from %s failed", len(frame), dpid_text(connection.id))

    def echo_arrived(self, now: float, connection: Connection, data: bytes) -> None:
        """Take a switch's answer to an echo request in."""
        if self._is_current(connection):
            self._parts.prober.switch_echo_arrived(now, connection.id, data)

    def _is_current(self, connection: Connection) -> bool:
        """Tell whether this is the connection of a switch that has joined, not one that it replaced."""
        switch = self._parts.network.switches.get(connection.id)
        return switch is not None and switch.datapath is connection

    @set_ev_cls(ofp_event.EventOFPPortStatsReply, MAIN_DISPATCHER)
    def _counters_arrived(self, event: Any) -> None:
        if self._is_current(event.msg.datapath):
            message = event.msg
            self._parts.monitor.replied(event.timestamp, message.datapath.id, message.xid, message.body)

    @set_ev_cls(ofp_event.EventOFPFlowStatsReply, MAIN_DISPATCHER)
    def _rules_arrived(self, event: Any) -> None:
        message = event.msg
        more = bool(message.flags & ofproto_v1_3.OFPMPF_REPLY_MORE)
        if self._is_current(message.datapath):
            self._parts.rules_arrived(
                event.timestamp, message.datapath.id, message.xid, message.body, more=more
            )

    @set_ev_cls(ofp_event.EventOFPDescStatsReply, MAIN_DISPATCHER)
    def _description_arrived(self, event: Any) -> None:
        if self._is_current(event.msg.datapath):
            self._parts.flow_counters.described(event.msg.datapath.id, event.msg.body.hw_desc)

    @set_ev_cls(ofp_event.EventOFPBarrierReply, MAIN_DISPATCHER)
    def _barrier_arrived(self, event: Any) -> None:
        if self._is_current(event.msg.datapath):
            self._parts.forwarding.barrier_arrived(event.msg.datapath.id, event.msg.xid)

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
