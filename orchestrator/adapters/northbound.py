"""The controller's northbound REST, read: docs/northbound_api.md.

Two threads: one polls `/paths` and `/topology`, one listens to the event stream and makes the poller hurry
when something changed. What was read is kept with its age; while the controller is away the values grow
old, and past `max_age_s` they are unknown with the reason.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests

from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import Measurement, Network, PathMetrics, unknown
from orchestrator.core.model import network as make_network
from orchestrator.errors import NorthboundError
from orchestrator.ports import Clock, Json, NorthboundStatus

log = logging.getLogger(__name__)

BASE = "/northbound/v1"
METRICS = ("delay_s", "loss_ratio", "capacity_bps", "available_bps", "available_to_own_bps")
_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 10.0
_QUIET_TIMEOUT_S = 25.0  # the controller sends a comment every 10 s
_BODY_LIMIT = 64 * 1024 * 1024
_TOPOLOGY_EVENTS = {
    "switch_up", "switch_down", "link_up", "link_down", "host_learned", "host_moved", "host_lost",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressedPath:
    """A path as the controller names it: by the hosts' addresses."""

    src: str
    dst: str
    links: tuple[str, ...]
    metrics: Mapping[str, Measurement]


def parse_paths(document: object) -> tuple[AddressedPath, ...]:
    """Check the answer of `GET /paths` and turn it into values.

    Raises:
        NorthboundError: naming what does not follow docs/northbound_api.md.
    """
    paths = _get(document, "paths", list, "answer of /paths")
    return tuple(_parse_path(item, f"paths[{index}]") for index, item in enumerate(paths))


def join(
    paths: Iterable[AddressedPath], *, names: Mapping[str, str], taken_at_s: float, older_by_s: float
) -> Network:
    """Name the paths' ends by node where the address is a node's, and age the values by `older_by_s`."""
    joined = []
    for path in paths:
        src, dst = names.get(path.src), names.get(path.dst)
        if src is not None and dst is not None:
            metrics = {name: _aged(path.metrics[name], older_by_s) for name in METRICS}
            joined.append(PathMetrics(src=src, dst=dst, links=path.links, **metrics))
    return make_network(taken_at_s, joined)


def _parse_path(item: object, where: str) -> AddressedPath:
    links = _get(item, "links", list, where)
    if not all(isinstance(link, str) for link in links):
        raise NorthboundError(f"{where}.links must be strings; see docs/northbound_api.md")
    path = AddressedPath(
        src=_get(item, "src", str, where),
        dst=_get(item, "dst", str, where),
        links=tuple(links),
        metrics={
            name: parse_measurement(_get(item, name, dict, where), f"{where}.{name}") for name in METRICS
        },
    )
    try:
        PathMetrics(src=path.src, dst=path.dst, links=path.links, **path.metrics)
    except InvalidValue as error:
        raise NorthboundError(f"{where}: {error}") from error
    return path


def parse_measurement(item: object, where: str) -> Measurement:
    """Check one measurement object; unknown stays unknown, with the controller's reason."""
    value = _number_or_none(item, "value", where)
    reason = _get(item, "reason", (str, type(None)), where)
    if value is None and not reason:
        raise NorthboundError(f"{where}: value is null without a reason; see docs/northbound_api.md")
    return Measurement(
        value=value,
        reason=reason,
        raw=_number_or_none(item, "raw", where),
        low=_number_or_none(item, "low", where),
        high=_number_or_none(item, "high", where),
        samples=int(_number_or_none(item, "samples", where) or 0),
        age_s=_number_or_none(item, "age_s", where),
        source=_get(item, "source", (str, type(None)), where) or "",
    )


