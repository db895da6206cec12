"""Moving frames over a connected stream socket, plain or TLS: non-blocking calls, memory, waiting.

The socket is used non-blocking, because a TLS object must not be entered by two threads at once, and one
thread reads while others write. Every call into it is short and under one lock; waiting is done outside the
lock. What the bytes mean is `wire`'s business.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import Any, cast

import numpy as np

from workers import memory
from workers.errors import EndOfStream, WireError
from workers.wire import bulk
from workers.wire.frames import (
    BLOCK_BYTES,
    DEFAULT_MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    PREFIX,
    BodySink,
    Form,
    Frame,
    Header,
    Tensor,
    TensorSpec,
    decode_header,
    decode_prefix,
    encode,
)
from workers.wire.known_frames import KnownFrames
from workers.wire.pace import Pace, pace_of, round_trip_s

WRITE_BLOCK_BYTES = 1 << 18
READ_AHEAD_BYTES = 1 << 14
"""What is left to read of a frame and is less than this is read with whatever has come after it."""
RECORDS_AT_ONCE = 16
"""A TLS object takes and gives one record at a time, 16 KB at most; so many go before others may enter it."""
KEPT_BODY_BYTES = 1 << 20
BODIES_KEPT = 2
HELD_UP_RATIO = 0.1
"""A body whose sink took more than this share of the time to read it says nothing of the path."""
STALL_TIMEOUT_S = 60.0
"""How long a peer may stand still in the middle of a frame."""


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
        self._bodies = memory.Kept(most=BODIES_KEPT)
        self._known = KnownFrames()
        self._ahead = memoryview(bytearray(READ_AHEAD_BYTES))
        self._ahead_start = self._ahead_end = 0
        # Two threads must not wait on one poller: one is the receiving thread's, the other the senders'.
        self._readable, self._writable = self._poller(select.POLLIN), self._poller(select.POLLOUT)
        # SSLSocket.recv_into does the same with two more calls on the way, for each record of 16 KB.
        self._receive: Callable[[int, memoryview], int] = lambda size, view: sock.recv_into(view, size)
        self._pending: Callable[[], int] = lambda: 0
        if isinstance(sock, ssl.SSLSocket):
            self._receive = cast(Any, sock.read)  # with a buffer it answers a count, whatever the stubs say
            self._pending = sock.pending
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
            self._write_all(buffers, deadline_s)
        finally:
            self._write_lock.release()

    def send_at_once(self, frame: Frame) -> bool:
        """Send a small frame, of constant form, if that takes no waiting; tells whether it was sent.

        A socket that is writable has a third of its buffer free (tcp(7)), more than such a frame takes.

        Raises:
            EndOfStream, WireError: as `send`.
        """
        return self._write_at_once(b"".join(encode(frame, checked=False)))

    def send_form_at_once(self, form: Form) -> bool:
        """Send a form's frame as it is now, if that takes no waiting; tells whether it was sent.

        Raises:
            EndOfStream, WireError: as `send`.
        """
        return self._write_at_once(form.whole)

    def _write_at_once(self, whole: bytes | memoryview) -> bool:
        if len(whole) > READ_AHEAD_BYTES or not self._write_lock.acquire(blocking=False):
            return False
        try:
            if not self._writable.poll(0):
                return False
            self._write_small(whole)
        finally:
            self._write_lock.release()
        return True

    def receive(self, sink_of: Callable[[Header], BodySink | None] | None = None) -> Frame:
        """Wait for the next frame, however long it takes to begin.

        Where `sink_of` gives a sink, the body goes there, and the frame returned has no tensors.

        Raises:
            EndOfStream: the peer closed the connection between frames, or it was lost.
            WireError: the peer broke a rule, or stood still in the middle of a frame.
        """
        with self._read_lock:
            if self._ahead_start == self._ahead_end:
                self._read_ahead(first=True)
            if found := self._known.take(self._ahead, self._ahead_start, self._ahead_end):
                frame, size_bytes = found
                self._ahead_start += size_bytes
                return frame
            header, body_len = self._read_header()
            pace = pace_of(body_len)
            sink = sink_of(header) if sink_of is not None and header.tensors else None
            tensors: dict[str, Tensor] = {}
            if sink is None and body_len <= self._ahead_end - self._ahead_start:
                tensors = self._take_tensors(header.tensors)
            elif sink is None:
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

    def more_waiting(self) -> bool:
        """Tell whether something of a next frame has come; to be asked by the thread that receives."""
        return self._ahead_end > self._ahead_start or bool(self._pending() or self._readable.poll(0))

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

    def _read_header(self) -> tuple[Header, int]:
        """Read and check a prefix and its header; returns it and the bytes of the body."""
        prefix = bytearray(PREFIX.size)
        self._read(memoryview(prefix), first=True)
        header_len, body_len = decode_prefix(
            prefix, max_header_bytes=self.max_header_bytes, max_body_bytes=self.max_body_bytes
        )
        packed = bytearray(header_len)
        self._read(memoryview(packed))
        head = bytes(prefix + packed)
        header = self._known.header(head)
        if header is None:
            header = decode_header(packed, body_len=body_len, max_body_bytes=self.max_body_bytes)
            self._known.learn(head, header)
        return header, body_len

    def _take_tensors(self, specs: tuple[TensorSpec, ...]) -> dict[str, Tensor]:
        """Give the tensors of a body that was read ahead as a whole."""
        tensors = {}
        for spec in specs:
            count = math.prod(spec.shape)
            tensor = np.frombuffer(self._ahead, spec.dtype, count, self._ahead_start)
            tensors[spec.name] = tensor.reshape(spec.shape).copy()
            self._ahead_start += spec.size_bytes
        return tensors

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
        body = _made(lambda: self._bodies.get(body_len), body_len, what="body")
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
        size = len(view)
        filled = self._take_ahead(view, pace)
        while filled < size:
            if size - filled < READ_AHEAD_BYTES:
                self._read_ahead(first=first and filled == 0)
                filled += self._take_ahead(view[filled:], pace)
                continue
            try:
                with self._socket_lock:
                    filled, count = self._read_records(view, filled, pace)
            except (OSError, ValueError) as error:
                self._await_more(error, first=first and filled == 0)
                continue
            self._check_goes_on(count, first=first and filled == 0)

    def _read_ahead(self, *, first: bool) -> None:
        """Wait for more and read what has come; nothing that was read before may be left."""
        while True:
            try:
                with self._socket_lock:
                    count = self._receive(READ_AHEAD_BYTES, self._ahead)
                break
            except (OSError, ValueError) as error:
                self._await_more(error, first=first)
        self._check_goes_on(count, first=first)
        self.bytes_received += count
        self._ahead_start, self._ahead_end = 0, count

    def _await_more(self, error: Exception, *, first: bool) -> None:
        """Wait until a read that was not possible is; raises EndOfStream if it never will be."""
        match error:
            case ssl.SSLWantReadError() | BlockingIOError():
                self._wait(self._readable, None if first else self._stall_timeout_s)
            case ssl.SSLWantWriteError():
                self._wait(self._poller(select.POLLOUT), self._stall_timeout_s)
            case _:
                raise EndOfStream(self._ending(error)) from error

    def _check_goes_on(self, count: int, *, first: bool) -> None:
        """Raise if what came last was the end of the stream."""
        if count == 0:
            if first or self._closing:
                raise EndOfStream(self._ending(None))
            raise WireError("the connection ended in the middle of a frame")

    def _read_records(self, view: memoryview, filled: int, pace: Pace | None) -> tuple[int, int]:
        """Read into `view` from `filled` on; tells how far it is filled, and what came last (0: the end)."""
        start, count, size = filled, 1, len(view)
        receive, enough = self._receive, size - READ_AHEAD_BYTES
        try:
            for _ in range(RECORDS_AT_ONCE):
                count = receive(min(size - filled, BLOCK_BYTES), view[filled:])
                filled += count
                if count == 0 or filled > enough:
                    break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            if filled == start:
                raise
        self.bytes_received += filled - start
        if pace is not None:
            pace.add(filled - start, time.monotonic())
        return filled, count

    def _take_ahead(self, view: memoryview, pace: Pace | None) -> int:
        """Take what was read ahead into `view`; returns how much that was."""
        count = min(len(view), self._ahead_end - self._ahead_start)
        if count:
            view[:count] = self._ahead[self._ahead_start : self._ahead_start + count]
            self._ahead_start += count
            if pace is not None:
                pace.add(count, time.monotonic())
        return count

    def _write_all(self, buffers: list[memoryview], deadline_s: float | None) -> None:
        """Write a frame; whatever cuts it off ends the connection."""
        try:
            if self._broken:
                raise EndOfStream("the connection broke in the middle of an earlier frame")
            size_bytes = sum(map(len, buffers))
            with bulk.leaving(self._sock, size_bytes, most_s=self._patience_s(deadline_s)) as turn:
                for block in _blocks(buffers):
                    self._write(block, deadline_s, turn)
        except BaseException:
            self._broken = True
            self.shutdown()
            raise

    def _write_small(self, whole: bytes | memoryview) -> None:
        """Write a frame with one call if the socket, which is writable, takes it whole."""
        count = 0
        if not self._broken:
            with suppress(OSError, ValueError), self._socket_lock:
                count = self._sock.send(whole)
                self.bytes_sent += count
        if count < len(whole):
            self._write_all([memoryview(whole)[count:]], None)

    def _write(self, view: memoryview, deadline_s: float | None, turn: bulk.Turn) -> None:
        while len(view):
            try:
                with self._socket_lock:
                    for _ in range(RECORDS_AT_ONCE):
                        count = self._sock.send(view)
                        self.bytes_sent += count
                        view = view[count:]
                        if not len(view):
                            break
            except (ssl.SSLWantWriteError, BlockingIOError):
                if not turn.lasts_until(self._writable):
                    self._wait(self._writable, self._patience_s(deadline_s))
                continue
            except ssl.SSLWantReadError:
                turn.end()
                self._wait(self._poller(select.POLLIN), self._patience_s(deadline_s))
                continue
            except (OSError, ValueError) as error:
                raise EndOfStream(self._ending(error)) from error

    def _patience_s(self, deadline_s: float | None) -> float:
        if deadline_s is None:
            return self._stall_timeout_s
        return min(self._stall_timeout_s, max(deadline_s - time.monotonic(), 0.0))

    def _poller(self, event: int) -> select.poll:
        poller = select.poll()
        try:
            poller.register(self._sock, event)
        except ValueError as error:  # the file descriptor is gone
            raise EndOfStream(self._ending(error)) from error
        return poller

    def _wait(self, poller: select.poll, timeout_s: float | None) -> None:
        if not poller.poll(None if timeout_s is None else math.ceil(timeout_s * 1000)):
            raise WireError(f"the peer stood still in the middle of a frame for {timeout_s:.1f} s")

    def _ending(self, error: Exception | None) -> str:
        if self._closing:
            return "the connection was closed on this side"
        return f"the connection was lost: {error}" if error else "the peer closed the connection"


def _allocate(shape: tuple[int, ...], dtype: np.dtype[Any], *, what: str) -> Tensor:
    size_bytes = math.prod(shape) * dtype.itemsize
    make = np.empty if size_bytes < READ_AHEAD_BYTES else memory.empty
    return _made(lambda: make(shape, dtype), size_bytes, what=what)


def _made(make: Callable[[], Tensor], size_bytes: int, *, what: str) -> Tensor:
    try:
        return make()
    except MemoryError as error:
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
