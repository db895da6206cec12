"""Which traffic is the orchestrator's own, so that it is told from that of others."""

from __future__ import annotations

from typing import Any

from ryu.app.wsgi import Response

from ryu_apps.flows import MAX_PORT, PROTOCOLS
from ryu_apps.northbound.http import document, json_body
from ryu_apps.northbound.routes import BASE, Answer, Api, Request, Route
from ryu_apps.northbound.schemas import IPV4, Schema, listing, one_of, record, ref
from ryu_apps.own_traffic import EXAMPLE, MAX_CLASSES, parse_classes

PATH = f"{BASE}/own-traffic"


def _declared(api: Api, request: Request) -> Response:
    return document(_document(api))


def _declare(api: Api, request: Request) -> Response:
    api.own_traffic.declare(parse_classes(json_body(request, such_as=EXAMPLE)))
    return document(_document(api))


def _document(api: Api) -> dict[str, Any]:
    return {"classes": [own.as_json() for own in api.own_traffic.classes]}


SCHEMAS: dict[str, Schema] = {
    "OwnTraffic": record(
        classes={
            **listing(
                record(
                    protocol=one_of(*PROTOCOLS),
                    port={"type": "integer", "minimum": 1, "maximum": MAX_PORT},
                    optional={"host": {**IPV4, "description": "whose port it is; left out: at either end"}},
                )
            ),
            "maxItems": MAX_CLASSES,
        }
    ),
}

ROUTES = (
    Route(
        method="GET",
        path=PATH,
        handler=_declared,
        summary="Return which traffic counts as the orchestrator's own",
        answers=(Answer(summary="What is declared", schema=ref("OwnTraffic")),),
    ),
    Route(
        method="PUT",
        path=PATH,
        handler=_declare,
        summary="Declare which traffic counts as the orchestrator's own, instead of what was declared",
        body=ref("OwnTraffic"),
        answers=(Answer(summary="What is declared now", schema=ref("OwnTraffic")),),
        writes=True,
    ),
)
