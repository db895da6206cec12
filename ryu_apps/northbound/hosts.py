"""What hosts tell of themselves: the counters of their interfaces, from which access links get their loss."""

from __future__ import annotations

from ryu.app.wsgi import Response

from ryu_apps.errors import BadRequestError
from ryu_apps.hostcounters import Report
from ryu_apps.northbound.http import document, json_body
from ryu_apps.northbound.routes import BASE, Answer, Api, Parameter, Request, Route
from ryu_apps.northbound.schemas import IPV4, NUMBER, Schema, listing, record, ref

EXAMPLE = '{"at": 1790000000.25, "rx_packets": 120034, "tx_packets": 98011}'
FIELDS = ("at", "rx_packets", "tx_packets")
_COUNTER: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1}


def _report(api: Api, request: Request, ip: str) -> Response:
    api.views.check_host(ip)
    return document(api.views.report(ip, _read(json_body(request, such_as=EXAMPLE))))


def _read(body: object) -> Report:
    if not isinstance(body, dict) or set(body) != set(FIELDS):
        raise BadRequestError(f"the body must be a map of {', '.join(FIELDS)}, such as {EXAMPLE}")
    for name in FIELDS:
        kinds = (int, float) if name == "at" else (int,)
        if isinstance(body[name], bool) or not isinstance(body[name], kinds):
            raise BadRequestError(f"{name} is {str(body[name])[:40]!r}, not a number such as in {EXAMPLE}")
    try:
        return Report(at=float(body["at"]), rx_packets=body["rx_packets"], tx_packets=body["tx_packets"])
    except (ValueError, OverflowError) as error:
        raise BadRequestError(str(error)[:200]) from error


SCHEMAS: dict[str, Schema] = {
    "HostCounters": record(
        at={"type": "number", "description": "Unix time in seconds at which the counters were read"},
        rx_packets=_COUNTER,
        tx_packets=_COUNTER,
    ),
    "AccessLinks": record(generated_at=NUMBER, links=listing(ref("Link"))),
}

ROUTES = (
    Route(
        method="PUT",
        path=f"{BASE}/hosts/{{ip}}/counters",
        handler=_report,
        summary="Report what a host's interface has carried since it came up",
        in_path=(Parameter(name="ip", summary="A known host", schema=IPV4, required=True),),
        body=ref("HostCounters"),
        answers=(Answer(summary="Both directions of the host's link", schema=ref("AccessLinks")),),
        problems=(404,),
        writes=True,
    ),
)
