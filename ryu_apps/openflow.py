"""Small builders of OpenFlow 1.3 messages.

Measuring packets leave and arrive by the hundred per second, so their messages are packed and read by hand;
everything else uses Ryu's classes.
"""

from __future__ import annotations

import struct
from typing import Any

from ryu.controller import ofp_event
from ryu.exception import RyuException
from ryu.ofproto import ofproto_parser, ofproto_v1_3

from ryu_apps import packets, probe
from ryu_apps.errors import MalformedPacketError
from ryu_apps.flows import PROTOCOLS, Flow

Datapath = Any
"""Ryu's switch connection (ryu.controller.controller.Datapath), which has no types."""
Message = Any

OFP_VERSIONS = [ofproto_v1_3.OFP_VERSION]
CONTROLLER = ofproto_v1_3.OFPP_CONTROLLER
LOCAL = ofproto_v1_3.OFPP_LOCAL
MAX_PHYSICAL_PORT = ofproto_v1_3.OFPP_MAX

COOKIE_BASE = 0x5554 << 48
COOKIE_CONTROL = COOKIE_BASE | 1 << 40
COOKIE_PAIR = COOKIE_BASE | 2 << 40
COOKIE_KIND_MASK = 0xFFFFFF << 40
PRIORITY_CONTROL = 1000
PRIORITY_PAIR = 100
"""Rules of a traffic class are 1 to 15 above, in the order of precedence."""
PRIORITY_UNUSED = 20
PRIORITY_MISS = 10
PROBE_BYTES = 128
SEND_QUEUE_HIGH = 8
"""Measuring packets wait while a switch has left so many messages unread."""

HEADER_BYTES = ofproto_v1_3.OFP_HEADER_SIZE
PACKET_IN = ofproto_v1_3.OFPT_PACKET_IN
ECHO_REPLY = ofproto_v1_3.OFPT_ECHO_REPLY
KNOWN_VERSIONS = range(1, 7)
"""Of what may greet; only OpenFlow 1.3 gets further."""

_HEADER = struct.Struct("!BBHI")
_IN_PORT = bytes.fromhex("80000004")
"""The header of the match field (OXM) that names the ingress port, four bytes long."""
_MATCH_AT = 24
_PACKET_OUT = struct.Struct("!BBHIIIH6x")
_OUTPUT = struct.Struct("!HHIH6x")


def packet_out(frame: bytes, port: int, *, copies: int = 1) -> bytes:
    """Pack a message that sends `frame` out of `port`, `copies` times."""
    actions = _OUTPUT.pack(0, _OUTPUT.size, port, 0) * copies
    length = _PACKET_OUT.size + len(actions) + len(frame)
    header = _PACKET_OUT.pack(
        ofproto_v1_3.OFP_VERSION,
        ofproto_v1_3.OFPT_PACKET_OUT,
        length,
        0,
        ofproto_v1_3.OFP_NO_BUFFER,
        ofproto_v1_3.OFPP_CONTROLLER,
        len(actions),
    )
    return header + actions + frame


def header(data: bytes, start: int) -> tuple[int, int, int, int]:
    """Read (version, type, length, transaction) of the message that begins at `start`."""
    fields: tuple[int, int, int, int] = _HEADER.unpack_from(data, start)
    return fields


def parse_packet_in(message: bytes) -> tuple[int, bytes]:
    """Return the ingress port and the frame of a packet-in.

    Raises:
        MalformedPacketError: it is cut short, or names no port.
    """
    if len(message) < _MATCH_AT + 4:
        raise MalformedPacketError(f"a packet-in of {len(message)} bytes")
    match_end = _MATCH_AT + int.from_bytes(message[_MATCH_AT + 2 : _MATCH_AT + 4], "big")
    position = _MATCH_AT + 4
    while position + 8 <= min(match_end, len(message)):
        if message[position : position + 4] == _IN_PORT:
            port = int.from_bytes(message[position + 4 : position + 8], "big")
            padded = (match_end - _MATCH_AT + 7) // 8 * 8
            return port, message[_MATCH_AT + padded + 2 :]
        position += 4 + message[position + 3]
    raise MalformedPacketError("a packet-in that names no ingress port")


def parse_event(datapath: Datapath, fields: tuple[int, int, int, int], message: bytes) -> Any:
    """Have Ryu parse a message; return its event, None if the message is malformed."""
    try:
        parsed = ofproto_parser.msg(datapath, *fields, message)
    except (RyuException, AssertionError, struct.error):
        return None
    return None if parsed is None else ofp_event.ofp_msg_to_ev(parsed)


