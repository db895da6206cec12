"""Speak the kernel's packet queue protocol (nfnetlink_queue): the few messages that delaying packets needs.

Only ids of packets travel, never their content. Layouts: linux/netfilter/nfnetlink_queue.h.
"""

from __future__ import annotations

import socket
import struct

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
_QUEUE_AND_ID = struct.Struct(">H4xI")
_ATTRIBUTE = struct.Struct("=HH")
_TIMESTAMP = struct.Struct(">QQ")
_TYPE = struct.Struct("=H")
_TYPE_AT, _QUEUE_AT, _ATTRIBUTES_AT = 4, 18, 20
_SMALLEST_PACKET_BYTES = 32


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
        self._buffer = bytearray(65536)
        self._stamp_at: dict[int, int] = {}
        self._verdicts: list[bytes] = []

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

    def receive(self) -> tuple[int, int, float | None] | None:
        """Return queue, packet id and arrival (Unix seconds; None where the kernel gave no stamp) of one packet.

        None when no packet is waiting.
        """
        buffer = self._buffer
        while True:
            try:
                size = self._socket.recv_into(buffer)
            except BlockingIOError:
                return None
            if size >= _SMALLEST_PACKET_BYTES and _TYPE.unpack_from(buffer, _TYPE_AT)[0] == _PACKET:
                break
        queue, packet = _QUEUE_AND_ID.unpack_from(buffer, _QUEUE_AT)
        at = self._stamp_at.get(size)
        if at is None or _ATTRIBUTE.unpack_from(buffer, at) != (20, _ATTR_TIMESTAMP):
            at = self._find_stamp(size)
            if at is None:
                return queue, packet, None
        seconds, micros = _TIMESTAMP.unpack_from(buffer, at + 4)
        return queue, packet, seconds + micros * 1e-6

    def _find_stamp(self, size: int) -> int | None:
        """Find the time stamp among the attributes; messages of one size mostly have it in one place."""
        at = _ATTRIBUTES_AT
        while at + 4 <= size:
            length, kind = _ATTRIBUTE.unpack_from(self._buffer, at)
            if kind == _ATTR_TIMESTAMP and length == 20 and at + 20 <= size:
                self._stamp_at[size] = at
                return at
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
    """Read /proc/net/netfilter/nfnetlink_queue: packets per queue that the kernel dropped for lack of room."""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 8:
            found[int(fields[0])] = int(fields[5]) + int(fields[6])
    return found
