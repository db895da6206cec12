"""Notifications to the orchestrator: in order, over whatever connection there is, kept meanwhile."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from workers.errors import ChannelClosed, LinkError, RequestTimeout, WireError
from workers.wire import link

logger = logging.getLogger(__name__)

OUTBOX_LIMIT = 8192


class Outbox:
    """Sends notifications in order over whatever control channel is open, and keeps them while none is."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._waiting: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._channel: link.Channel | None = None
        self._closed = False
        self._sending = False
        self._thread = threading.Thread(target=self._send_all, name="outbox", daemon=True)
        self._thread.start()

    def put(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Send a notification or queue it; never waits. The oldest are given up when too many wait."""
        with self._condition:
            if self._sent_at_once(kind, fields):
                return
            if len(self._waiting) >= OUTBOX_LIMIT:
                lost_kind, lost = self._waiting.popleft()
                logger.warning(
                    "%d notifications wait; the oldest is given up: %s %s", OUTBOX_LIMIT, lost_kind, lost
                )
            self._waiting.append((kind, fields))
            self._condition.notify()

    def use(self, channel: link.Channel | None) -> None:
        """Send over `channel` from now on; None: keep until there is one."""
        with self._condition:
            self._channel = channel
            self._condition.notify()

    def close(self) -> None:
        """Stop the thread; what waits is not sent."""
        with self._condition:
            self._closed = True
            self._condition.notify()

    def _sent_at_once(self, kind: str, fields: Mapping[str, Any]) -> bool:
        """Send past the thread, cheaper than waking it, if nothing waits and the socket has room."""
        if self._channel is None or self._waiting or self._sending or self._closed:
            return False
        try:
            return self._channel.notify_at_once(kind, fields)
        except (LinkError, WireError):
            return False  # the thread will find out, and say so

    def _send_all(self) -> None:
        while True:
            with self._condition:
                self._sending = False
                self._condition.wait_for(lambda: self._closed or (self._waiting and self._channel))
                if self._closed:
                    return
                channel, (kind, fields) = self._channel, self._waiting.popleft()
                self._sending = True
            assert channel is not None
            try:
                channel.notify(kind, fields)
            except (ChannelClosed, RequestTimeout) as error:
                logger.info("%s waits for the next connection: %s", kind, error)
                with self._condition:
                    self._waiting.appendleft((kind, fields))
                    if self._channel is channel:
                        self._channel = None
            except WireError:
                logger.exception("notification %s cannot be sent", kind)