def _get(item: object, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(item, dict) or key not in item:
        raise NorthboundError(f"{where}: {key} is missing; see docs/northbound_api.md")
    value = item[key]
    if not isinstance(value, kind):
        raise NorthboundError(f"{where}.{key} is {type(value).__name__}; see docs/northbound_api.md")
    return value


def _number_or_none(item: object, key: str, where: str) -> float | None:
    value = _get(item, key, (int, float, type(None)), where)
    if value is None:
        return None
    if isinstance(value, bool) or not math.isfinite(value):
        raise NorthboundError(f"{where}.{key} is {value!r}, not a finite number")
    return float(value)


def _aged(measurement: Measurement, by_s: float) -> Measurement:
    if measurement.age_s is None:
        return measurement
    return replace(measurement, age_s=measurement.age_s + by_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Picture:
    """What one poll read."""

    paths: tuple[AddressedPath, ...]
    read_at_s: float


class NorthboundClient:
    """Keeps the newest picture of the controller's network; start and stop it."""

    def __init__(
        self,
        *,
        url: str,
        names: Callable[[], Mapping[str, str]],
        clock: Clock,
        token: str | None = None,
        poll_interval_s: float = 2.0,
        max_age_s: float = 15.0,
    ) -> None:
        """Read the controller at `url`; `names` gives the node of each address at that moment."""
        self._token = token
        self._url = url.rstrip("/")
        self._names = names
        self._clock = clock
        self._poll_interval_s = poll_interval_s
        self._max_age_s = max_age_s
        self._lock = threading.Lock()
        self._picture: _Picture | None = None
        self._topology: Json = {}
        self._failure: str | None = f"the controller at {self._url} has not been asked yet"
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._topology_stale = True
        self._stream: requests.Response | None = None
        self._threads = [
            threading.Thread(target=self._poll, name="northbound-poll", daemon=True),
            threading.Thread(target=self._listen, name="northbound-events", daemon=True),
        ]

    def start(self) -> None:
        """Begin to poll and to listen."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End both threads."""
        self._stopping.set()
        self._hurry.set()
        self._end_stream()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=_CONNECT_TIMEOUT_S)

    def network(self) -> Network:
        """Give the last known network; values past their age are unknown with the reason."""
        with self._lock:
            picture, failure = self._picture, self._failure
        now_s = self._clock.monotonic_s()
        if picture is None:
            return Network(taken_at_s=now_s)
        age_s = now_s - picture.read_at_s
        if age_s <= self._max_age_s:
            return join(picture.paths, names=self._names(), taken_at_s=now_s, older_by_s=age_s)
        reason = f"the last values are {age_s:.0f} s old: {failure or 'the controller is slow to answer'}"
        nothing = {name: unknown(reason) for name in METRICS}
        gone = tuple(replace(path, metrics=nothing) for path in picture.paths)
        return join(gone, names=self._names(), taken_at_s=now_s, older_by_s=0.0)

    def topology(self) -> Json:
        """Give the controller's last known topology, as it came."""
        with self._lock:
            return self._topology

    def status(self) -> NorthboundStatus:
        """Say whether the controller answers and how old its values are."""
        with self._lock:
            picture, failure = self._picture, self._failure
        age_s = None if picture is None else self._clock.monotonic_s() - picture.read_at_s
        return NorthboundStatus(reachable=failure is None, age_s=age_s, reason=failure, url=self._url)

    def refresh(self) -> None:
        """Read the controller once, now; what goes wrong is kept as the status's reason."""
        try:
            picture = _Picture(paths=parse_paths(self._read("/paths")), read_at_s=self._clock.monotonic_s())
            if self._topology_stale:
                self._topology_stale = False
                topology = self._read("/topology")
                with self._lock:
                    self._topology = topology
        except NorthboundError as error:
            self._topology_stale = True
            self._note_failure(str(error))
            return
        with self._lock:
            recovered, self._failure = self._failure is not None, None
            self._picture = picture
        if recovered:
            log.info("the controller at %s answers: %d paths", self._url, len(picture.paths))

    def _note_failure(self, reason: str) -> None:
        with self._lock:
            known, self._failure = self._failure, reason
        if known != reason:
            log.warning("%s", reason)

    def _read(self, path: str) -> Json:
        url = f"{self._url}{BASE}{path}"
        try:
            with _session(self._token).get(
                url, timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S), stream=True
            ) as response:
                if response.status_code != requests.codes.ok:
                    raise NorthboundError(f"GET {url} answered {response.status_code}")
                body = response.raw.read(_BODY_LIMIT + 1, decode_content=True)
        except (requests.RequestException, OSError) as error:
            raise NorthboundError(f"GET {url} failed: {_short(error)}") from error
        if len(body) > _BODY_LIMIT:
            raise NorthboundError(f"GET {url} answered more than {_BODY_LIMIT} bytes")
        try:
            document = json.loads(body)
        except ValueError as error:
            raise NorthboundError(f"GET {url} answered something that is not JSON: {error}") from error
        if not isinstance(document, dict):
            raise NorthboundError(f"GET {url} answered a {type(document).__name__}, not an object")
        return document

    def _poll(self) -> None:
        while not self._stopping.is_set():
            self._hurry.clear()
            started_s = self._clock.monotonic_s()
            self.refresh()
            # A large network makes a long answer: never keep the controller busy for more than a tenth.
            took_s = self._clock.monotonic_s() - started_s
            if self._stopping.wait(min(9 * took_s, self._max_age_s / 2)):
                return
            self._hurry.wait(self._poll_interval_s)

    def _listen(self) -> None:
        pause_s = 1.0
        while not self._stopping.is_set():
            try:
                self._follow_events()
                pause_s = 1.0
            except (requests.RequestException, OSError, ValueError, AttributeError) as error:
                # urllib3 raises AttributeError when its socket is shut down under a reader.
                log.debug("event stream of %s ended: %s", self._url, error)
                pause_s = min(30.0, 2 * pause_s)
            if self._stopping.wait(pause_s):
                return

    def _follow_events(self) -> None:
        url = f"{self._url}{BASE}/events"
        timeout = (_CONNECT_TIMEOUT_S, _QUIET_TIMEOUT_S)
        with _session(self._token).get(url, timeout=timeout, stream=True) as response:
            response.raise_for_status()
            self._stream = response
            try:
                if self._stopping.is_set():
                    return
                for line in response.iter_lines(chunk_size=1):
                    self._take_event_line(line)
            finally:
                self._stream = None

    def _take_event_line(self, line: bytes) -> None:
        if not line.startswith(b"event:"):
            return
        kind = line[len(b"event:") :].strip().decode(errors="replace")
        log.debug("the controller tells: %s", kind)
        if kind in _TOPOLOGY_EVENTS:
            self._topology_stale = True
        self._hurry.set()

    def _end_stream(self) -> None:
        stream = self._stream
        if stream is not None:
            try:
                stream.raw.shutdown()
            except (OSError, ValueError, AttributeError, RuntimeError):
                log.debug("the event stream was already closed")


def read_token(path: Path) -> str:
    """Return the controller's token from its file.

    Raises:
        NorthboundError: it cannot be read, or holds something else.
    """
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NorthboundError(f"northbound_token_file {path} cannot be read: {error}") from error
    if not token or not token.isprintable() or " " in token:
        raise NorthboundError(f"northbound_token_file {path} must hold one token on one line")
    return token


def _session(token: str | None) -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # a proxy has no business between us and the controller
    if token is not None:
        session.headers["Authorization"] = f"Bearer {token}"
    return session


def _short(error: Exception) -> str:
    """Say what went wrong without the layers of urllib3 around it."""
    text = str(error)
    for known in ("Connection refused", "timed out", "Name or service not known", "No route to host"):
        if known in text:
            return known.lower() if known == "Connection refused" else known
    return text if len(text) < 200 else f"{text[:197]}..."
