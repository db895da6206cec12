"""Messages that are read and packed by hand: the same as Ryu's classes make them."""

from __future__ import annotations

from typing import Any

import pytest
from ryu.ofproto import ofproto_v1_3, ofproto_v1_3_parser

from ryu_apps import openflow
from ryu_apps.errors import MalformedPacketError

FRAME = bytes(range(60))


class Version:
    """Stands for a connection: which OpenFlow it speaks."""

    ofproto = ofproto_v1_3
    ofproto_parser = ofproto_v1_3_parser


def packet_in(**match: Any) -> bytes:
    """Return a packet-in as Ryu packs it (it has no packer of its own: its reader is the judge)."""
    fields = ofproto_v1_3_parser.OFPMatch(**match)
    packed = bytearray()
    fields.serialize(packed, 0)
    body = b"\xff" * 4 + len(FRAME).to_bytes(2, "big") + bytes(10) + packed + bytes(2) + FRAME
    return b"\x04\x0a" + (8 + len(body)).to_bytes(2, "big") + bytes(4) + body


@pytest.mark.parametrize(
    "match", [{"in_port": 7}, {"in_port": 0xFFFFFF00, "metadata": 5}, {"metadata": 5, "in_port": 3}]
)
def test_a_packet_in_is_read_as_ryu_reads_it(match: dict[str, Any]) -> None:
    message = packet_in(**match)
    judged = ofproto_v1_3_parser.OFPPacketIn.parser(Version(), 4, 10, len(message), 0, bytearray(message))
    assert openflow.parse_packet_in(message) == (judged.match["in_port"], bytes(judged.data))
    assert openflow.parse_packet_in(message) == (match["in_port"], FRAME)


def test_a_packet_in_that_is_cut_anywhere_gives_a_frame_or_a_clear_error() -> None:
    message = packet_in(in_port=7)
    for length in range(len(message)):
        try:
            port, frame = openflow.parse_packet_in(message[:length])
        except MalformedPacketError:
            assert length < 36
        else:
            assert (port, frame) == (7, FRAME[: max(0, length - 42)])


def test_a_packet_in_without_a_port_is_malformed() -> None:
    with pytest.raises(MalformedPacketError):
        openflow.parse_packet_in(packet_in(metadata=5))


def test_a_match_that_claims_more_than_there_is_ends() -> None:
    message = bytearray(packet_in(metadata=5))
    message[26:28] = b"\xff\xff"
    message[31] = 0
    with pytest.raises(MalformedPacketError):
        openflow.parse_packet_in(bytes(message))


def test_an_echo_request_is_packed_as_ryu_packs_it() -> None:
    wanted = ofproto_v1_3_parser.OFPEchoRequest(Version(), data=b"abc")
    wanted.set_xid(0)
    wanted.serialize()
    assert openflow.echo_request(b"abc") == bytes(wanted.buf)


def test_a_message_that_ryu_cannot_read_is_none() -> None:
    port_status = b"\x04\x0c\x00\x10" + bytes(12)
    assert openflow.parse_event(Version(), openflow.header(port_status, 0), port_status) is None