def congested(datapath: Datapath) -> bool:
    """Tell whether messages to a switch pile up, or it is gone."""
    return datapath.send_q is None or datapath.send_q.qsize() >= SEND_QUEUE_HIGH


def _flow(
    datapath: Datapath, *, priority: int, cookie: int, match: dict[str, Any], actions: list[Any]
) -> Message:
    parser = datapath.ofproto_parser
    instructions = []
    if actions:
        instructions.append(parser.OFPInstructionActions(ofproto_v1_3.OFPIT_APPLY_ACTIONS, actions))
    return parser.OFPFlowMod(
        datapath=datapath,
        cookie=cookie,
        priority=priority,
        match=parser.OFPMatch(**match),
        instructions=instructions,
    )


def _to_controller(datapath: Datapath, max_bytes: int) -> list[Any]:
    return [datapath.ofproto_parser.OFPActionOutput(CONTROLLER, max_bytes)]


def base_rules(datapath: Datapath) -> list[Message]:
    """Return the rules for measuring, ARP and first packets; writing them again changes nothing."""
    whole = ofproto_v1_3.OFPCML_NO_BUFFER
    ipv4 = {"eth_type": packets.ETHERTYPE_IPV4}

    def rule(priority: int, match: dict[str, Any], actions: list[Any]) -> Message:
        return _flow(datapath, priority=priority, cookie=COOKIE_CONTROL, match=match, actions=actions)

    probes = {**ipv4, "ip_proto": packets.PROTOCOL_UDP, "ipv4_dst": packets.ip_text(probe.PROBE_IP)}
    return [
        rule(PRIORITY_CONTROL, probes, _to_controller(datapath, PROBE_BYTES)),
        rule(
            PRIORITY_CONTROL,
            {**ipv4, "ipv4_dst": packets.ip_text(probe.VIRTUAL_IP)},
            _to_controller(datapath, PROBE_BYTES),
        ),
        rule(PRIORITY_CONTROL, {**ipv4, "ipv4_dst": packets.ip_text(probe.FILLER_IP)}, []),
        rule(PRIORITY_CONTROL, {"eth_type": packets.ETHERTYPE_ARP}, _to_controller(datapath, whole)),
        rule(PRIORITY_UNUSED, {**ipv4, "ipv4_dst": ("224.0.0.0", "224.0.0.0")}, []),
        rule(PRIORITY_UNUSED, {**ipv4, "ipv4_dst": ("0.0.0.0", "255.0.0.0")}, []),
        rule(PRIORITY_UNUSED, {**ipv4, "eth_dst": ("01:00:00:00:00:00", "01:00:00:00:00:00")}, []),
        rule(PRIORITY_MISS, ipv4, _to_controller(datapath, whole)),
        rule(0, {}, []),
    ]


def delete_all(datapath: Datapath) -> Message:
    """Return the message that empties every table of a switch."""
    return _delete(datapath, match={}, command=ofproto_v1_3.OFPFC_DELETE, priority=0)


def flow_rule(datapath: Datapath, flow: Flow, *, in_port: int, out_port: int, cookie: int) -> Message:
    """Return the rule that sends a flow's packets that come in at `in_port` out of `out_port`."""
    return _flow(
        datapath,
        priority=_priority(flow),
        cookie=cookie,
        match=_match(flow, in_port),
        actions=[datapath.ofproto_parser.OFPActionOutput(out_port)],
    )


def delete_flow(datapath: Datapath, flow: Flow, *, in_port: int) -> Message:
    """Return the message that removes a flow's rule for packets that come in at `in_port`."""
    return _delete(
        datapath,
        match=_match(flow, in_port),
        command=ofproto_v1_3.OFPFC_DELETE_STRICT,
        priority=_priority(flow),
    )


def _priority(flow: Flow) -> int:
    return PRIORITY_PAIR + (0 if flow.traffic_class is None else flow.traffic_class.precedence)


def _match(flow: Flow, in_port: int) -> dict[str, Any]:
    match: dict[str, Any] = {
        "in_port": in_port,
        "eth_type": packets.ETHERTYPE_IPV4,
        "ipv4_src": flow.src,
        "ipv4_dst": flow.dst,
    }
    part = flow.traffic_class
    if part is None:
        return match
    if part.protocol is not None:
        match["ip_proto"] = PROTOCOLS[part.protocol]
    if part.src_port is not None:
        match[f"{part.protocol}_src"] = part.src_port
    if part.dst_port is not None:
        match[f"{part.protocol}_dst"] = part.dst_port
    if part.dscp is not None:
        match["ip_dscp"] = part.dscp
    return match


