"""The event stream: what happened, as JSON, to readers of any speed.

Each reader has a queue of limited length; one that does not keep up is cut off and told so, and nobody waits
for it.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from ryu_apps.discovery import Host, dpid_text, hop_id
from ryu_apps.flows import Flow
from ryu_apps.packets import mac_text
from ryu_apps.signals import Change, Signals

LOG = logging.getLogger(__name__)

MAX_QUEUED = 1000


class Reader:
    """One reader's queue of encoded events."""

    def __init__(self, wake: Callable[[], None], *, known: bool = False) -> None:
        """Make one that is woken by `wake` when there is something; `known`: it showed the token."""
        self.wake = wake
        self.known = known
        self._queue: deque[bytes] = deque()
        self.overrun = False

    def put(self, event: bytes) -> None:
        """Queue an event; a full queue marks the reader as overrun and drops what it had."""
        if self.overrun:
            return
        if len(self._queue) >= MAX_QUEUED:
            self.overrun = True
            self._queue.clear()
        else:
            self._queue.append(event)
        self.wake()

    def take(self) -> bytes:
        """Return everything queued, as one piece; empty when there is nothing."""
        taken = b"".join(self._queue)
        self._queue.clear()
        return taken


class EventStream:
    """Turn changes of the network into events for all readers."""

    def __init__(self, signals: Signals, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.readers: set[Reader] = set()
        for change, describe in _DESCRIPTIONS.items():
            signals.connect(change, self._listener(change, describe))

    def _listener(self, change: Change, describe: Callable[[Any], dict[str, Any]]) -> Callable[[Any], None]:
        def listen(payload: Any) -> None:
            self._publish(change, describe(payload))

        return listen

    def _publish(self, change: Change, datum: dict[str, Any]) -> None:
        if self.readers:
            event = encode(change, {"at": self._clock(), **datum})
            for reader in list(self.readers):
                reader.put(event)


def encode(change: str, datum: dict[str, Any]) -> bytes:
    """Return one server-sent event."""
    return f"event: {change}\ndata: {json.dumps(datum)}\n\n".encode()


def _address_text(address: tuple[str, int]) -> str:
    return f"{address[0]}:{address[1]}"


def _host(host: Host) -> dict[str, Any]:
    return {"ip": host.ip, "mac": mac_text(host.mac), "dpid": dpid_text(host.dpid), "port": host.port}


def _path(path: tuple[Flow, list[str]]) -> dict[str, Any]:
    flow, links = path
    return {**flow.as_json(), "links": links}


_DESCRIPTIONS: dict[Change, Callable[[Any], dict[str, Any]]] = {
    Change.SWITCH_UP: lambda switch: {"dpid": dpid_text(switch.dpid)},
    Change.SWITCH_DOWN: lambda switch: {"dpid": dpid_text(switch.dpid)},
    Change.SWITCH_REFUSED: lambda switch: {
        "dpid": dpid_text(switch.dpid),
        "address": _address_text(switch.datapath.address),
    },
    Change.LINK_UP: lambda hop: {"id": hop_id(hop)},
    Change.LINK_DOWN: lambda hop: {"id": hop_id(hop)},
    Change.HOST_LEARNED: _host,
    Change.HOST_MOVED: _host,
    Change.HOST_LOST: _host,
    Change.HOST_CONFLICT: _host,
    Change.PATH_INSTALLED: _path,
    Change.PIN_CHANGED: dict,
    Change.METRIC_CHANGED: dict,
}
