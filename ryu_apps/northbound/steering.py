"""Steering: pin a pair of hosts, or one traffic class of it, to a path or to an objective."""

from __future__ import annotations

from ryu.app.wsgi import Response

from ryu_apps.errors import BadRequestError
from ryu_apps.flows import MAX_DSCP, MAX_PORT, PROTOCOLS
from ryu_apps.northbound.http import document, json_body
from ryu_apps.northbound.routes import BASE, Answer, Api, Parameter, Request, Route
from ryu_apps.northbound.schemas import IPV4, METRICS, TEXT, TIME, Schema, listing, one_of, record, ref
from ryu_apps.objectives import MAX_ALTERNATIVES, TERMS
from ryu_apps.pins import EXAMPLE, MAX_PATH, check_k, read_wish
from ryu_apps.steering import State


def _steer(api: Api, request: Request) -> Response:
    wish = read_wish(json_body(request, such_as=EXAMPLE))
    if wish.preview:
        return document(api.pin_views.preview(wish))
    pin = api.steering.create(wish)
    answer = document(api.pin_views.pin(pin, wish.k), status=201)
    answer.headers["Location"] = f"{BASE}/pins/{pin.id}"
    return answer


def _pins(api: Api, request: Request) -> Response:
    return document({"generated_at": api.views.now(), "pins": api.pin_views.pins(_k(request))})


def _pin(api: Api, request: Request, pin_id: str) -> Response:
    return document(api.pin_views.pin(api.steering.get(pin_id), _k(request)))


def _release(api: Api, request: Request, pin_id: str) -> Response:
    api.steering.delete(pin_id)
    return document({"deleted": pin_id})


def _k(request: Request) -> int | None:
    text = request.GET.get("k")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 4):
        raise BadRequestError(
            f"k is {text[:100]!r}; it is a whole number of alternatives between 1 and {MAX_ALTERNATIVES}"
        )
    return check_k(int(text))


_NUMBER_OF_ALTERNATIVES: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_ALTERNATIVES}
_L4_PORT: Schema = {"type": "integer", "minimum": 1, "maximum": MAX_PORT}
_PIN_ID = Parameter(name="pin_id", summary="A pin", schema=TEXT, required=True)
_K = Parameter(name="k", summary="So many alternatives per direction", schema=_NUMBER_OF_ALTERNATIVES)


def _or_null(schema: Schema) -> Schema:
    return {"oneOf": [schema, {"type": "null"}]}


_WEIGHTS: Schema = {
    "type": "object",
    "properties": {name: {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6} for name in TERMS},
    "additionalProperties": False,
    "minProperties": 1,
}
_FLOW: dict[str, Schema] = {"src": IPV4, "dst": IPV4, "traffic_class": _or_null(ref("TrafficClass"))}

SCHEMAS: dict[str, Schema] = {
    "TrafficClass": {
        "type": "object",
        "description": "Ports need a protocol; something must be set.",
        "properties": {
            "protocol": one_of(*PROTOCOLS),
            "src_port": _L4_PORT,
            "dst_port": _L4_PORT,
            "dscp": {"type": "integer", "minimum": 0, "maximum": MAX_DSCP},
        },
        "additionalProperties": False,
        "minProperties": 1,
    },
    "Weights": _WEIGHTS,
    "Steer": {
        "type": "object",
        "properties": {
            "src": IPV4,
            "dst": IPV4,
            "both_directions": {"type": "boolean"},
            "traffic_class": _or_null(ref("TrafficClass")),
            "path": {
                "type": "array",
                "items": TEXT,
                "minItems": 1,
                "maxItems": MAX_PATH,
                "description": "ids of links, or datapath ids of switches",
            },
            "objective": {"oneOf": [one_of(*TERMS), ref("Weights")]},
            "k": _NUMBER_OF_ALTERNATIVES,
            "preview": {"type": "boolean", "description": "compare only, pin nothing"},
        },
        "required": ["src", "dst"],
        "oneOf": [{"required": ["path"]}, {"required": ["objective"]}],
        "additionalProperties": False,
    },
    "Alternative": {
        "type": "object",
        "properties": {
            "rank": {"type": "integer", "minimum": 1},
            "links": listing(ref("LinkId")),
            "chosen": {"type": "boolean"},
            "score": {"type": ["number", "null"]},
            "why": TEXT,
            **METRICS,
        },
        "required": ["rank", "links", "chosen", "score", "why", *METRICS],
    },
    "PinDirection": record(
        **_FLOW,
        state=one_of(*State),
        reason={"type": ["string", "null"]},
        links=listing(ref("LinkId")),
        changed_at=TIME,
        moves={"type": "integer", "minimum": 0},
        explanation=TEXT,
        optional={"alternatives": listing(ref("Alternative"))},
    ),
    "Pin": record(
        id=TEXT,
        **_FLOW,
        both_directions={"type": "boolean"},
        path=_or_null(listing(ref("LinkId"))),
        objective=_or_null(ref("Weights")),
        created_at=TIME,
        state=one_of(*State),
        directions=listing(ref("PinDirection")),
    ),
    "Deleted": record(deleted=TEXT),
    "Pins": record(generated_at=TIME, pins=listing(ref("Pin"))),
    "Preview": record(directions=listing(record(**_FLOW, alternatives=listing(ref("Alternative"))))),
}

ROUTES = (
    Route(
        method="POST",
        path=f"{BASE}/paths",
        handler=_steer,
        summary="Pin a pair of hosts, or a traffic class of it, to a path or an objective; or compare only",
        body=ref("Steer"),
        answers=(
            Answer(summary="The pin", schema=ref("Pin"), status=201),
            Answer(summary="With preview: what would be chosen, and why", schema=ref("Preview")),
        ),
        problems=(404, 409),
        writes=True,
    ),
    Route(
        method="DELETE",
        path=f"{BASE}/paths/{{pin_id}}",
        handler=_release,
        summary="Delete a pin: its traffic takes the default path again",
        in_path=(_PIN_ID,),
        answers=(Answer(summary="It is deleted", schema=ref("Deleted")),),
        problems=(404,),
        writes=True,
    ),
    Route(
        method="GET",
        path=f"{BASE}/pins",
        handler=_pins,
        summary="Return all pins as they stand",
        query=(_K,),
        answers=(Answer(summary="All pins", schema=ref("Pins")),),
    ),
    Route(
        method="GET",
        path=f"{BASE}/pins/{{pin_id}}",
        handler=_pin,
        summary="Return one pin as it stands",
        in_path=(_PIN_ID,),
        query=(_K,),
        answers=(Answer(summary="The pin", schema=ref("Pin")),),
        problems=(404,),
    ),
)
