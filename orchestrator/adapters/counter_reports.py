"""Tell the controller what arrived at the hosts: their workers' packet counters, all in one request.

With them the controller measures the loss of access links from real traffic. Nothing waits for this and
nothing depends on it: a controller that is away, or one that does not take them, is noted once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.client import ApiError, Client

log = logging.getLogger(__name__)

_PATH = "/northbound/v1/hosts/counters"
_HOSTS_PER_REQUEST = 200
_STOP_S = 5.0
_MAX_PAUSE_S = 60.0


class CounterReports:
    """Report at an interval, from a thread of its own; start and stop it."""

    def __init__(
        self,
        *,
        url: str,
        token: str,
        counters: Callable[[], Mapping[str, Mapping[str, Any]]],
        interval_s: float = 2.0,
    ) -> None:
        """Report to the controller at `url` what `counters` gives, by the hosts' addresses."""
        self._client = Client(url, server="controller", token=token)
        self._counters = counters
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="counter-reports", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_STOP_S)

    def _run(self) -> None:
        pause_s = self._interval_s
        while not self._stopping.wait(pause_s):
            counters = self._counters()
            if counters:
                failure = self._report(counters)
                pause_s = self._interval_s if failure is None else min(_MAX_PAUSE_S, 2 * pause_s)
                self._note(failure)

    def _report(self, counters: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Send one report; return why it was not taken, None if it was."""
        told = [(address, dict(counter)) for address, counter in counters.items()]
        try:
            for first in range(0, len(told), _HOSTS_PER_REQUEST):
                self._client.put(_PATH, {"hosts": dict(told[first : first + _HOSTS_PER_REQUEST])})
        except ApiError as error:
            return str(error)
        return None

    def _note(self, failure: str | None) -> None:
        if failure is not None and self._failure is None:
            log.warning("the controller does not take the hosts' packet counters: %s", failure)
        elif failure is None and self._failure is not None:
            log.info("the controller takes the hosts' packet counters again")
        self._failure = failure
