"""Declare to the controller which traffic is the orchestrator's own, so that it is told from that of others.

Own is what goes to and from the orchestrator's data port (models, updates, shards), and to and from the
data ports of nodes that hold shards (activations). The controller keeps a declaration as long as it runs, so
it is asked again and again whether it still has this one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from ipaddress import AddressValueError, IPv4Address

from orchestrator.client import Client

log = logging.getLogger(__name__)

WHAT = "the declaration of own traffic"
INTERVAL_S = 5.0
LONGEST_PAUSE_S = 10.0
"""A controller that was restarted knows nothing of it."""
MAX_CLASSES = 256
"""More than these the controller does not take."""
_PATH = "/northbound/v1/own-traffic"

End = tuple[str, int]
_Class = tuple[str, int, str]


class OwnTraffic:
    """Keeps the controller's declaration at what is the orchestrator's own now."""

    def __init__(self, *, own: End, others: Callable[[], Iterable[End]]) -> None:
        """Declare the data port `own`, and those that `others` gives at that moment: (address, port)."""
        self._own = own
        self._others = others
        self._declared: frozenset[_Class] = frozenset()
        self._crowded = False

    def tell(self, client: Client) -> bool:
        """Declare it anew if the controller has something else; raises ApiError."""
        wanted = self._wanted()
        if _read(client.get(_PATH)) != wanted:
            client.put(_PATH, _document(wanted))
            log.info("own traffic is declared to the controller: %d ports", len(wanted))
        self._declared = wanted
        return True

    def withdraw(self, client: Client) -> bool:
        """Take the declaration back, if the controller still has this one; raises ApiError."""
        ours = bool(self._declared) and _read(client.get(_PATH)) == self._declared
        if ours:
            client.put(_PATH, _document(frozenset()))
        return ours

    def _wanted(self) -> frozenset[_Class]:
        ends = list(dict.fromkeys([self._own, *sorted(set(self._others()))]))
        ends = [end for end in ends if _is_ipv4(end[0])]
        if len(ends) > MAX_CLASSES and not self._crowded:
            log.warning(
                "%d nodes hold shards; the traffic of %d is declared as own", len(ends) - 1, MAX_CLASSES - 1
            )
        self._crowded = len(ends) > MAX_CLASSES
        return frozenset(("tcp", port, address) for address, port in ends[:MAX_CLASSES])


def _document(classes: frozenset[_Class]) -> dict[str, object]:
    return {
        "classes": [
            {"protocol": protocol, "port": port, "host": host} for protocol, port, host in sorted(classes)
        ]
    }


def _read(document: object) -> frozenset[_Class] | None:
    """Return what a controller says is declared; None if it is not what this side would declare."""
    classes = document.get("classes") if isinstance(document, dict) else None
    if not isinstance(classes, list) or not all(isinstance(item, dict) for item in classes):
        return None
    return frozenset((item.get("protocol"), item.get("port"), item.get("host", "")) for item in classes)


def _is_ipv4(address: str) -> bool:
    try:
        IPv4Address(address)
    except AddressValueError:
        return False
    return True
