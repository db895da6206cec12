"""The topology, and every link with its measured values; operators configure capacities here."""

from __future__ import annotations

import math

from ryu.app.wsgi import Response

from ryu_apps.capacities import is_capacity
from ryu_apps.errors import BadRequestError
from ryu_apps.northbound.http import document, json_body
from ryu_apps.northbound.routes import BASE, Answer, Api, Parameter, Request, Route
from ryu_apps.northbound.schemas import (
    DPID,
    IPV4,
    MAC,
    METRICS,
    PORT,
    TEXT,
    TIME,
    Schema,
    listing,
    record,
    ref,
)

EXAMPLE = '{"capacity_bps": 1e9}'


def _topology(api: Api, request: Request) -> Response:
    return document(api.views.topology())


def _links(api: Api, request: Request) -> Response:
    return document(api.views.links())


def _link(api: Api, request: Request, link_id: str) -> Response:
    return document(api.views.link(link_id))


def _configure(api: Api, request: Request, link_id: str) -> Response:
    api.views.link(link_id)
    return document(api.views.configure(link_id, _capacity(json_body(request, such_as=EXAMPLE))))


def _capacity(body: object) -> float | None:
    if not isinstance(body, dict) or set(body) != {"capacity_bps"}:
        raise BadRequestError(f"the body must be a map with exactly one key, such as {EXAMPLE}")
    value = body["capacity_bps"]
    if value is not None and not is_capacity(value):
        shown = value if not isinstance(value, float) or math.isfinite(value) else str(value)
        raise BadRequestError(f"capacity_bps is {shown!r}; it must be a number of bit/s above 0, or null")
    return None if value is None else float(value)


_MORE = ("estimated_capacity_bps", "own_bps", "cross_traffic_bps")

SCHEMAS: dict[str, Schema] = {
    "Switch": record(
        dpid=DPID,
        name=TEXT,
        connected_since=TIME,
        ports=listing(record(port=PORT, name=TEXT, up={"type": "boolean"})),
    ),
    "Host": record(ip=IPV4, mac=MAC, dpid=DPID, port=PORT, last_seen=TIME),
    "Topology": record(
        generated_at=TIME,
        switches=listing(ref("Switch")),
        hosts=listing(ref("Host")),
        links=listing(ref("LinkId")),
    ),
    "Link": {
        "type": "object",
        "properties": {
            "id": ref("LinkId"),
            "src": ref("Endpoint"),
            "dst": ref("Endpoint"),
            "up": {"const": True},
            **METRICS,
            **{name: ref("Measurement") for name in _MORE},
        },
        "required": ["id", "src", "dst", "up", *METRICS, *_MORE],
    },
    "Links": record(generated_at=TIME, links=listing(ref("Link"))),
    "Capacity": record(
        capacity_bps={
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": 1e15,
            "description": "null forgets the configured one",
        }
    ),
}

_LINK_ID = Parameter(name="link_id", summary="A link that is up", schema=ref("LinkId"), required=True)

ROUTES = (
    Route(
        method="GET",
        path=f"{BASE}/topology",
        handler=_topology,
        summary="Return switches, hosts and the ids of the links",
        answers=(Answer(summary="What is up now", schema=ref("Topology")),),
    ),
    Route(
        method="GET",
        path=f"{BASE}/links",
        handler=_links,
        summary="Return every link with its values",
        answers=(Answer(summary="All links that are up", schema=ref("Links")),),
    ),
    Route(
        method="GET",
        path=f"{BASE}/links/{{link_id}}",
        handler=_link,
        summary="Return one link with its values",
        in_path=(_LINK_ID,),
        answers=(Answer(summary="The link", schema=ref("Link")),),
        problems=(404,),
    ),
    Route(
        method="PUT",
        path=f"{BASE}/links/{{link_id}}",
        handler=_configure,
        summary="Configure the capacity of a link, or forget it",
        in_path=(_LINK_ID,),
        body=ref("Capacity"),
        answers=(Answer(summary="The link, as it is now", schema=ref("Link")),),
        problems=(404,),
        writes=True,
    ),
)
