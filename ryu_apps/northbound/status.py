"""Whether the controller is well, its figures, and the description of this API."""

from __future__ import annotations

from ryu.app.wsgi import Response

from ryu_apps.metrics import CONTENT_TYPE
from ryu_apps.northbound.http import document
from ryu_apps.northbound.routes import Answer, Api, Request, Route
from ryu_apps.northbound.schemas import COUNT, TEXT, Schema, record, ref


def _health(api: Api, request: Request) -> Response:
    return document(api.views.health())


def _metrics(api: Api, request: Request) -> Response:
    return Response(body=api.metrics.text(), headerlist=[("Content-Type", CONTENT_TYPE)])


SCHEMAS: dict[str, Schema] = {
    "Health": record(status={"const": "ok"}, switches=COUNT, links=COUNT, hosts=COUNT),
}

ROUTES = (
    Route(
        method="GET",
        path="/healthz",
        handler=_health,
        summary="Tell whether the controller runs, and how much network it sees",
        answers=(Answer(summary="It runs", schema=ref("Health")),),
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=_metrics,
        summary="Return all figures for Prometheus",
        answers=(Answer(summary="Text exposition format", schema=TEXT, media_type="text/plain"),),
    ),
)
