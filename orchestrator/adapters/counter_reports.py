"""Tell the controller what arrived at the hosts: their workers' packet counters, all in one request.

With them the controller measures the loss of access links from real traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.adapters.telling import Tell
from orchestrator.client import Client

WHAT = "the hosts' packet counters"
INTERVAL_S = 0.5
_PATH = "/northbound/v1/hosts/counters"
_HOSTS_PER_REQUEST = 200


def counter_reports(counters: Callable[[], Mapping[str, Mapping[str, Any]]]) -> Tell:
    """Return what tells the controller what `counters` gives, by the hosts' addresses."""

    def tell(client: Client) -> bool:
        told = [(address, dict(counter)) for address, counter in counters().items()]
        for first in range(0, len(told), _HOSTS_PER_REQUEST):
            client.put(_PATH, {"hosts": dict(told[first : first + _HOSTS_PER_REQUEST])})
        return bool(told)

    return tell
