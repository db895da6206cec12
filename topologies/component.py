"""Run a part of a testbed as a child process with a log, and ask it over HTTP."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests

from topologies.errors import TestbedError
from topologies.processes import die_with_parent, stop_process, tail
from topologies.state import Journal

log = logging.getLogger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
_HTTP_TIMEOUT_S = 5.0
_POLL_S = 0.1


class Component:
    """A child process with a log of its own."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        journal: Journal,
        *,
        again: bool = False,
        outlives: bool = False,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """Start it; `again`: its log goes on; `outlives`: it does not die with this process."""
        self.name = name
        self.log_path = journal.directory / "logs" / f"{name}.log"
        with self.log_path.open("ab" if again else "wb") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=REPOSITORY,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
                preexec_fn=None if outlives else die_with_parent,
                pass_fds=pass_fds,
            )
        journal.add_process(name, self.process.pid)

    def wait_until(self, condition: Callable[[], object], *, timeout_s: float, what: str) -> None:
        """Wait until `condition` holds.

        Raises:
            TestbedError: the process ends first, or time is up; the text has the end of its log.
        """
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            status = self.process.poll()
            if status is not None:
                raise TestbedError(f"{self.name} ended with status {status}; {self.log_end()}")
            if time.monotonic() > deadline_s:
                raise TestbedError(
                    f"{self.name}: waited {timeout_s:g} s in vain for {what}; {self.log_end()}"
                )
            time.sleep(_POLL_S)

    def log_end(self) -> str:
        """Return where the log is and how it ends."""
        return f"{self.log_path} ends:\n{tail(self.log_path)}"

    @property
    def ended(self) -> int | None:
        """Return its exit status, None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """End it."""
        stop_process(self.process)


def http_json(
    method: str, url: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Send a request; return status and JSON (None if it is none); status 0 when nobody answers."""
    try:
        answer = requests.request(method, url, json=body, headers=headers, timeout=_HTTP_TIMEOUT_S)
    except requests.RequestException as error:
        log.debug("%s %s: %s", method, url, error)
        return 0, None
    try:
        return answer.status_code, answer.json()
    except ValueError:
        return answer.status_code, None
