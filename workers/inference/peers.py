"""Connections to the next nodes of rings: one per node, shared, each with a sender of its own.

Sending never holds up computing: a small frame goes out at once where the socket takes it without waiting,
any other waits in a queue, and a connection that ends is made again. What cannot be delivered in time is
dropped and logged; the head notices that its ring does not answer.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from workers.errors import LinkError, WireError
from workers.inference.assignment import Neighbour
from workers.wire.frames import Form, Tensor

logger = logging.getLogger(__name__)

MAX_FRAMES_WAITING = 1024
FEW_FRAMES = 3
"""While fewer wait it pays to make more that are not urgent: the sender always has the next one."""
PATIENCE_S = 10.0
PAUSE_S = 0.2


class PeerChannel(Protocol):
    """What is needed of `link.Channel`."""

    def notify(
        self,
        kind: str,
        fields: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor] | None = None,
        timeout_s: float = ...,
    ) -> None:
        """Send a frame."""

    def notify_at_once(
        self, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None
    ) -> bool:
        """Send a small frame if that takes no waiting; tells whether it was sent."""

    def send_form_at_once(self, form: Form) -> bool:
        """Send a form as it is now, if it is small and that takes no waiting; tells whether it was sent."""

    def close(self) -> None:
        """End the connection."""


Dial = Callable[[str, str, int], PeerChannel]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outgoing:
    kind: str
    fields: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    due_s: float


class PeerLink:
    """The way to one neighbour; `send` may be called from any thread."""

    def __init__(self, neighbour: Neighbour, dial: Dial) -> None:
        self.neighbour = neighbour
        self.users = 0
        self._dial = dial
        self._channel: PeerChannel | None = None
        self._waiting: queue.Queue[_Outgoing | None] = queue.Queue(MAX_FRAMES_WAITING)
        self._undelivered = 0
        self._drained: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._send_all, name=f"send to {neighbour.node}", daemon=True)

    def open(self) -> None:
        """Connect, and start the sender; raises LinkError."""
        self._channel = self._connect()
        self._thread.start()

    def send(self, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
        """Send a frame or queue it, after all that were before it; never waits."""
        with self._lock:
            channel = self._free_channel()
            try:
                sent = channel is not None and channel.notify_at_once(kind, fields, tensors)
            except (LinkError, WireError):
                sent = False  # the sender will find out, and connect anew
            if not sent:
                self._queue(kind, fields, tensors or {})

    def send_form(self, form: Form) -> None:
        """Send what a form says now, or queue that, as `send` does."""
        with self._lock:
            channel = self._free_channel()
            try:
                sent = channel is not None and channel.send_form_at_once(form)
            except (LinkError, WireError):
                sent = False
            if not sent:
                frame = form.frame()
                self._queue(frame.kind, frame.fields, frame.tensors)

    def takes_more(self, then: Callable[[], None]) -> bool:
        """Tell whether few frames wait; if not, `then` is called, from the sender's thread, once few do."""
        with self._lock:
            if self._undelivered < FEW_FRAMES:
                return True
            self._drained.append(then)
            return False

    def _free_channel(self) -> PeerChannel | None:
        """Return the connection if nothing waits for it."""
        return None if self._undelivered else self._channel

    def _queue(self, kind: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        due_s = time.monotonic() + PATIENCE_S
        try:
            self._waiting.put_nowait(_Outgoing(kind=kind, fields=fields, tensors=tensors, due_s=due_s))
            self._undelivered += 1
        except queue.Full:
            logger.warning("%s to %s dropped: %d frames wait", kind, self.neighbour.node, MAX_FRAMES_WAITING)

    def close(self) -> None:
        """End the connection; what waits is dropped."""
        self._closing.set()
        channel = self._channel
        if channel is not None:
            channel.close()
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            self._waiting.get_nowait()
            self._waiting.put_nowait(None)

    def _connect(self) -> PeerChannel:
        return self._dial(self.neighbour.node, self.neighbour.address, self.neighbour.port)

    def _send_all(self) -> None:
        while (frame := self._waiting.get()) is not None and not self._closing.is_set():
            self._deliver(frame)
            with self._lock:
                self._undelivered -= 1
                drained = self._drained if self._undelivered < FEW_FRAMES else []
                self._drained = [] if drained else self._drained
            for then in drained:
                then()
        if self._channel is not None:
            self._channel.close()

    def _deliver(self, frame: _Outgoing) -> None:
        """Send one frame, connecting anew as often as its time allows."""
        reason = "it waited too long"
        while not self._closing.is_set() and (left_s := frame.due_s - time.monotonic()) > 0:
            try:
                if self._channel is None:
                    self._channel = self._connect()
                self._channel.notify(frame.kind, frame.fields, frame.tensors, timeout_s=left_s)
                return
            except LinkError as error:
                reason = str(error)
                self._drop_channel()
                self._closing.wait(PAUSE_S)
            except WireError as error:
                reason = str(error)
                break
        logger.warning("%s to %s dropped: %s", frame.kind, self.neighbour.node, reason)

    def _drop_channel(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class PeerLinks:
    """The links of one node, opened when first used and closed when no epoch uses them any more."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial
        self._links: dict[Neighbour, PeerLink] = {}
        self._lock = threading.Lock()

    def acquire(self, neighbour: Neighbour) -> PeerLink:
        """Return the open link to a neighbour; raises LinkError if it cannot be reached."""
        with self._lock:
            if found := self._links.get(neighbour):
                found.users += 1
                return found
        made = PeerLink(neighbour, self._dial)
        made.open()  # outside the lock: it takes round trips
        with self._lock:
            link = self._links.setdefault(neighbour, made)
            link.users += 1
        if link is not made:
            made.close()
        return link

    def release(self, link: PeerLink) -> None:
        """Give a link back."""
        with self._lock:
            link.users -= 1
            last = not link.users
            if last:
                self._links.pop(link.neighbour, None)
        if last:
            link.close()

    def close(self) -> None:
        """Close all links."""
        with self._lock:
            links, self._links = list(self._links.values()), {}
        for link in links:
            link.close()
