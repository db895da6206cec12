"""What changes in the network, told to whoever connected: calls in order, in the caller's thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from enum import StrEnum
from typing import Any


class Change(StrEnum):
    """What may happen; the payload of each is named beside it."""

    SWITCH_UP = "switch_up"  # Switch
    SWITCH_DOWN = "switch_down"  # Switch
    SWITCH_REFUSED = "switch_refused"  # Switch that claims the id of one that is connected
    PORT_UP = "port_up"  # (Switch, Port)
    PORT_DOWN = "port_down"  # (Switch, Port)
    LINK_UP = "link_up"  # Hop
    LINK_DOWN = "link_down"  # Hop
    HOST_LEARNED = "host_learned"  # Host
    HOST_MOVED = "host_moved"  # Host, already with its new place
    HOST_LOST = "host_lost"  # Host
    HOST_CONFLICT = "host_conflict"  # Host as another place claims it, while it answers where it is
    PATH_INSTALLED = "path_installed"  # (Flow, link ids)
    PIN_CHANGED = "pin_changed"  # dict for the event stream
    METRIC_CHANGED = "metric_changed"  # dict for the event stream


class Signals:
    """Connect listeners to changes and emit changes to them."""

    def __init__(self) -> None:
        self._listeners: dict[Change, list[Callable[[Any], None]]] = defaultdict(list)

    def connect(self, change: Change, listener: Callable[[Any], None]) -> None:
        """Call `listener` with the payload of every `change` from now on."""
        self._listeners[change].append(listener)

    def emit(self, change: Change, payload: Any) -> None:
        """Tell every listener of `change`, in the order in which they connected."""
        for listener in self._listeners[change]:
            listener(payload)
