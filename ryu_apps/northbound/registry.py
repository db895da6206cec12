"""All routes and named schemas of the API."""

from __future__ import annotations

from typing import Any

from ryu.app.wsgi import Response

from ryu_apps.northbound import (
    alto,
    events,
    goodput,
    hosts,
    ietf_topology,
    links,
    openapi,
    own_traffic,
    paths,
    schemas,
    status,
    steering,
)
from ryu_apps.northbound.http import document
from ryu_apps.northbound.routes import BASE, Answer, Api, Request, Route

_GROUPS = (status, links, hosts, paths, steering, goodput, own_traffic, events, alto, ietf_topology)


def _openapi(api: Api, request: Request) -> Response:
    return document(openapi_document())


ROUTES: tuple[Route, ...] = (
    *(route for group in _GROUPS for route in group.ROUTES),
    Route(
        method="GET",
        path=f"{BASE}/openapi.json",
        handler=_openapi,
        summary="Describe this API (OpenAPI 3.1)",
        answers=(Answer(summary="This document", schema={"type": "object", "required": ["openapi"]}),),
    ),
)
SCHEMAS: dict[str, schemas.Schema] = dict(schemas.SCHEMAS)
for _group in _GROUPS:
    SCHEMAS |= _group.SCHEMAS


def openapi_document() -> dict[str, Any]:
    """Return the description of all routes."""
    return openapi.make(ROUTES, SCHEMAS)
