"""Channels: requests, replies and notifications over one framed connection.

Used by both sides, whoever opened the connection (see `connections`). Each channel has a reader thread;
notifications are handled one after another in a second thread, each request in a short-lived thread of its
own, so that no handler can hold up the reader.
"""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from workers.errors import (
    ChannelClosed,
    EndOfStream,
    LinkError,
    RemoteError,
    RequestRefused,
    RequestTimeout,
    WireError,
    WorkersError,
)
from workers.wire.frame_socket import FrameSocket
from workers.wire.frames import BodySink, Form, Frame, Header, Tensor, dropped

logger = logging.getLogger(__name__)

REPLY = "reply"
ERROR = "error"
DEFAULT_TIMEOUT_S = 30.0
MAX_REQUESTS_SERVED = 64
"""Requests of one peer that are served at a time; more are answered `busy`."""
MAX_NOTIFICATIONS_WAITING = 4096
NOTIFICATION_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a handler answers to a request."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


Handler = Callable[["Channel", Frame], Reply | None]
OnClose = Callable[["Channel", str], None]


class Channel:
    """One connection to a peer on which both sides ask and answer.

    `handler(channel, frame)` serves what the peer sends: its Reply (None: an empty one) answers a request;
    RequestRefused becomes an error reply. Notifications are handled in the order they came; those of a kind
    in `inline_kinds` straight in the reader thread, which is for handlers that only put something in a
    queue. A handler that raises WireError closes the channel: the peer broke the protocol.
    `on_close(channel, reason)` is called once, when the channel has ended for whatever reason.
    `peer_name` and `peer_serial` are of the peer's certificate, `peer_address` is for the log.
    """

    def __init__(
        self,
        frame_socket: FrameSocket,
        *,
        peer_name: str | None,
        handler: Handler | None = None,
        on_close: OnClose | None = None,
        inline_kinds: Collection[str] = (),
        peer_address: str = "",
        peer_serial: int | None = None,
        start: bool = True,
    ) -> None:
        self.peer_name = peer_name
        self.peer_serial = peer_serial
        self.peer_address = peer_address
        self._socket = frame_socket
        self._handler = handler or _refuse_everything
        self._on_close = on_close
        self._inline_kinds = frozenset(inline_kinds)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._waiting: dict[int, tuple[Future[Frame], BodySink | None]] = {}
        self._closed_reason: str | None = None
        self._ended = threading.Event()
        self._serving = threading.BoundedSemaphore(MAX_REQUESTS_SERVED)
        self._notifications: queue.Queue[Frame | None] = queue.Queue(MAX_NOTIFICATIONS_WAITING)
        self._reader = threading.Thread(target=self._read_all, name=f"read {self}", daemon=True)
        if start:
            self.start()

    def __str__(self) -> str:
        return f"{self.peer_name or 'anonymous'}@{self.peer_address or '?'}"

    def start(self) -> None:
        """Begin to read; for a channel that was made with `start=False`, once."""
        self._reader.start()

    @property
    def closed(self) -> bool:
        """Tell whether the channel has ended or is about to."""
        return self._closed_reason is not None

    @property
    def closed_reason(self) -> str | None:
        """Give why the channel ended, None while it is open."""
        return self._closed_reason

    @property
    def bytes_sent(self) -> int:
        """Count the bytes sent so far, frames' prefixes and headers included."""
        return self._socket.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Count the bytes received so far, frames' prefixes and headers included."""
        return self._socket.bytes_received

    def request(
        self,
        kind: str,
        fields: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        into: BodySink | None = None,
    ) -> Frame:
        """Ask the peer and wait for its reply; `timeout_s` covers sending, too.

        With `into` the reply's tensors go there as they come, and the frame returned has none.

        Raises:
            RemoteError: the peer answered with an error.
            RequestTimeout: no answer in time. If the time ran out within the sending of this frame, the
                stream is broken and the channel is closed.
            ChannelClosed: the channel is closed, or was before the answer came.
            WireError: the message cannot be put on the wire; nothing was sent.
        """
        deadline_s = time.monotonic() + timeout_s
        number = next(self._numbers)
        future: Future[Frame] = Future()
        with self._lock:
            if self._closed_reason is not None:
                raise ChannelClosed(f"{self}: {self._closed_reason}")
            self._waiting[number] = future, into
        try:
            self._send(Frame(kind, fields=fields or {}, tensors=tensors or {}, id=number), timeout_s)
            reply = future.result(max(deadline_s - time.monotonic(), 0.0))
        except TimeoutError as error:
            raise RequestTimeout(f"{self}: no reply to {kind!r} within {timeout_s:g} s") from error
        finally:
            with self._lock:
                self._waiting.pop(number, None)
        if reply.kind == ERROR:
            raise RemoteError(str(reply.fields.get("code", "unknown")), str(reply.fields.get("detail", "")))
        return reply

    def notify(
        self,
        kind: str,
        fields: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        """Tell the peer something; returns when the frame is handed to the kernel.

        Raises ChannelClosed, RequestTimeout and WireError as `request` does.
        """
        self._check_open()
        try:
            self._send(Frame(kind, fields=fields or {}, tensors=tensors or {}), timeout_s)
        except TimeoutError as error:
            raise RequestTimeout(f"{self}: {kind!r} could not be sent within {timeout_s:g} s") from error

    def notify_at_once(
        self, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> bool:
        """Tell the peer something small if that takes no waiting; tells whether it was sent.

        Raises ChannelClosed, RequestTimeout and WireError as `notify` does.
        """
        self._check_open()
        frame = Frame(kind, fields=fields, tensors=tensors or {})
        try:
            return self._socket.send_at_once(frame)
        except (EndOfStream, WireError) as error:
            self._end_if_broken(kind, error)
            raise

    def send_form_at_once(self, form: Form) -> bool:
        """Tell the peer what a form says now, if that takes no waiting; tells whether it was sent.

        Raises ChannelClosed, RequestTimeout and WireError as `notify` does.
        """
        self._check_open()
        try:
            return self._socket.send_form_at_once(form)
        except (EndOfStream, WireError) as error:
            self._end_if_broken(form.kind, error)
            raise

    def close(self, reason: str = "closed on this side") -> None:
        """End the channel; requests that wait fail with ChannelClosed. May be called from anywhere, again."""
        with self._lock:
            if self._closed_reason is None:
                self._closed_reason = reason
            unstarted = self._reader.ident is None
        self._socket.shutdown()
        if unstarted:
            self._finish()

    def more_waiting(self) -> bool:
        """Tell whether more has come than was handled; for the handler of an inline kind."""
        return self._socket.more_waiting()

    def wait_closed(self, timeout_s: float | None = None) -> bool:
        """Wait until the channel has ended and `on_close` has run; tells whether it has."""
        return self._ended.wait(timeout_s)

    def _send(self, frame: Frame, timeout_s: float) -> None:
        try:
            self._socket.send(frame, timeout_s=timeout_s)
        except (EndOfStream, WireError) as error:
            self._end_if_broken(frame.kind, error)
            raise

    def _check_open(self) -> None:
        if self._closed_reason is not None:
            raise ChannelClosed(f"{self}: {self._closed_reason}")

    def _end_if_broken(self, kind: str, error: EndOfStream | WireError) -> None:
        """Close the channel if sending broke the stream, and say so in the link's own terms."""
        if isinstance(error, EndOfStream):
            self.close(str(error))
            raise ChannelClosed(f"{self}: {self._closed_reason}") from error
        if self._socket.broken:
            self.close(str(error))
            raise RequestTimeout(f"{self}: {kind!r}: {error}") from error

    def _read_all(self) -> None:
        notifier = threading.Thread(target=self._notify_all, name=f"notify {self}", daemon=True)
        notifier.start()
        try:
            while True:
                self._dispatch(self._socket.receive(self._sink_of))
        except EndOfStream as error:
            self.close(str(error))
        except WireError as error:
            logger.warning("%s broke the protocol, connection closed: %s", self, error)
            self.close(f"the peer broke the protocol: {error}")
        except Exception as error:
            logger.exception("%s: reading failed", self)
            self.close(f"reading failed: {error}")
        finally:
            self._finish()

    def _finish(self) -> None:
        self._socket.close()
        with self._lock:
            waiting = list(self._waiting.values())
            self._waiting.clear()
        for future, _ in waiting:
            future.set_exception(ChannelClosed(f"{self}: {self._closed_reason}"))
        with suppress(queue.Full):
            self._notifications.put_nowait(None)
        try:
            if self._on_close is not None:
                self._on_close(self, self._closed_reason or "")
        except Exception:
            logger.exception("%s: on_close failed", self)
        finally:
            self._ended.set()

    def _dispatch(self, frame: Frame) -> None:
        if frame.reply_to is not None:
            self._settle(frame)
        elif frame.id is not None:
            self._serve_apart(frame)
        elif frame.kind in self._inline_kinds:
            self._take_notification(frame)
        else:
            try:
                self._notifications.put(frame, timeout=NOTIFICATION_PATIENCE_S)
            except queue.Full:
                raise WireError(
                    f"{MAX_NOTIFICATIONS_WAITING} notifications wait and none was handled "
                    f"for {NOTIFICATION_PATIENCE_S:g} s"
                ) from None

    def _settle(self, frame: Frame) -> None:
        assert frame.reply_to is not None
        with self._lock:
            future, _ = self._waiting.pop(frame.reply_to, (None, None))
        if future is None:
            logger.debug("%s: reply %d came too late", self, frame.reply_to)
            return
        future.set_result(frame)

    def _sink_of(self, header: Header) -> BodySink | None:
        """Say where the tensors of a reply go: nowhere if nobody waits for it any longer."""
        if header.reply_to is None:
            return None
        with self._lock:
            waiting = self._waiting.get(header.reply_to)
        if waiting is None or (waiting[1] is not None and header.kind != REPLY):
            return dropped
        return waiting[1]

    def _serve_apart(self, frame: Frame) -> None:
        if not self._serving.acquire(blocking=False):
            detail = f"{MAX_REQUESTS_SERVED} requests of {self} are being served; wait for one to end"
            self._answer_error(frame, "busy", detail)
            return
        threading.Thread(target=self._serve, args=(frame,), name=f"{frame.kind} {self}", daemon=True).start()

    def _serve(self, frame: Frame) -> None:
        try:
            reply = self._handler(self, frame) or Reply()
            self._answer(frame, Frame(REPLY, fields=reply.fields, tensors=reply.tensors, reply_to=frame.id))
        except RequestRefused as refusal:
            self._answer_error(frame, refusal.code, refusal.detail)
        except LinkError as error:
            self._answer_error(frame, "link", str(error))
        except WireError as error:
            logger.warning("%s: %r closes the connection: %s", self, frame.kind, error)
            self._answer_error(frame, "protocol", str(error))
            self.close(f"{frame.kind!r}: {error}")
        except WorkersError as error:
            logger.warning("%s: %r failed: %s", self, frame.kind, error)
            self._answer_error(frame, "failed", str(error))
        except Exception as error:
            logger.exception("%s: %r failed", self, frame.kind)
            self._answer_error(frame, "internal", f"{type(error).__name__}: {error}")
        finally:
            self._serving.release()

    def _answer(self, request: Frame, reply: Frame) -> None:
        try:
            self._send(reply, DEFAULT_TIMEOUT_S)
        except (LinkError, TimeoutError) as error:
            logger.info("%s: the reply to %r was not sent: %s", self, request.kind, error)

    def _answer_error(self, request: Frame, code: str, detail: str) -> None:
        reply = Frame(ERROR, fields={"code": code, "detail": detail}, reply_to=request.id)
        with suppress(WireError):
            self._answer(request, reply)

    def _notify_all(self) -> None:
        while True:
            try:
                frame = self._notifications.get(timeout=NOTIFICATION_PATIENCE_S)
            except queue.Empty:
                if self._ended.is_set():
                    return
                continue
            if frame is None:
                return
            try:
                self._take_notification(frame)
            except WireError as error:
                logger.warning("%s: %r closes the connection: %s", self, frame.kind, error)
                self.close(f"{frame.kind!r}: {error}")

    def _take_notification(self, frame: Frame) -> None:
        try:
            self._handler(self, frame)
        except RequestRefused as refusal:
            logger.warning("%s: %r refused: %s", self, frame.kind, refusal)
        except WireError:
            raise
        except Exception:
            logger.exception("%s: %r failed", self, frame.kind)


def _refuse_everything(_channel: Channel, frame: Frame) -> Reply:
    raise RequestRefused("not-served", f"{frame.kind!r} is not served on this connection")
