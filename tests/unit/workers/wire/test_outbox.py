"""What waits to be told is told in order, at once where it can be."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from worker_loopback import wait_until

from workers.errors import (
    ChannelClosed,
)
from workers.wire.outbox import Outbox


class FlakyChannel:
    """A control channel that takes some notifications and then is gone."""

    def __init__(self, *, takes: int) -> None:
        self.takes = takes
        self.got: list[int] = []
        self.gone = threading.Event()

    def notify(self, kind: str, fields: dict[str, int]) -> None:
        if len(self.got) == self.takes:
            self.gone.set()
            raise ChannelClosed("gone")
        self.got.append(fields["index"])


def test_a_notification_that_failed_is_the_first_on_the_next_channel() -> None:
    first, second = FlakyChannel(takes=3), FlakyChannel(takes=100)
    with closing(Outbox()) as outbox:
        for index in range(6):
            outbox.put("token", {"index": index})
        outbox.use(first)  # type: ignore[arg-type]
        assert first.gone.wait(5)
        outbox.use(second)  # type: ignore[arg-type]
        wait_until(lambda: len(second.got) == 3, what="the rest")
    assert first.got + second.got == list(range(6))


def test_what_nothing_waits_for_goes_out_in_the_thread_that_tells_it() -> None:
    told: list[tuple[int, str]] = []

    class Channel:
        full = False

        def notify_at_once(self, _kind: str, fields: Mapping[str, Any]) -> bool:
            if not self.full:
                told.append((fields["index"], threading.current_thread().name))
            return not self.full

        def notify(self, _kind: str, fields: Mapping[str, Any]) -> None:
            told.append((fields["index"], threading.current_thread().name))

    channel = Channel()
    with closing(Outbox()) as outbox:
        outbox.use(channel)  # type: ignore[arg-type]
        outbox.put("tokens", {"index": 0})
        assert told == [(0, threading.current_thread().name)]
        channel.full = True
        outbox.put("tokens", {"index": 1})
        wait_until(lambda: told[1:] == [(1, "outbox")], what="the one that had to wait")
