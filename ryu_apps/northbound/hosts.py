"""What hosts tell of themselves: the counters of their interfaces, from which access links get their loss."""

from __future__ import annotations

from ryu.app.wsgi import Response

from ryu_apps.errors import BadRequestError, RequestError
from ryu_apps.hostcounters import Report
from ryu_apps.northbound.http import document, json_body
from ryu_apps.northbound.routes import BASE, Answer, Api, Parameter, Request, Route
from ryu_apps.northbound.schemas import IPV4, NUMBER, Schema, listing, record, ref

EXAMPLE = '{"at": 1790000000.25, "rx_packets": 120034, "tx_packets": 98011}'
EXAMPLE_OF_MANY = f'{{"hosts": {{"198.18.1.1": {EXAMPLE}}}}}'
FIELDS = ("at", "rx_packets", "tx_packets")
_COUNTER: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1}


def _report(api: Api, request: Request, ip: str) -> Response:
    api.views.check_host(ip)
    return document(api.views.report(ip, _read(json_body(request, such_as=EXAMPLE))))


def _report_many(api: Api, request: Request) -> Response:
    body = json_body(request, such_as=EXAMPLE_OF_MANY)
    if not isinstance(body, dict) or set(body) != {"hosts"} or not isinstance(body["hosts"], dict):
        raise BadRequestError(f"the body must be a map of hosts to counters, such as {EXAMPLE_OF_MANY}")
    taken, refused = [], {}
    for ip, report in body["hosts"].items():
        try:
            api.views.check_host(ip)
            api.views.take_report(ip, _read(report))
            taken.append(ip)
        except RequestError as error:
            refused[ip] = error.detail
    return document({"generated_at": api.views.now(), "taken": taken, "refused": refused})


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
    "ManyHostCounters": record(
        hosts={"type": "object", "description": "HostCounters by host; what is none is refused by itself"}
    ),
    "ManyTaken": record(
        generated_at=NUMBER,
        taken=listing(IPV4),
        refused={
            "type": "object",
            "description": "Why, by host; the others' are taken all the same",
            "additionalProperties": {"type": "string"},
        },
    ),
    "AccessLinks": record(generated_at=NUMBER, links=listing(ref("Link"))),
}

ROUTES = (
    Route(
        method="PUT",
        path=f"{BASE}/hosts/counters",
        handler=_report_many,
        summary="Report what the interfaces of many hosts have carried, each taken or refused by itself",
        body=ref("ManyHostCounters"),
        answers=(Answer(summary="Whose counters were taken", schema=ref("ManyTaken")),),
        writes=True,
    ),
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
