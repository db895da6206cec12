"""Run the classic method (classic.py) as a Ryu application: a second controller of the same switches.

Both measure the same links at the same time. Its probe is an IPv4 packet, since the emulator delays nothing
else. `GET /classic` answers what it knows.
"""

from __future__ import annotations

import json
import struct
import time
from typing import Any, ClassVar

from ryu.app.wsgi import ControllerBase, Response, WSGIApplication, route
from ryu.base import app_manager
from ryu.controller import ofp_event
from ryu.controller.handler import DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from ryu.lib import hub
from ryu.ofproto import ofproto_v1_3

from benchmarks.network_accuracy.classic import (
    POLL_PERIOD_S,
    PROBE_GUARD_S,
    PROBE_PERIOD_S,
    PortReading,
    free_bps,
    link_delay_s,
    port_speed_bps,
)
from ryu_apps import packets, probe

_ADDRESS = "198.19.255.251"
_MAC = packets.mac_bytes("02:75:74:6f:70:09")
_BODY = struct.Struct("!8sQId")
_MAGIC = b"CLASSIC1"
_PRIORITY = 1001
_PORT = 50551
_RULE_PERIOD_S = 10.0
_PROBE_BYTES = 128


class Classic(app_manager.RyuApp):  # type: ignore[misc]
    """Measure switches' links and ports the classic way."""

    OFP_VERSIONS: ClassVar = [ofproto_v1_3.OFP_VERSION]
    _CONTEXTS: ClassVar = {"wsgi": WSGIApplication}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._datapaths: dict[int, Any] = {}
        self._echo_s: dict[int, float] = {}
        self._delays: dict[str, tuple[float, float]] = {}
        self._capacity_bps: dict[tuple[int, int], float] = {}
        self._readings: dict[tuple[int, int], PortReading] = {}
        self._speeds_bps: dict[tuple[int, int], float] = {}
        self._sent_bytes = 0
        kwargs["wsgi"].register(_Rest, {"classic": self})

    def start(self) -> None:
        """Start the rounds."""
        super().start()
        for work in (self._probe, self._poll, self._keep_rules):
            self.threads.append(hub.spawn(work))

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])
    def _state_changed(self, event: Any) -> None:
        if event.state == MAIN_DISPATCHER:
            self._datapaths[event.datapath.id] = event.datapath
            _hand_up_probes(event.datapath)
        elif event.datapath.id is not None:
            self._datapaths.pop(event.datapath.id, None)

    def _keep_rules(self) -> None:
        """Have the switches hand up the probes, whatever the other controller makes of their tables."""
        while True:
            for datapath in list(self._datapaths.values()):
                _hand_up_probes(datapath)
            hub.sleep(_RULE_PERIOD_S)

    def _probe(self) -> None:
        """Send an echo per switch and a probe per port, one after the other, each round."""
        while True:
            began = time.time()
            for datapath in list(self._datapaths.values()):
                echo = datapath.ofproto_parser.OFPEchoRequest(datapath)
                echo.data = _MAGIC + struct.pack("!d", time.time())
                datapath.send_msg(echo)
                for number in [number for number in datapath.ports if number <= ofproto_v1_3.OFPP_MAX]:
                    self._send_probe(datapath, number)
                    hub.sleep(PROBE_GUARD_S)
            hub.sleep(max(PROBE_GUARD_S, began + PROBE_PERIOD_S - time.time()))

    def _send_probe(self, datapath: Any, number: int) -> None:
        parser = datapath.ofproto_parser
        frame = packets.build_udp(
            source_mac=probe.VIRTUAL_MAC,
            destination_mac=_MAC,
            source=probe.VIRTUAL_IP,
            destination=packets.ip_bytes(_ADDRESS),
            port=_PORT,
            payload=_BODY.pack(_MAGIC, datapath.id, number, time.time()),
        )
        self._sent_bytes += len(frame)
        datapath.send_msg(
            parser.OFPPacketOut(
                datapath,
                buffer_id=ofproto_v1_3.OFP_NO_BUFFER,
                in_port=ofproto_v1_3.OFPP_CONTROLLER,
                actions=[parser.OFPActionOutput(number)],
                data=frame,
            )
        )

    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)
    def _packet_arrived(self, event: Any) -> None:
        frame, target = event.msg.data, event.msg.datapath.id
        if frame[30:34] != packets.ip_bytes(_ADDRESS) or len(frame) < 42 + _BODY.size:
            return
        magic, source, port, sent_at = _BODY.unpack_from(frame, 42)
        echoes = self._echo_s.get(source), self._echo_s.get(target)
        if magic != _MAGIC or source == target or None in echoes:
            return
        delay_s = link_delay_s(event.timestamp - sent_at, echoes[0], echoes[1])
        link = f"{source:016x}.{port}-{target:016x}.{event.msg.match['in_port']}"
        self._delays[link] = (event.timestamp, delay_s)

    @set_ev_cls(ofp_event.EventOFPEchoReply, MAIN_DISPATCHER)
    def _echo_arrived(self, event: Any) -> None:
        data = event.msg.data
        if data is not None and len(data) == 16 and data[:8] == _MAGIC:
            (sent_at,) = struct.unpack("!d", data[8:])
            self._echo_s[event.msg.datapath.id] = event.timestamp - sent_at

    def _poll(self) -> None:
        while True:
            for datapath in list(self._datapaths.values()):
                parser = datapath.ofproto_parser
                if not any(key[0] == datapath.id for key in self._capacity_bps):
                    datapath.send_msg(parser.OFPPortDescStatsRequest(datapath, 0))
                datapath.send_msg(parser.OFPPortStatsRequest(datapath, 0, ofproto_v1_3.OFPP_ANY))
            hub.sleep(POLL_PERIOD_S)

    @set_ev_cls(ofp_event.EventOFPPortDescStatsReply, MAIN_DISPATCHER)
    def _ports_described(self, event: Any) -> None:
        for port in event.msg.body:
            self._capacity_bps[event.msg.datapath.id, port.port_no] = port.curr_speed * 1e3

    @set_ev_cls(ofp_event.EventOFPPortStatsReply, MAIN_DISPATCHER)
    def _counters_arrived(self, event: Any) -> None:
        for entry in event.msg.body:
            place = event.msg.datapath.id, entry.port_no
            up_s = entry.duration_sec + entry.duration_nsec * 1e-9
            after = PortReading(up_s=up_s, tx_bytes=entry.tx_bytes, rx_bytes=entry.rx_bytes)
            before = self._readings.get(place)
            self._readings[place] = after
            speed = None if before is None else port_speed_bps(before, after)
            if speed is not None:
                self._speeds_bps[place] = speed

    def document(self) -> dict[str, Any]:
        """Return what the method knows now; ages in seconds."""
        now = time.time()
        ports = {}
        for (dpid, number), speed in self._speeds_bps.items():
            capacity = self._capacity_bps.get((dpid, number))
            ports[f"{dpid:016x}.{number}"] = {
                "speed_bps": speed,
                "capacity_bps": capacity,
                "free_bps": None if capacity is None else free_bps(capacity, speed),
            }
        links = {link: {"delay_s": delay, "age_s": now - at} for link, (at, delay) in self._delays.items()}
        return {
            "switches": len(self._datapaths),
            "links": links,
            "ports": ports,
            "sent_bytes": self._sent_bytes,
        }


def _hand_up_probes(datapath: Any) -> None:
    parser = datapath.ofproto_parser
    match = parser.OFPMatch(eth_type=packets.ETHERTYPE_IPV4, ipv4_dst=_ADDRESS)
    up = parser.OFPActionOutput(ofproto_v1_3.OFPP_CONTROLLER, _PROBE_BYTES)
    apply = parser.OFPInstructionActions(ofproto_v1_3.OFPIT_APPLY_ACTIONS, [up])
    datapath.send_msg(parser.OFPFlowMod(datapath, priority=_PRIORITY, match=match, instructions=[apply]))


class _Rest(ControllerBase):  # type: ignore[misc]
    def __init__(self, req: Any, link: Any, data: dict[str, Classic], **config: Any) -> None:
        super().__init__(req, link, data, **config)
        self._classic = data["classic"]

    @route("classic", "/classic", methods=["GET"])
    def get(self, req: Any, **_: Any) -> Any:
        """Answer what the method knows."""
        body = json.dumps(self._classic.document()).encode()
        return Response(content_type="application/json", charset="utf-8", body=body)
