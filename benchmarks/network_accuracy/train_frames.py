"""Count the controller's packet trains at a host's interface, without the controller's help.

They are no use of the link (they give way to traffic), so the truth about a link's traffic leaves them out.
The kernel counts what passes a socket's filter (packet(7), PACKET_STATISTICS); nobody reads the packets.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from workers.namespaces import make_inside

FRAME_BYTES = 1442
"""Every frame of a train has this length; the controller's other probes are much shorter."""
_LEAST_BYTES = 1000
_CONTROLLER_NET, _CONTROLLER_MASK = 0xC613FFFC, 0xFFFFFFFC
"""198.19.255.252 to .255: the addresses that the controller measures from."""
_SO_ATTACH_FILTER = 26
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4
_PACKET_TYPE = 0xFFFFF004
"""SKF_AD_OFF + SKF_AD_PKTTYPE of linux/filter.h."""
_SOURCE, _DESTINATION = 26, 30
_LOAD_WORD, _LOAD_HALF, _LOAD_LENGTH, _AND = 0x20, 0x28, 0x80, 0x54
_IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x15, 0x35, 0x06


class TrainFrames:
    """Count the train frames that a host's interface has received (or, outgoing, sent back)."""

    def __init__(self, netns: str, interface: str, *, outgoing: bool) -> None:
        self._count = 0
        self._socket = make_inside(netns, lambda: _open(interface, outgoing=outgoing))

    def count_bytes(self) -> int:
        """Return how many bytes of trains there have been; reading resets the kernel's count, not ours."""
        seen, _ = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._count += seen
        return self._count * FRAME_BYTES

    def close(self) -> None:
        """Stop counting."""
        self._socket.close()


def _open(interface: str, *, outgoing: bool) -> socket.socket:
    program = _program(outgoing=outgoing)
    packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    address = struct.pack("@HP", len(program), ctypes.addressof(packed))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, address)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.bind((interface, _ETH_P_ALL))
    return sock


def _program(*, outgoing: bool) -> list[tuple[int, int, int, int]]:
    """Return the classic BPF: IPv4, in the wanted direction, from (to) the controller, long."""
    return [
        (_LOAD_WORD, 0, 0, _PACKET_TYPE),
        (_IF_EQUAL, 0, 8, _PACKET_OUTGOING) if outgoing else (_IF_EQUAL, 8, 0, _PACKET_OUTGOING),
        (_LOAD_HALF, 0, 0, 12),
        (_IF_EQUAL, 0, 6, 0x0800),
        (_LOAD_WORD, 0, 0, _DESTINATION if outgoing else _SOURCE),
        (_AND, 0, 0, _CONTROLLER_MASK),
        (_IF_EQUAL, 0, 3, _CONTROLLER_NET),
        (_LOAD_LENGTH, 0, 0, 0),
        (_IF_AT_LEAST, 0, 1, _LEAST_BYTES),
        (_RETURN, 0, 0, 14),
        (_RETURN, 0, 0, 0),
    ]
