"""Speak the kernel's packet queue protocol (nfnetlink_queue): the few messages that delaying packets needs.

Only ids of packets travel, never their content. Layouts: linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator

NETLINK_NETFILTER = 12
_SOL_NETLINK, _NETLINK_NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE, _SO_TIMESTAMP = 33, 29
_RECEIVE_BUFFER_BYTES = 128 << 20

_SUBSYSTEM = 3 << 8
_PACKET, _VERDICT, _CONFIG, _VERDICT_BATCH = (_SUBSYSTEM | kind for kind in range(4))
_NLMSG_ERROR = 2
_REQUEST, _ACK = 1, 4
_CFG_CMD, _CFG_PARAMS, _CFG_QUEUE_MAXLEN = 1, 2, 3
_COMMAND_BIND = 1
_COPY_META = 1
_ATTR_PACKET_HEADER, _ATTR_VERDICT_HEADER, _ATTR_TIMESTAMP = 1, 2, 4
_DROP, _ACCEPT = 0, 1

_HEADER = struct.Struct("=IHHII")
_GENERIC = struct.Struct(">BBH")
_VERDICT_MESSAGE = struct.Struct("=IHHIIBB2sHHII")
_BIG16, _BIG32 = struct.Struct(">H"), struct.Struct(">I")
_ATTRIBUTE = struct.Struct("=HH")
_LENGTH = struct.Struct("=I")
_TIMESTAMP = struct.Struct(">QQ")
_PACKET_BIG = socket.htons(_PACKET)
_TIMESTAMP_BIG = int.from_bytes(_ATTRIBUTE.pack(20, _ATTR_TIMESTAMP), "big")
_ATTRIBUTES_AT, _PACKET_HEADER_END = 20, 32

PACKETS_AT_ONCE = 128
_SLOT_BYTES = 256
"""Room for one message; without content they are well below this, and what is longer is cut by the kernel."""

_recvmmsg = ctypes.CDLL(None, use_errno=True).recvmmsg


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _MessageHeader(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_void_p),
        ("name_length", ctypes.c_uint32),
        ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _ManyHeader(ctypes.Structure):
    """One element of what recvmmsg takes: a header and, set by the kernel, the length received."""

    _fields_ = (("header", _MessageHeader), ("received", ctypes.c_uint32))


def _layout(stamp_at: int) -> struct.Struct:
    """Describe a slot whose message has its time stamp `stamp_at`: type, queue, id, attribute, stamp."""
    return struct.Struct(f">4xH12xH4xI{stamp_at - 28}xIQQ{_SLOT_BYTES - stamp_at - 20}x")


class QueueSocket:
    """A socket that is told of queued packets and says what becomes of them.

    Must be created in the network namespace whose packets it handles.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER_BYTES)
        # as long as any socket asks for time stamps, the kernel stamps packets when they arrive
        self._stamps = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._stamps.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)
        self._buffer = bytearray(PACKETS_AT_ONCE * _SLOT_BYTES)
        self._headers = self._receive_headers()
        self._layout = _layout(_PACKET_HEADER_END)
        self._verdicts: list[bytes] = []

    def _receive_headers(self) -> ctypes.Array[_ManyHeader]:
        """Point one message header at each slot of the buffer."""
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._buffer))
        slots = range(start, start + len(self._buffer), _SLOT_BYTES)
        self._vectors = (_Vector * PACKETS_AT_ONCE)(*((slot, _SLOT_BYTES) for slot in slots))
        headers = (_ManyHeader * PACKETS_AT_ONCE)()
        for item, vector in zip(headers, self._vectors, strict=True):
            item.header.vectors, item.header.vector_count = ctypes.pointer(vector), 1
        return headers

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close; the kernel drops what is still queued."""
        self._socket.close()
        self._stamps.close()

    def bind(self, queue: int, *, max_packets: int) -> None:
        """Take over `queue`: ids only, at most `max_packets` waiting.

        Raises:
            OSError: the queue is taken (EBUSY) or this process may not (EPERM).
        """
        self._configure(queue, _CFG_CMD, struct.pack(">BxH", _COMMAND_BIND, socket.AF_INET))
        self._configure(queue, _CFG_PARAMS, struct.pack(">IB", 0, _COPY_META))
        self._configure(queue, _CFG_QUEUE_MAXLEN, _BIG32.pack(max_packets))

    def _configure(self, queue: int, attribute: int, value: bytes) -> None:
        padded = value + bytes(-len(value) % 4)
        body = _GENERIC.pack(0, 0, queue) + _ATTRIBUTE.pack(4 + len(value), attribute) + padded
        header = _HEADER.pack(_HEADER.size + len(body), _CONFIG, _REQUEST | _ACK, 0, 0)
        self._socket.setblocking(True)
        self._socket.settimeout(5)
        self._socket.send(header + body)
        while True:
            answer = self._socket.recv(65536)
            _, kind, _, _, _ = _HEADER.unpack_from(answer)
            if kind == _NLMSG_ERROR:
                break
        self._socket.setblocking(False)
        (code,) = struct.unpack_from("=i", answer, _HEADER.size)
        if code:
            raise OSError(-code, f"packet queue {queue}: the kernel refuses attribute {attribute}")

    def receive(self) -> Iterator[tuple[int, int, float | None]]:
        """Take what waits, at most `PACKETS_AT_ONCE`: queue, packet id and arrival of each packet, in order.

        Arrival is in Unix seconds, None where the kernel gave no stamp.
        """
        count = _recvmmsg(self._socket.fileno(), self._headers, PACKETS_AT_ONCE, socket.MSG_DONTWAIT, None)
        if count <= 0:
            return
        messages = memoryview(self._buffer)[: count * _SLOT_BYTES]
        for number, message in enumerate(self._layout.iter_unpack(messages)):
            kind, queue, packet, attribute, seconds, micros = message
            if kind != _PACKET_BIG:
                continue
            if attribute == _TIMESTAMP_BIG:
                yield queue, packet, seconds + micros * 1e-6
            else:
                yield queue, packet, self._find_stamp(number * _SLOT_BYTES)

    def _find_stamp(self, start: int) -> float | None:
        """Find the time stamp among a message's attributes, and expect it there from now on."""
        (size,) = _LENGTH.unpack_from(self._buffer, start)
        at = _ATTRIBUTES_AT
        while at + 20 <= min(size, _SLOT_BYTES):
            length, kind = _ATTRIBUTE.unpack_from(self._buffer, start + at)
            if kind == _ATTR_TIMESTAMP and length == 20:
                self._layout = _layout(at)
                seconds, micros = _TIMESTAMP.unpack_from(self._buffer, start + at + 4)
                return float(seconds + micros * 1e-6)
            at += max(4, (length + 3) & ~3)
        return None

    def accept_up_to(self, queue: int, packet: int) -> None:
        """Let all packets of `queue` with ids up to `packet` go on, at the next `flush`."""
        self._verdicts.append(_verdict(_VERDICT_BATCH, queue, _ACCEPT, packet))

    def drop(self, queue: int, packet: int) -> None:
        """Drop one packet, at the next `flush`."""
        self._verdicts.append(_verdict(_VERDICT, queue, _DROP, packet))

    def flush(self) -> None:
        """Send the verdicts given since the last time."""
        if self._verdicts:
            self._socket.send(b"".join(self._verdicts))
            self._verdicts.clear()


def _verdict(kind: int, queue: int, verdict: int, packet: int) -> bytes:
    return _VERDICT_MESSAGE.pack(
        _VERDICT_MESSAGE.size, kind, _REQUEST, 0, 0, 0, 0, _BIG16.pack(queue), 12, _ATTR_VERDICT_HEADER,
        socket.htonl(verdict), socket.htonl(packet),
    )  # fmt: skip


def overflows(text: str) -> dict[int, int]:
    """Read /proc/net/netfilter/nfnetlink_queue: packets per queue dropped by the kernel for lack of room."""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8:
            found[int(fields[0])] = int(fields[5]) + int(fields[6])
    return found