def all_rules_request(datapath: Datapath) -> Message:
    """Return the request for all rules of a switch, with its transaction id set."""
    request = datapath.ofproto_parser.OFPFlowStatsRequest(
        datapath,
        table_id=ofproto_v1_3.OFPTT_ALL,
        out_port=ofproto_v1_3.OFPP_ANY,
        out_group=ofproto_v1_3.OFPG_ANY,
    )
    datapath.set_xid(request)
    return request


def delete_entry(datapath: Datapath, entry: Any) -> Message:
    """Return the message that removes exactly one rule of a list of rules."""
    return datapath.ofproto_parser.OFPFlowMod(
        datapath=datapath,
        table_id=entry.table_id,
        command=ofproto_v1_3.OFPFC_DELETE_STRICT,
        priority=entry.priority,
        out_port=ofproto_v1_3.OFPP_ANY,
        out_group=ofproto_v1_3.OFPG_ANY,
        match=entry.match,
        instructions=[],
    )


def is_ours(cookie: int) -> bool:
    """Tell whether a rule is of this controller, of this run or another."""
    return cookie >> 48 == COOKIE_BASE >> 48


def is_pair(cookie: int) -> bool:
    """Tell whether a rule carries the packets of hosts."""
    return cookie & COOKIE_KIND_MASK == COOKIE_PAIR


def _delete(datapath: Datapath, *, match: dict[str, Any], command: int, priority: int) -> Message:
    parser = datapath.ofproto_parser
    return parser.OFPFlowMod(
        datapath=datapath,
        table_id=ofproto_v1_3.OFPTT_ALL if command == ofproto_v1_3.OFPFC_DELETE else 0,
        command=command,
        priority=priority,
        out_port=ofproto_v1_3.OFPP_ANY,
        out_group=ofproto_v1_3.OFPG_ANY,
        match=parser.OFPMatch(**match),
        instructions=[],
    )


def barrier(datapath: Datapath) -> Message:
    """Return a barrier request with its transaction id set."""
    message = datapath.ofproto_parser.OFPBarrierRequest(datapath)
    datapath.set_xid(message)
    return message


def echo_request(data: bytes) -> bytes:
    """Pack an echo request that carries `data`."""
    length = HEADER_BYTES + len(data)
    return _HEADER.pack(ofproto_v1_3.OFP_VERSION, ofproto_v1_3.OFPT_ECHO_REQUEST, length, 0) + data


def port_stats_request(datapath: Datapath, port: int = ofproto_v1_3.OFPP_ANY) -> Message:
    """Return the request for the counters of all ports, or of one, with its transaction id set."""
    message = datapath.ofproto_parser.OFPPortStatsRequest(datapath, 0, port)
    datapath.set_xid(message)
    return message


def pair_stats_request(datapath: Datapath) -> Message:
    """Return the request for the counters of all pair rules."""
    return datapath.ofproto_parser.OFPFlowStatsRequest(
        datapath,
        table_id=ofproto_v1_3.OFPTT_ALL,
        out_port=ofproto_v1_3.OFPP_ANY,
        out_group=ofproto_v1_3.OFPG_ANY,
        cookie=COOKIE_PAIR,
        cookie_mask=COOKIE_KIND_MASK,
    )


def unchanged_rule(datapath: Datapath) -> Message:
    """Return the rule of lowest priority as it is: writing it has Open vSwitch update all counters."""
    return _flow(datapath, priority=0, cookie=COOKIE_CONTROL, match={}, actions=[])


def output_port(entry: Any) -> int:
    """Return the port that a rule of a statistics reply sends to, 0 when it sends to none or several."""
    ports = [
        action.port
        for instruction in entry.instructions
        for action in getattr(instruction, "actions", ())
        if action.type == ofproto_v1_3.OFPAT_OUTPUT
    ]
    return ports[0] if len(ports) == 1 else 0


def description_request(datapath: Datapath) -> Message:
    """Return the request for what a switch is."""
    return datapath.ofproto_parser.OFPDescStatsRequest(datapath, 0)


def port_is_up(description: Any) -> bool:
    """Tell whether a port is switched on and has a carrier."""
    down = (
        description.config & ofproto_v1_3.OFPPC_PORT_DOWN or description.state & ofproto_v1_3.OFPPS_LINK_DOWN
    )
    return not down


def port_name(description: Any) -> str:
    """Return the name of a port as text."""
    return bytes(description.name).split(b"\0", 1)[0].decode("utf-8", "replace")
