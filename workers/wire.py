"""Frames on a stream socket: docs/wire_protocol.md, version 1.

A frame is a fixed prefix, a msgpack header and the raw bytes of its tensors. Everything that a peer claims
is checked before memory is allocated for it. The module loads without torch: tensors are numpy arrays.

The socket may be plain or TLS; it is used non-blocking, because a TLS object must not be entered by two
threads at once, and one thread reads while others write. Every call into it is short and under one lock;
waiting is done outside the lock.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, cast

import msgpack
import numpy as np

from workers.errors import EndOfStream, WireError
from workers.pace import Pace, Receipt, pace_of, round_trip_s

MAGIC = b"UT"
VERSION = 1
PREFIX = struct.Struct(">2sBBIQ")
BLOCK_BYTES = 1 << 20
WRITE_BLOCK_BYTES = 1 << 18
READS_AT_ONCE = 8
"""A TLS object gives one record at a time, 16 KB at most; so many are read before others may enter it."""
KEPT_BODY_BYTES = 1 << 20
BODIES_KEPT = 2
HELD_UP_RATIO = 0.1
"""A body whose sink took more than this share of the time to read it says nothing of the path."""
_UNREFERENCED = 2  # the list and the call that counts
MAX_HEADER_BYTES = 16 << 20
DEFAULT_MAX_BODY_BYTES = 1 << 30
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 256
MAX_LIST_ITEMS = 1 << 17
MAX_NUMBER = 2**63 - 1
STALL_TIMEOUT_S = 60.0
"""How long a peer may stand still in the middle of a frame."""

DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "i64": np.dtype("<i8"),
    "i32": np.dtype("<i4"),
    "i16": np.dtype("<i2"),
    "u8": np.dtype("u1"),
    "i8": np.dtype("i1"),
}
_DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}
_HEADER_KEYS = {"kind", "id", "reply_to", "tensors", "fields"}

Tensor = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: `fields` are msgpack values with string keys, `tensors` arrays by name.

    A request has an `id`, a reply the `reply_to` of its request, a notification neither. `receipt` is how
    fast a received one arrived, where it was large enough to tell.
    """

    kind: str
    _: KW_ONLY
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    id: int | None = None
    reply_to: int | None = None
    receipt: Receipt | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """What the header says of one tensor."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes that the tensor takes on the wire."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """A checked header: the frame without its tensors' values."""

    kind: str
    fields: Mapping[str, Any]
    tensors: tuple[TensorSpec, ...]
    id: int | None
    reply_to: int | None


BodySink = Callable[[Header], Iterable[memoryview]]
"""Says where a frame's body goes, piece by piece: writable buffers whose lengths add up to the body's.

A piece is filled before the next is asked for, so a generator can look at each as it has come, and wait:
nothing is read meanwhile, which slows the peer down. It is closed if the body does not come to its end.
"""


def dropped(header: Header) -> Iterator[memoryview]:
    """Give a body no room: it is read, so that the stream stays in step, and forgotten."""
    left = sum(spec.size_bytes for spec in header.tensors)
    scratch = memoryview(bytearray(min(left, BLOCK_BYTES)))
    while left > 0:
        piece = scratch[: min(left, BLOCK_BYTES)]
        left -= len(piece)
        yield piece


