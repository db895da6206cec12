"""What transfers between hosts achieved, reported by those who made them."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address
from typing import Any

from ryu.app.wsgi import Response

from ryu_apps.errors import BadRequestError, RequestError
from ryu_apps.goodputs import MAX_BYTES, MAX_SECONDS, MIN_SECONDS, parse_transfer
from ryu_apps.northbound.http import document, json_body
from ryu_apps.northbound.routes import BASE, Answer, Api, Request, Route
from ryu_apps.northbound.schemas import COUNT, IPV4, TEXT, TIME, Schema, listing, record, ref

EXAMPLE = '{"src": "198.18.0.1", "dst": "198.18.1.1", "bytes": 4000000, "seconds": 2.5, "at": 1800000000.0}'
MAX_TRANSFERS = 500
EXAMPLE_OF_MANY = f'{{"transfers": [{EXAMPLE}]}}'
_KEYS = {"src", "dst", "bytes", "seconds", "at"}


def _report(api: Api, request: Request) -> Response:
    return document(_take(api, json_body(request, such_as=EXAMPLE)))


def _report_many(api: Api, request: Request) -> Response:
    body = json_body(request, such_as=EXAMPLE_OF_MANY)
    if not isinstance(body, dict) or set(body) != {"transfers"} or not isinstance(body["transfers"], list):
        raise BadRequestError(f"the body must be a map with a list of transfers, such as {EXAMPLE_OF_MANY}")
    if len(body["transfers"]) > MAX_TRANSFERS:
        raise BadRequestError(
            f"{len(body['transfers'])} transfers are reported; {MAX_TRANSFERS} are the most"
        )
    refused = []
    for number, transfer in enumerate(body["transfers"]):
        try:
            _take(api, transfer)
        except RequestError as error:
            refused.append({"number": number, "reason": error.detail})
    taken = len(body["transfers"]) - len(refused)
    return document({"generated_at": api.views.now(), "taken": taken, "refused": refused})


def _take(api: Api, body: object) -> dict[str, Any]:
    if not isinstance(body, dict) or set(body) != _KEYS:
        raise BadRequestError(f"a transfer must be a map with exactly the keys of {EXAMPLE}")
    src, dst = _address(body["src"], "src"), _address(body["dst"], "dst")
    if src == dst:
        raise BadRequestError(f"src and dst are both {src}; a transfer goes from one host to another")
    return api.views.report_transfer(src, dst, parse_transfer(api.views.now(), body))


def _address(value: object, name: str) -> str:
    try:
        if isinstance(value, str):
            return str(IPv4Address(value))
    except AddressValueError:
        pass
    raise BadRequestError(f"{name} is {str(value)[:40]!r}, not an IPv4 address such as 198.18.0.1")


SCHEMAS: dict[str, Schema] = {
    "Transfer": record(
        src=IPV4,
        dst=IPV4,
        bytes={"type": "number", "minimum": 1, "maximum": MAX_BYTES, "description": "of payload"},
        seconds={"type": "number", "minimum": MIN_SECONDS, "maximum": MAX_SECONDS},
        at={**TIME, "description": "Unix time of its end, at most an hour ago"},
    ),
    "Goodput": record(src=IPV4, dst=IPV4, goodput_bps=ref("Measurement")),
    "ManyTransfers": record(
        transfers={
            "type": "array",
            "maxItems": MAX_TRANSFERS,
            "description": "of Transfer; what is none is refused by itself",
        }
    ),
    "TransfersTaken": record(
        generated_at=TIME,
        taken=COUNT,
        refused={
            **listing(record(number=COUNT, reason=TEXT)),
            "description": "Which (from 0) and why; the others are taken all the same",
        },
    ),
}

ROUTES = (
    Route(
        method="POST",
        path=f"{BASE}/goodput",
        handler=_report,
        summary="Report what a transfer between two hosts achieved",
        body=ref("Transfer"),
        answers=(Answer(summary="The goodput of that pair, as it is now", schema=ref("Goodput")),),
        problems=(404,),
        writes=True,
    ),
    Route(
        method="POST",
        path=f"{BASE}/goodputs",
        handler=_report_many,
        summary="Report what many transfers achieved, each taken or refused by itself",
        body=ref("ManyTransfers"),
        answers=(Answer(summary="How many were taken", schema=ref("TransfersTaken")),),
        writes=True,
    ),
)
