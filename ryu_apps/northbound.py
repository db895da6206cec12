"""The northbound REST API on Ryu's WSGI server; the contract is docs/northbound_api.md."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Iterator
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from ryu.app.wsgi import ControllerBase, Response, route
from ryu.lib import hub

from ryu_apps.capacities import is_capacity
from ryu_apps.errors import (
    BadRequestError,
    MethodNotAllowedError,
    NotFoundError,
    OverloadedError,
    RequestError,
)
from ryu_apps.events import EventStream, Reader, encode
from ryu_apps.metrics import CONTENT_TYPE, Metrics
from ryu_apps.views import Views

LOG = logging.getLogger(__name__)

BASE = "/northbound/v1"
MAX_BODY_BYTES = 64 * 1024
MAX_READERS = 64
KEEP_ALIVE_S = 10.0
SLOW_READER_S = 30.0
PATHS_PER_BREATH = 25

Request = Any
Handler = Callable[..., Response]


class Api:
    """Everything the REST handlers need."""

    def __init__(self, *, views: Views, events: EventStream, metrics: Metrics) -> None:
        self.views = views
        self.events = events
        self.metrics = metrics


class NorthboundController(ControllerBase):  # type: ignore[misc]
    """Answer every request; Ryu makes one instance per request."""

    def __init__(self, request: Request, link: Any, data: Api, **config: Any) -> None:
        super().__init__(request, link, data, **config)
        self._api = data

    @route("northbound", "/{path:.*}")
    def answer(self, request: Request, **_: Any) -> Response:
        """Find the handler of a path and method; every failure becomes a problem document."""
        try:
            handler, arguments = self._handler(request.method, request.path)
            return handler(self, request, *arguments)
        except RequestError as error:
            return problem(error)
        except Exception:
            LOG.exception("%s %s failed", request.method, request.path)
            return problem(RequestError("the controller failed to answer; its log says why"))

    @staticmethod
    def _handler(method: str, path: str) -> tuple[Handler, tuple[str, ...]]:
        for pattern, methods in _ROUTES:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            wanted = "GET" if method == "HEAD" else method
            if wanted not in methods:
                allowed = tuple(sorted(methods))
                raise MethodNotAllowedError(
                    f"{path} does not take {method}; it takes {', '.join(allowed)}", allowed=allowed
                )
            return methods[wanted], match.groups()
        raise NotFoundError(
            f"{path} is not part of this API; there are /healthz, /metrics and, under {BASE}, "
            "/topology, /links, /links/{id}, /paths and /events"
        )

    def _health(self, request: Request) -> Response:
        return document(self._api.views.health())

    def _metrics(self, request: Request) -> Response:
        return Response(body=self._api.metrics.text(), headerlist=[("Content-Type", CONTENT_TYPE)])

    def _topology(self, request: Request) -> Response:
        _only(request, ())
        return document(self._api.views.topology())

    def _links(self, request: Request) -> Response:
        _only(request, ())
        return document(self._api.views.links())

    def _link(self, request: Request, link_id: str) -> Response:
        _only(request, ())
        return document(self._api.views.link(link_id))

    def _configure(self, request: Request, link_id: str) -> Response:
        self._api.views.link(link_id)
        return document(self._api.views.configure(link_id, _capacity(_body(request))))

    def _paths(self, request: Request) -> Response:
        _only(request, ("src", "dst"))
        src, dst = _address(request, "src"), _address(request, "dst")
        if src is not None and src == dst:
            raise BadRequestError(f"src and dst are both {src}; a path leads from one host to another")
        pairs = self._api.views.pairs(src, dst)
        make = self._api.views.path_maker()
        if src is not None and dst is not None:
            path = make(src, dst)
            if path is None:
                raise NotFoundError(f"host {src} or {dst} has just been lost")
            return document(path)
        generated_at, paths = self._api.views.now(), []
        for number, pair in enumerate(pairs, 1):
            paths.append(make(*pair))
            if number % PATHS_PER_BREATH == 0:
                hub.sleep(0)
        return document({"generated_at": generated_at, "paths": [path for path in paths if path is not None]})

    def _events(self, request: Request) -> Response:
        if len(self._api.events.readers) >= MAX_READERS:
            raise OverloadedError(f"{MAX_READERS} readers follow the events already; close one of them")
        request.environ["eventlet.minimum_write_chunk_size"] = 1
        _limit_writes(request)
        headers = [("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-store")]
        return Response(app_iter=_stream(self._api.events), headerlist=headers)


def _stream(events: EventStream) -> Iterator[bytes]:
    """Yield events as they happen, until the reader goes away or falls behind."""
    woken = hub.Event()
    reader = Reader(wake=woken.set)
    events.readers.add(reader)
    try:
        yield b": utopia northbound events\n\n"
        while not reader.overrun:
            woken.wait(timeout=KEEP_ALIVE_S)
            woken.clear()
            yield reader.take() or b": still here\n\n"
        yield encode("overrun", {"detail": "this reader did not keep up; read the state anew and reconnect"})
    finally:
        events.readers.discard(reader)


def _limit_writes(request: Request) -> None:
    """Let a reader that takes nothing block only itself, and not for ever."""
    body = request.environ.get("eventlet.input") or request.environ.get("wsgi.input")
    connection = body.get_socket() if hasattr(body, "get_socket") else None
    if connection is not None:
        connection.settimeout(SLOW_READER_S)


_ROUTES: tuple[tuple[re.Pattern[str], dict[str, Handler]], ...] = (
    (re.compile("/healthz"), {"GET": NorthboundController._health}),
    (re.compile("/metrics"), {"GET": NorthboundController._metrics}),
    (re.compile(f"{BASE}/topology"), {"GET": NorthboundController._topology}),
    (re.compile(f"{BASE}/links"), {"GET": NorthboundController._links}),
    (
        re.compile(f"{BASE}/links/([^/]+)"),
        {"GET": NorthboundController._link, "PUT": NorthboundController._configure},
    ),
    (re.compile(f"{BASE}/paths"), {"GET": NorthboundController._paths}),
    (re.compile(f"{BASE}/events"), {"GET": NorthboundController._events}),
)


def document(content: dict[str, Any], *, status: int = 200) -> Response:
    """Return a JSON answer."""
    body = json.dumps(content, allow_nan=False).encode()
    return Response(body=body, status=status, headerlist=[("Content-Type", "application/json")])


def problem(error: RequestError) -> Response:
    """Return the problem document (RFC 9457) of an error."""
    content = {"type": "about:blank", "title": error.title, "status": error.status, "detail": error.detail}
    answer = document(content, status=error.status)
    answer.headers["Content-Type"] = "application/problem+json"
    if isinstance(error, MethodNotAllowedError):
        answer.headers["Allow"] = ", ".join(error.allowed)
    return answer


def _only(request: Request, known: tuple[str, ...]) -> None:
    """Refuse parameters that a resource does not have."""
    try:
        names = list(request.GET)
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"the query {request.query_string[:80]!r} is not UTF-8 when decoded; percent-encode it as UTF-8"
        ) from error
    for name in names:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise BadRequestError(f"{request.path} has no parameter {name!r}; {has}")


def _address(request: Request, name: str) -> str | None:
    values = request.GET.getall(name)
    if not values:
        return None
    if len(values) > 1:
        raise BadRequestError(f"{name} is given {len(values)} times; give it once")
    try:
        return str(IPv4Address(values[0]))
    except AddressValueError as error:
        raise BadRequestError(f"{name} is {values[0]!r}, not an IPv4 address such as 198.18.0.1") from error


def _body(request: Request) -> object:
    """Return the JSON body of a request."""
    length = request.content_length
    if length is None:
        raise BadRequestError('the body is missing; send JSON such as {"capacity_bps": 1e9}')
    if length > MAX_BODY_BYTES:
        raise BadRequestError(f"the body has {length} bytes; {MAX_BODY_BYTES} are the most")
    try:
        return json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error


def _capacity(body: object) -> float | None:
    if not isinstance(body, dict) or set(body) != {"capacity_bps"}:
        raise BadRequestError('the body must be a map with exactly one key, such as {"capacity_bps": 1e9}')
    value = body["capacity_bps"]
    if value is not None and not is_capacity(value):
        shown = value if not isinstance(value, float) or math.isfinite(value) else str(value)
        raise BadRequestError(f"capacity_bps is {shown!r}; it must be a number of bit/s above 0, or null")
    return None if value is None else float(value)
