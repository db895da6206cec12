"""Run the classic method's controller beside the one under test."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

from topologies import shell
from topologies.processes import die_with_parent, stop_process

_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_START_TIMEOUT_S = 30.0
_TIMEOUT_S = 5.0


class Rival:
    """A second controller, with classic_app.py, that every switch is connected to as well."""

    def __init__(self, bridges: list[str], *, openflow_port: int, rival_port: int, rest_port: int) -> None:
        """Start it and introduce it to the switches.

        Raises:
            RuntimeError: it does not come up, or the switches do not come to it.
        """
        self._url = f"http://127.0.0.1:{rest_port}/classic"
        self._session = requests.Session()
        listen = ["--ofp-listen-host", "127.0.0.1", "--ofp-tcp-listen-port", str(rival_port)]
        rest = ["--wsapi-host", "127.0.0.1", "--wsapi-port", str(rest_port)]
        app = "benchmarks.network_accuracy.classic_app"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ryu_apps.launcher", *listen, *rest, app],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=_REPOSITORY,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        try:
            self._introduce(bridges, [f"tcp:127.0.0.1:{port}" for port in (openflow_port, rival_port)])
        except BaseException:
            self.close()
            raise

    def _introduce(self, bridges: list[str], controllers: list[str]) -> None:
        self._wait_for(0)
        words = [word for name in bridges for word in ("--", "set-controller", name, *controllers)]
        shell.run(["ovs-vsctl", "--timeout=20", *words])
        self._wait_for(len(bridges))

    def _wait_for(self, switches: int) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (answer := self.document()) is None or answer["switches"] < switches:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the classic method did not come up with {switches} switches")
            time.sleep(0.1)

    def document(self) -> dict[str, Any] | None:
        """Return what it knows; None while it does not answer."""
        try:
            answer = self._session.get(self._url, timeout=_TIMEOUT_S)
        except requests.RequestException:
            return None
        return answer.json() if answer.status_code == 200 else None

    def close(self) -> None:
        """End it; the switches go on with the other controller."""
        stop_process(self._process)
