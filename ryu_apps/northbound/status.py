"""Whether the controller is well, its figures, and the description of this API."""

from __future__ import annotations

from ryu.app.wsgi import Response

from ryu_apps.metrics import CONTENT_TYPE
from ryu_apps.northbound.http import document
from ryu_apps.northbound.routes import BASE, Answer, Api, Request, Route
from ryu_apps.northbound.schemas import COUNT, MAYBE_NUMBER, TEXT, TIME, Schema, record, ref


def _health(api: Api, request: Request) -> Response:
    return document(api.views.health())


def _metrics(api: Api, request: Request) -> Response:
    return Response(body=api.metrics.text(), headerlist=[("Content-Type", CONTENT_TYPE)])


def _effort(api: Api, request: Request) -> Response:
    return document({"generated_at": api.views.now(), **api.effort.as_json()})


SCHEMAS: dict[str, Schema] = {
    "Health": record(status={"const": "ok"}, switches=COUNT, links=COUNT, hosts=COUNT),
    "Effort": record(
        generated_at=TIME,
        over_s=MAYBE_NUMBER,
        probe_packets_per_s=MAYBE_NUMBER,
        probe_bps=MAYBE_NUMBER,
        trains_per_s=MAYBE_NUMBER,
        train_bps=MAYBE_NUMBER,
        controller_cpu_ratio=MAYBE_NUMBER,
        probe_limit_per_s=MAYBE_NUMBER,
        probe_limit_reason={"type": ["string", "null"]},
        late_switch_s=MAYBE_NUMBER,
        reason={"type": ["string", "null"]},
    ),
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
        path=f"{BASE}/effort",
        handler=_effort,
        summary="Tell what measuring costs",
        answers=(Answer(summary="Rates over the last seconds", schema=ref("Effort")),),
    ),
    Route(
        method="GET",
        path="/metrics",
        handler=_metrics,
        summary="Return all figures for Prometheus",
        answers=(Answer(summary="Text exposition format", schema=TEXT, media_type="text/plain"),),
    ),
)