def encode(frame: Frame) -> list[memoryview]:
    """Give the buffers whose concatenation is the frame; the tensors' bytes are not copied.

    Raises:
        WireError: the frame cannot be put on the wire (a dtype, a value, a size).
    """
    arrays = [(name, _as_sendable(name, tensor)) for name, tensor in frame.tensors.items()]
    header: dict[str, Any] = {"kind": frame.kind, "fields": dict(frame.fields)}
    if frame.id is not None:
        header["id"] = frame.id
    if frame.reply_to is not None:
        header["reply_to"] = frame.reply_to
    if arrays:
        header["tensors"] = [[name, _DTYPE_CODES[array.dtype], list(array.shape)] for name, array in arrays]
    try:
        packed = msgpack.packb(header, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise WireError(f"frame {frame.kind!r}: its fields cannot be packed: {error}") from error
    body_len = sum(array.nbytes for _, array in arrays)
    if len(packed) > MAX_HEADER_BYTES:
        raise WireError(f"frame {frame.kind!r}: header of {len(packed)} bytes, at most {MAX_HEADER_BYTES}")
    _checked_header(header, body_len=body_len, max_body_bytes=max(body_len, DEFAULT_MAX_BODY_BYTES))
    prefix = PREFIX.pack(MAGIC, VERSION, 0, len(packed), body_len)
    buffers = [memoryview(prefix + packed)]
    buffers += [array.reshape(-1).view(np.uint8).data for _, array in arrays if array.size]
    return buffers


def _as_sendable(name: str, tensor: Tensor) -> Tensor:
    array = np.asarray(tensor, order="C")
    little = array.dtype.newbyteorder("<")
    if little not in _DTYPE_CODES:
        known = ", ".join(DTYPES)
        raise WireError(
            f"tensor {name!r}: dtype {array.dtype} has no place on the wire; convert to one of {known}"
        )
    return array.astype(little, copy=False)


def decode_prefix(
    prefix: bytes | bytearray, *, max_header_bytes: int, max_body_bytes: int
) -> tuple[int, int]:
    """Give (header_len, body_len) of a frame's first 16 bytes, checked against the limits."""
    magic, version, flags, header_len, body_len = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise WireError(f"magic is {magic!r}, not {MAGIC!r}: the peer does not speak this protocol")
    if version != VERSION:
        raise WireError(f"protocol version {version}, this side speaks {VERSION}")
    if flags != 0:
        raise WireError(f"flags are {flags:#x}, version {VERSION} knows none")
    if header_len > max_header_bytes:
        raise WireError(f"header of {header_len} bytes announced, this connection takes {max_header_bytes}")
    if body_len > max_body_bytes:
        raise WireError(f"body of {body_len} bytes announced, this connection takes {max_body_bytes}")
    return header_len, body_len


def decode_header(packed: bytes | bytearray, *, body_len: int, max_body_bytes: int) -> Header:
    """Unpack and check a header; nothing is allocated for the tensors.

    Raises:
        WireError: naming the rule that the header breaks.
    """
    try:
        header = msgpack.unpackb(
            packed,
            raw=False,
            strict_map_key=True,
            max_array_len=MAX_LIST_ITEMS,
            max_map_len=MAX_LIST_ITEMS,
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireError(f"header is not the msgpack that the protocol uses: {error}") from error
    return _checked_header(header, body_len=body_len, max_body_bytes=max_body_bytes)


def _refuse_extension(code: int, _data: bytes) -> None:
    raise ValueError(f"extension type {code}")


def _checked_header(header: object, *, body_len: int, max_body_bytes: int) -> Header:
    if not isinstance(header, dict):
        raise WireError(f"header is a {type(header).__name__}, not a map")
    if unknown := {str(key) for key in header} - _HEADER_KEYS:
        raise WireError(f"header has unknown keys: {', '.join(sorted(unknown))}")
    kind = _checked_name(header.get("kind"), "kind")
    fields = header.get("fields", {})
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise WireError(f"frame {kind!r}: fields must be a map with string keys")
    number, reply_to = _checked_number(header, "id"), _checked_number(header, "reply_to")
    if number is not None and reply_to is not None:
        raise WireError(f"frame {kind!r}: has both id and reply_to")
    specs = _checked_specs(header.get("tensors", []), max_body_bytes=max_body_bytes)
    if (announced := sum(spec.size_bytes for spec in specs)) != body_len:
        raise WireError(f"frame {kind!r}: its tensors take {announced} bytes, but the body has {body_len}")
    return Header(kind=kind, fields=fields, tensors=specs, id=number, reply_to=reply_to)


def _checked_name(name: object, what: str) -> str:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise WireError(f"{what} must be a string of 1 to {MAX_NAME_CHARACTERS} characters")
    return name


def _is_whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _checked_number(header: dict[str, Any], key: str) -> int | None:
    number = header.get(key)
    if number is None:
        return None
    if not _is_whole(number) or not 0 < number <= MAX_NUMBER:
        raise WireError(f"{key} must be a whole number above 0")
    return int(number)


def _checked_specs(items: object, *, max_body_bytes: int) -> tuple[TensorSpec, ...]:
    if not isinstance(items, list) or len(items) > MAX_TENSORS:
        raise WireError(f"tensors must be a list of at most {MAX_TENSORS}")
    specs = tuple(_checked_spec(item, max_body_bytes=max_body_bytes) for item in items)
    if len({spec.name for spec in specs}) != len(specs):
        raise WireError("two tensors have the same name")
    return specs


def _checked_spec(item: object, *, max_body_bytes: int) -> TensorSpec:
    if not isinstance(item, list) or len(item) != 3:
        raise WireError("a tensor must be announced as [name, dtype, shape]")
    name = _checked_name(item[0], "a tensor's name")
    if not isinstance(item[1], str) or item[1] not in DTYPES:
        raise WireError(f"tensor {name!r}: unknown dtype; known are {', '.join(DTYPES)}")
    shape = item[2]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        raise WireError(f"tensor {name!r}: its shape must be a list of at most {MAX_DIMENSIONS}")
    if not all(_is_whole(dimension) and dimension >= 0 for dimension in shape):
        raise WireError(f"tensor {name!r}: its shape must hold whole numbers, none negative")
    dtype = DTYPES[item[1]]
    # An empty tensor must not smuggle in dimensions that no array can have.
    if math.prod(max(dimension, 1) for dimension in shape) * dtype.itemsize > max(max_body_bytes, 8):
        raise WireError(f"tensor {name!r}: larger than the {max_body_bytes} bytes of this connection")
    return TensorSpec(name=name, dtype=dtype, shape=tuple(shape))


class FrameSocket:
    """Sends and receives frames on a connected stream socket, plain or TLS.

    Several threads may send, frames never mix; one thread at a time receives. `max_body_bytes` and
    `max_header_bytes` may be changed between frames, as when a peer has shown who it is.
    """

    def __init__(
        self,
        sock: socket.socket,
        max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
        *,
        max_header_bytes: int = MAX_HEADER_BYTES,
        stall_timeout_s: float = STALL_TIMEOUT_S,
    ) -> None:
        sock.setblocking(False)
        self.max_body_bytes = max_body_bytes
        self.max_header_bytes = max_header_bytes
        self.bytes_sent = 0
        self.bytes_received = 0
        self._sock = sock
        self._stall_timeout_s = stall_timeout_s
        self._closing = False
        self._broken = False
        self._bodies = _Bodies()
        # SSLSocket.recv_into does the same with two more calls on the way, for each record of 16 KB.
        self._receive_into: Callable[[memoryview, int], int] = sock.recv_into
        if isinstance(sock, ssl.SSLSocket):
            secured = sock
            # With a buffer it answers a count, whatever the stubs say.
            self._receive_into = lambda view, size: cast(int, secured.read(size, view))
        self._socket_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()

    @property
    def broken(self) -> bool:
        """Tell whether a frame was cut off in sending, after which nothing can be sent."""
        return self._broken

    def send(self, frame: Frame, *, timeout_s: float | None = None) -> None:
        """Send one frame.

        Raises:
            TimeoutError: other frames kept the socket for `timeout_s`; nothing was sent.
            EndOfStream: the connection is closed.
            WireError: the frame cannot be put on the wire, or the peer took it too slowly. In the second
                case the stream is broken and the socket is shut down.
        """
        buffers = encode(frame)
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        if not self._write_lock.acquire(timeout=-1 if timeout_s is None else max(timeout_s, 0.0)):
            raise TimeoutError(f"frame {frame.kind!r}: other frames kept the connection for {timeout_s:g} s")
        try:
            if self._broken:
                raise EndOfStream("the connection broke in the middle of an earlier frame")
            for block in _blocks(buffers):
                self._write(block, deadline_s)
        except BaseException:
            self._broken = True
            self.shutdown()
            raise
        finally:
            self._write_lock.release()

    def receive(self, sink_of: Callable[[Header], BodySink | None] | None = None) -> Frame:
        """Wait for the next frame, however long it takes to begin.

        Where `sink_of` gives a sink, the body goes there, and the frame returned has no tensors.

        Raises:
            EndOfStream: the peer closed the connection between frames, or it was lost.
            WireError: the peer broke a rule, or stood still in the middle of a frame.
        """
        with self._read_lock:
            prefix = bytearray(PREFIX.size)
            self._read(memoryview(prefix), first=True)
            header_len, body_len = decode_prefix(
                prefix, max_header_bytes=self.max_header_bytes, max_body_bytes=self.max_body_bytes
            )
            packed = bytearray(header_len)
            self._read(memoryview(packed))
            header = decode_header(packed, body_len=body_len, max_body_bytes=self.max_body_bytes)
            pace = pace_of(body_len)
            sink = sink_of(header) if sink_of is not None and header.tensors else None
            tensors: dict[str, Tensor] = {}
            if sink is None:
                tensors = self._read_tensors(header.tensors, body_len, pace)
            elif not self._read_into(sink, header, body_len, pace):
                pace = None
            receipt = pace.receipt(time.monotonic(), round_trip_s(self._sock)) if pace is not None else None
        return Frame(
            header.kind,
            fields=header.fields,
            tensors=tensors,
            id=header.id,
            reply_to=header.reply_to,
            receipt=receipt,
        )

    def shutdown(self) -> None:
        """End the connection: whoever sends or receives on it stops with EndOfStream."""
        self._closing = True
        # The base class's method: SSLSocket.shutdown would drop the TLS object under the other threads.
        with suppress(OSError):
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and free the socket; waits for threads that are inside to leave."""
        self.shutdown()
        with self._write_lock, self._read_lock, self._socket_lock:
            self._sock.close()

    def _read_into(self, sink: BodySink, header: Header, body_len: int, pace: Pace | None) -> bool:
        """Have `sink` take the body; tells whether its pace was the path's, not the sink's own."""
        read, reading_s, started_s = 0, 0.0, time.monotonic()
        pieces = iter(sink(header))
        try:
            for piece in pieces:
                if read + len(piece) > body_len:
                    raise ValueError(f"a sink wants {read + len(piece)} bytes or more of {body_len}")
                began_s = time.monotonic()
                self._read(piece, pace=pace)
                reading_s += time.monotonic() - began_s
                read += len(piece)
            if read != body_len:
                raise ValueError(f"a sink took {read} of {body_len} bytes")
        finally:
            if isinstance(pieces, Generator):
                pieces.close()
        return time.monotonic() - started_s - reading_s <= HELD_UP_RATIO * reading_s

    def _read_tensors(
        self, specs: tuple[TensorSpec, ...], body_len: int, pace: Pace | None
    ) -> dict[str, Tensor]:
        """Read a body; a large one whose tensors all have items of one size comes in one piece."""
        one_size = len({spec.dtype.itemsize for spec in specs}) == 1
        if body_len < KEPT_BODY_BYTES or not one_size:
            return {spec.name: self._read_tensor(spec, pace) for spec in specs}
        body = self._bodies.get(body_len)
        tensors, start = {}, 0
        for spec in specs:
            part = body[start : start + spec.size_bytes]
            tensors[spec.name] = part.view(spec.dtype).reshape(spec.shape)
            start += spec.size_bytes
        self._read(body.data, pace=pace)
        return tensors

    def _read_tensor(self, spec: TensorSpec, pace: Pace | None) -> Tensor:
        tensor = _allocate(spec.shape, spec.dtype, what=f"tensor {spec.name!r}")
        if tensor.size:
            self._read(tensor.reshape(-1).view(np.uint8).data, pace=pace)
        return tensor

    def _read(self, view: memoryview, *, first: bool = False, pace: Pace | None = None) -> None:
        """Fill `view`; `first`: it is the start of a frame, so waiting and an ending are no faults."""
        filled, size = 0, len(view)
        while filled < size:
            count = 1
            try:
                with self._socket_lock:
                    for _ in range(READS_AT_ONCE):
                        count = self._receive_into(view[filled:], min(size - filled, BLOCK_BYTES))
                        filled += count
                        self.bytes_received += count
                        if pace is not None:
                            pace.add(count, time.monotonic())
                        if count == 0 or filled == size:
                            break
            except (ssl.SSLWantReadError, BlockingIOError):
                self._wait(select.POLLIN, None if first and filled == 0 else self._stall_timeout_s)
                continue
            except ssl.SSLWantWriteError:
                self._wait(select.POLLOUT, self._stall_timeout_s)
                continue
            except (OSError, ValueError) as error:
                raise EndOfStream(self._ending(error)) from error
            if count == 0:
                if (first and filled == 0) or self._closing:
                    raise EndOfStream(self._ending(None))
                raise WireError("the connection ended in the middle of a frame")

    def _write(self, view: memoryview, deadline_s: float | None) -> None:
        while len(view):
            try:
                with self._socket_lock:
                    count = self._sock.send(view)
            except (ssl.SSLWantWriteError, BlockingIOError):
                self._wait(select.POLLOUT, self._patience_s(deadline_s))
                continue
            except ssl.SSLWantReadError:
                self._wait(select.POLLIN, self._patience_s(deadline_s))
                continue
            except (OSError, ValueError) as error:
                raise EndOfStream(self._ending(error)) from error
            self.bytes_sent += count
            view = view[count:]

    def _patience_s(self, deadline_s: float | None) -> float:
        if deadline_s is None:
            return self._stall_timeout_s
        return min(self._stall_timeout_s, max(deadline_s - time.monotonic(), 0.0))

    def _wait(self, event: int, timeout_s: float | None) -> None:
        poller = select.poll()
        try:
            poller.register(self._sock, event)
        except ValueError as error:  # the file descriptor is gone
            raise EndOfStream(self._ending(error)) from error
        if not poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)):
            raise WireError(f"the peer stood still in the middle of a frame for {timeout_s:.1f} s")

    def _ending(self, error: Exception | None) -> str:
        if self._closing:
            return "the connection was closed on this side"
        return f"the connection was lost: {error}" if error else "the peer closed the connection"


class _Bodies:
    """Memory for large bodies: from the third of one size on, what nobody holds any more is used again.

    Fresh memory costs as much as receiving into it, since the kernel clears it first.
    """

    def __init__(self) -> None:
        self._last_size = -1
        self._kept: list[Tensor] = []

    def get(self, size_bytes: int) -> Tensor:
        """Give writable memory that nothing else refers to."""
        repeated, self._last_size = size_bytes == self._last_size, size_bytes
        if not repeated:
            self._kept.clear()
        for index in range(len(self._kept)):
            if sys.getrefcount(self._kept[index]) == _UNREFERENCED:
                return self._kept[index]
        body = _allocate((size_bytes,), np.dtype(np.uint8), what="body")
        if repeated and len(self._kept) < BODIES_KEPT:
            self._kept.append(body)
        return body


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any], *, what: str) -> Tensor:
    try:
        return np.empty(shape, dtype=dtype)
    except MemoryError as error:
        size_bytes = math.prod(shape) * dtype.itemsize
        raise WireError(f"{what}: no memory for its {size_bytes} bytes") from error


def _blocks(buffers: list[memoryview]) -> Iterator[memoryview]:
    """Join small buffers and cut large ones, so that each write is worth its call and none is too long."""
    small = bytearray()
    for buffer in buffers:
        if len(buffer) <= WRITE_BLOCK_BYTES // 16:
            small += buffer
            if len(small) < WRITE_BLOCK_BYTES:
                continue
            buffer = memoryview(bytes(small))
            small.clear()
        elif small:
            yield memoryview(bytes(small))
            small.clear()
        for start in range(0, len(buffer), WRITE_BLOCK_BYTES):
            yield buffer[start : start + WRITE_BLOCK_BYTES]
    if small:
        yield memoryview(bytes(small))
