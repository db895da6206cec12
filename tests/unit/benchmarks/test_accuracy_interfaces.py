"""The truth about a host's traffic: interface counters, and the controller's trains in them."""

from __future__ import annotations

import struct

import pytest

from benchmarks.network_accuracy.interfaces import Rates, Reading
from benchmarks.network_accuracy.train_frames import _program

OUTGOING, INCOMING = 4, 0
CONTROLLER, HOST = bytes([198, 19, 255, 252]), bytes([198, 18, 1, 1])


def reading(at: float, received: int, sent: int, trains: int) -> Reading:
    return Reading(
        at=at,
        rx_bytes=received,
        rx_packets=0,
        tx_bytes=sent,
        tx_packets=0,
        train_rx_bytes=trains,
        train_tx_bytes=trains,
    )


def test_rates_are_of_the_time_between_the_readings() -> None:
    before, after = reading(10.0, 1000, 500, 100), reading(12.0, 251_000, 125_500, 25_100)
    assert after.rates_since(before) == Rates(
        received_bps=1e6, sent_bps=5e5, trains_received_bps=1e5, trains_sent_bps=1e5
    )


def passes(packet: bytes, kind: int, *, outgoing: bool) -> bool:
    """Run the filter as the kernel would."""
    program, accumulator, at = _program(outgoing=outgoing), 0, 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            accumulator = kind if value == 0xFFFFF004 else struct.unpack_from("!I", packet, value)[0]
        elif code == 0x28:
            accumulator = struct.unpack_from("!H", packet, value)[0]
        elif code == 0x80:
            accumulator = len(packet)
        elif code == 0x54:
            accumulator &= value
        elif code == 0x15:
            at += if_true if accumulator == value else if_false
        elif code == 0x35:
            at += if_true if accumulator >= value else if_false
        else:
            assert code == 0x06
            return value > 0


def frame(source: bytes, destination: bytes, length: int = 1442, kind: int = 0x0800) -> bytes:
    return (bytes(12) + struct.pack("!H", kind) + bytes(12) + source + destination).ljust(length, b"\0")


@pytest.mark.parametrize(
    ("packet", "kind", "received", "sent"),
    [
        (frame(CONTROLLER, HOST), INCOMING, True, False),
        (frame(HOST, CONTROLLER), OUTGOING, False, True),
        (frame(CONTROLLER, HOST, length=98), INCOMING, False, False),
        (frame(bytes([198, 18, 1, 2]), HOST), INCOMING, False, False),
        (frame(HOST, bytes([198, 18, 1, 2])), OUTGOING, False, False),
        (frame(CONTROLLER, HOST, kind=0x0806), INCOMING, False, False),
    ],
)
def test_only_long_packets_of_the_controller_are_trains(
    packet: bytes, kind: int, received: bool, sent: bool
) -> None:
    assert passes(packet, kind, outgoing=False) is received
    assert passes(packet, kind, outgoing=True) is sent
