"""The event log: what happens to jobs and deployments is kept in the store and streamed to watchers."""

from __future__ import annotations

import logging
import queue
import threading
from collections import defaultdict
from collections.abc import Iterator

from orchestrator.ports import Clock, Entry, EventSink, Json, Store

log = logging.getLogger(__name__)

_BACKLOG = 1000
_QUIET_S = 5.0


class Progress:
    """Publishes how far something is, each time it has come `step` further."""

    def __init__(self, events: EventSink, record_id: str, *, step: float = 0.02) -> None:
        self._events = events
        self._record_id = record_id
        self._step = step
        self._told = -step

    def __call__(self, share: float, text: str) -> None:
        if share - self._told >= self._step or share >= 1:
            self._told = share
            self._events.publish(self._record_id, "progress", {"share": share, "text": text})


class EventLog:
    """Publishes entries; a watcher that cannot keep up is dropped and may come back with `after`."""

    def __init__(self, *, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._watchers: dict[str, set[queue.Queue[Entry | None]]] = defaultdict(set)
        self._closed = threading.Event()

    def publish(self, record_id: str, type: str, body: Json) -> None:
        """Keep the entry and hand it to those who watch this record."""
        with self._lock:
            # Appended under the lock, so that no watcher sees two entries in another order than kept.
            entry = self._store.append(record_id, at=self._clock.unix_s(), type=type, body=body)
            for watcher in tuple(self._watchers.get(record_id, ())):
                self._offer(record_id, watcher, entry)

    def follow(self, record_id: str, *, after: int = 0, quiet_s: float = _QUIET_S) -> Iterator[Entry | None]:
        """Yield the kept entries past `after`, then new ones; None each `quiet_s` without any.

        Ends when the log is closed, the watcher fell too far behind, or the iterator is closed.
        """
        watcher: queue.Queue[Entry | None] = queue.Queue(maxsize=_BACKLOG)
        with self._lock:
            self._watchers[record_id].add(watcher)
        try:
            for entry in self._kept(record_id, after):
                after = entry.sequence
                yield entry
            while self._watches(record_id, watcher):
                try:
                    item = watcher.get(timeout=quiet_s)
                except queue.Empty:
                    item = None
                if item is None or item.sequence > after:
                    after = item.sequence if item else after
                    yield item
        finally:
            with self._lock:
                self._forget(record_id, watcher)

    def watchers(self) -> int:
        """Count those who watch now."""
        with self._lock:
            return sum(len(watchers) for watchers in self._watchers.values())

    def close(self) -> None:
        """End every stream."""
        self._closed.set()
        with self._lock:
            for watchers in self._watchers.values():
                for watcher in watchers:
                    _wake(watcher)

    def _kept(self, record_id: str, after: int) -> Iterator[Entry]:
        while True:
            page, _ = self._store.entries(record_id, after=after, limit=500)
            if not page:
                return
            yield from page
            after = page[-1].sequence

    def _watches(self, record_id: str, watcher: queue.Queue[Entry | None]) -> bool:
        with self._lock:
            known = watcher in self._watchers.get(record_id, ())
        # One that was dropped still reads what it was given before.
        return (known or not watcher.empty()) and not self._closed.is_set()

    def _offer(self, record_id: str, watcher: queue.Queue[Entry | None], entry: Entry) -> None:
        try:
            watcher.put_nowait(entry)
        except queue.Full:
            log.warning("a watcher of %s is %d entries behind and was dropped", record_id, _BACKLOG)
            self._forget(record_id, watcher)

    def _forget(self, record_id: str, watcher: queue.Queue[Entry | None]) -> None:
        watchers = self._watchers.get(record_id)
        if watchers is None:
            return
        watchers.discard(watcher)
        if not watchers:
            del self._watchers[record_id]


def _wake(watcher: queue.Queue[Entry | None]) -> None:
    try:
        watcher.put_nowait(None)
    except queue.Full:
        return
