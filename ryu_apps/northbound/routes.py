"""What a route of the API is: enough to serve it, to guard it and to describe it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from ryu.app.wsgi import Response

from ryu_apps.access import Access
from ryu_apps.effort import Effort
from ryu_apps.errors import MethodNotAllowedError, NotFoundError, RequestError
from ryu_apps.events import EventStream
from ryu_apps.metrics import Metrics
from ryu_apps.northbound.http import problem
from ryu_apps.own_traffic import OwnTraffic
from ryu_apps.parts import Parts
from ryu_apps.pin_views import PinViews
from ryu_apps.steering import Steering
from ryu_apps.views import Views

BASE = "/northbound/v1"
JSON = "application/json"

Request = Any
Schema = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """What the handlers work on."""

    access: Access
    views: Views
    own_traffic: OwnTraffic
    events: EventStream
    metrics: Metrics
    steering: Steering
    pin_views: PinViews
    effort: Effort

    @classmethod
    def of(cls, parts: Parts, *, access: Access) -> Api:
        """Take what the handlers need of the controller's parts."""
        return cls(
            access=access,
            views=parts.views,
            own_traffic=parts.own_traffic,
            events=parts.events,
            metrics=parts.metrics,
            steering=parts.steering,
            pin_views=parts.pin_views,
            effort=parts.effort,
        )


Handler = Callable[..., Response]
"""Takes the Api, the request, and by name what the path pattern holds; raises RequestError to refuse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A query parameter, which may be left out unless `required`, or a part of the path."""

    name: str
    summary: str
    schema: Schema
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A successful answer."""

    summary: str
    schema: Schema
    status: int = 200
    media_type: str = JSON


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one path; `{name}` in the path stands for a part of it without a slash.

    `problems` are the statuses that the handler refuses with by a problem document, besides those of every
    route (see openapi.py); where it refuses in another form, `refusals` describe it and `refuse` makes it.
    Whether it `writes` decides on who may call it.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    answers: tuple[Answer, ...]
    in_path: tuple[Parameter, ...] = ()
    query: tuple[Parameter, ...] = ()
    body: Schema | None = None
    body_type: str = JSON
    problems: tuple[int, ...] = ()
    refusals: tuple[Answer, ...] = ()
    refuse: Callable[[RequestError], Response] = problem
    writes: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Return the expression that matches the path, percent-encoded."""
        return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.path)))


def find(routes: Sequence[Route], method: str, path: str) -> tuple[Route, dict[str, str]]:
    """Return the route of a request and what its path holds, decoded.

    Raises:
        NotFoundError, MethodNotAllowedError: there is none.
    """
    matches = [(route, match) for route in routes if (match := route.pattern.fullmatch(path))]
    wanted = "GET" if method == "HEAD" else method
    for route, match in matches:
        if route.method == wanted:
            return route, {name: unquote(value) for name, value in match.groupdict().items()}
    if matches:
        allowed = tuple(sorted({route.method for route, _ in matches}))
        raise MethodNotAllowedError(
            f"{path} does not take {method}; it takes {', '.join(allowed)}", allowed=allowed
        )
    offered = ", ".join(dict.fromkeys(route.path for route in routes))
    raise NotFoundError(f"{path} is not part of this API; there are {offered}")
