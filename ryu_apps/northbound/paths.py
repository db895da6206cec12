"""The paths that traffic between hosts takes now, with their values."""

from __future__ import annotations

from ryu.app.wsgi import Response
from ryu.lib import hub

from ryu_apps.errors import BadRequestError, NotFoundError
from ryu_apps.northbound.http import address_parameter, document
from ryu_apps.northbound.routes import BASE, Answer, Api, Parameter, Request, Route
from ryu_apps.northbound.schemas import IPV4, METRICS, TEXT, TIME, Schema, listing, record, ref

PATHS_PER_BREATH = 25
"""So many paths are computed before the controller's other work gets its turn."""


def _paths(api: Api, request: Request) -> Response:
    src, dst = address_parameter(request, "src"), address_parameter(request, "dst")
    if src is not None and src == dst:
        raise BadRequestError(f"src and dst are both {src}; a path leads from one host to another")
    pairs = api.views.pairs(src, dst)
    make = api.views.path_maker()
    if src is not None and dst is not None:
        path = make(src, dst)
        if path is None:
            raise NotFoundError(f"host {src} or {dst} has just been lost")
        return document(path)
    generated_at, paths = api.views.now(), []
    for number, pair in enumerate(pairs, 1):
        paths.append(make(*pair))
        if number % PATHS_PER_BREATH == 0:
            hub.sleep(0)
    return document({"generated_at": generated_at, "paths": [path for path in paths if path is not None]})


SCHEMAS: dict[str, Schema] = {
    "Path": {
        "type": "object",
        "properties": {
            "src": IPV4,
            "dst": IPV4,
            "links": listing(ref("LinkId")),
            "chosen_by": TEXT,
            **METRICS,
            "goodput_bps": ref("Measurement"),
        },
        "required": ["src", "dst", "links", "chosen_by", *METRICS, "goodput_bps"],
    },
    "Paths": record(generated_at=TIME, paths=listing(ref("Path"))),
}

ROUTES = (
    Route(
        method="GET",
        path=f"{BASE}/paths",
        handler=_paths,
        summary="Return the path of a pair of hosts, or of all pairs that match",
        query=(
            Parameter(name="src", summary="Address of the sending host; any without it", schema=IPV4),
            Parameter(name="dst", summary="Address of the receiving host; any without it", schema=IPV4),
        ),
        answers=(
            Answer(
                summary="One path if src and dst are given, else a list of paths",
                schema={"oneOf": [ref("Path"), ref("Paths")]},
            ),
        ),
        problems=(404,),
    ),
)
