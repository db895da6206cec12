"""Read the controller: its REST, its counts, its events."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path
from typing import Any

import requests

_TIMEOUT_S = 10.0
_TICKS_PER_S = 100
Json = dict[str, Any]


class Northbound:
    """A client of one controller; `headers` carry what lets it write."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.headers.update(headers)

    def get(self, path: str) -> Any:
        """Return the JSON at `path` below the base path."""
        answer = self._session.get(f"{self._url}/northbound/v1{path}", timeout=_TIMEOUT_S)
        answer.raise_for_status()
        return answer.json()

    def links(self) -> dict[str, Json]:
        """Return all links by id."""
        return {link["id"]: link for link in self.get("/links")["links"]}

    def paths(self, query: str) -> dict[tuple[str, str], Json]:
        """Return the paths that match, by (source, destination)."""
        return {(path["src"], path["dst"]): path for path in self.get(f"/paths?{query}")["paths"]}

    def put(self, path: str, body: Json) -> int:
        """Send a PUT and return its status."""
        url = f"{self._url}/northbound/v1{path}"
        return self._session.put(url, json=body, timeout=_TIMEOUT_S).status_code

    def counters(self) -> dict[str, float]:
        """Return the controller's own counts (`utopia_..._total`) from its Prometheus page."""
        text = self._session.get(f"{self._url}/metrics", timeout=_TIMEOUT_S).text
        found = re.findall(r"^(utopia_\w+_total) (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}


class Events:
    """Keep the server-sent events of a controller with the time of their arrival."""

    def __init__(self, url: str) -> None:
        self.seen: list[tuple[float, str, Json]] = []
        self._answer = requests.get(f"{url}/northbound/v1/events", stream=True, timeout=(_TIMEOUT_S, 30.0))
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        kind = ""
        try:
            for line in self._answer.iter_lines(chunk_size=1, decode_unicode=True):
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    self.seen.append((time.time(), kind, json.loads(line.removeprefix("data: "))))
        except (requests.RequestException, AttributeError, ValueError):
            return  # closed by us, or the controller went; what was seen stays

    def close(self) -> None:
        """Hang up."""
        self._answer.close()


def cpu_s(pid: int) -> float:
    """Return the CPU seconds, user and system, that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
