"""Builders of JSON schemas (draft 2020-12), and the schemas that several resources share.

Kept by hand rather than derived from classes: answers are made as JSON from the controller's own values, and
the contract tests hold every one of them against these.
"""

from __future__ import annotations

from typing import Any

from ryu_apps import paths

Schema = dict[str, Any]

NUMBER: Schema = {"type": "number"}
MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
COUNT: Schema = {"type": "integer", "minimum": 0}
TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "number", "description": "Unix time in seconds"}
IPV4: Schema = {"type": "string", "format": "ipv4"}
MAC: Schema = {"type": "string", "pattern": "^[0-9a-f]{2}(:[0-9a-f]{2}){5}$"}
DPID: Schema = {"type": "string", "pattern": "^[0-9a-f]{16}$"}
PORT: Schema = {"type": "integer", "minimum": 1}


def ref(name: str) -> Schema:
    """Return a reference to a named schema."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(*, optional: dict[str, Schema] | None = None, **fields: Schema) -> Schema:
    """Return an object with exactly these fields, all required but the `optional` ones."""
    return {
        "type": "object",
        "properties": {**fields, **(optional or {})},
        "required": list(fields),
        "additionalProperties": False,
    }


def listing(items: Schema) -> Schema:
    """Return an array."""
    return {"type": "array", "items": items}


def one_of(*values: str) -> Schema:
    """Return a string that is one of `values`."""
    return {"type": "string", "enum": list(values)}


METRICS: dict[str, Schema] = {name: ref("Measurement") for name in paths.METRICS}

SCHEMAS: dict[str, Schema] = {
    "Problem": {
        "type": "object",
        "description": "RFC 9457",
        "properties": {
            "type": TEXT,
            "title": TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": TEXT,
        },
        "required": ["type", "title", "status", "detail"],
    },
    "Measurement": {
        "type": "object",
        "description": "A measured value; `value` is null exactly when `reason` says why.",
        "properties": {
            "value": MAYBE_NUMBER,
            "raw": MAYBE_NUMBER,
            "low": MAYBE_NUMBER,
            "high": MAYBE_NUMBER,
            "samples": COUNT,
            "age_s": MAYBE_NUMBER,
            "source": TEXT,
            "unit": one_of("s", "ratio", "bit/s"),
            "reason": {"type": ["string", "null"]},
        },
        "required": ["value", "raw", "low", "high", "samples", "age_s", "source", "unit", "reason"],
        "oneOf": [
            {"properties": {"value": NUMBER, "reason": {"type": "null"}}},
            {"properties": {"value": {"type": "null"}, "reason": TEXT}},
        ],
    },
    "SwitchEnd": record(type={"const": "switch"}, dpid=DPID, port=PORT),
    "HostEnd": record(type={"const": "host"}, ip=IPV4, mac=MAC),
    "Endpoint": {"oneOf": [ref("SwitchEnd"), ref("HostEnd")]},
    "LinkId": {
        "type": "string",
        "pattern": r"^[0-9a-f]+(\.[0-9]+)+-[0-9a-f]+(\.[0-9]+)+$",
        "description": "source-destination, each <dpid>.<port> or an IPv4 address",
        "examples": ["00000000000000c1.3-0000000000000011.1", "198.18.0.11-0000000000000011.4"],
    },
}
