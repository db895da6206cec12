"""Tell the controller something at an interval, from a thread of its own, as well as it can be done.

Nothing waits for this and nothing depends on it: a controller that is away, or one that does not take what
it is told, is noted once and asked again, more rarely each time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from orchestrator.client import ApiError, Client

log = logging.getLogger(__name__)

_STOP_S = 5.0

Tell = Callable[[Client], bool]
"""Tells it, and says whether there was anything to tell; raises ApiError."""


class Telling:
    """Calls `tell` again and again; start and stop it."""

    def __init__(
        self,
        *,
        url: str,
        token: str,
        what: str,
        tell: Tell,
        at_end: Tell | None = None,
        interval_s: float,
        longest_pause_s: float = 60.0,
    ) -> None:
        """Tell the controller at `url`; `what` is told, for the log. `at_end` is called once, in the end."""
        self._client = Client(url, server="controller", token=token)
        self._what = what
        self._tell = tell
        self._at_end = at_end
        self._interval_s = interval_s
        self._longest_pause_s = longest_pause_s
        self._stopping = threading.Event()
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"tell {what}", daemon=True)

    def start(self) -> None:
        """Begin to tell."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_STOP_S)

    def _run(self) -> None:
        pause_s = self._interval_s
        while not self._stopping.is_set():
            try:
                if self._tell(self._client):
                    self._note(None)
                    pause_s = self._interval_s
            except ApiError as error:
                self._note(str(error))
                pause_s = min(self._longest_pause_s, 2 * pause_s)
            self._stopping.wait(pause_s)
        if self._at_end is not None:
            try:
                self._at_end(self._client)
            except ApiError as error:
                log.info("the controller was not told of the end of %s: %s", self._what, error)

    def _note(self, failure: str | None) -> None:
        if failure is not None and self._failure is None:
            log.warning("the controller does not take %s: %s", self._what, failure)
        elif failure is None and self._failure is not None:
            log.info("the controller takes %s again", self._what)
        self._failure = failure
