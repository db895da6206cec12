"""Read the requests of ALTO clients (RFC 7285); whatever is wrong becomes an AltoError that names the field.

Fields that are not known are ignored (section 8.3.7).
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Iterable

from ryu_apps.alto import (
    COST_TYPES,
    ESTIMATION,
    NUMERICAL,
    OPERATORS,
    PID_PROPERTY,
    AltoError,
    CostQuery,
    CostType,
    Json,
    Pids,
)


def parse(body: bytes) -> Json:
    """Return the JSON object that a request carries.

    Raises:
        AltoError: it carries none.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise AltoError("E_SYNTAX", syntax_error=str(error)) from error
    if not isinstance(document, dict):
        raise AltoError("E_SYNTAX", syntax_error="the body must be a JSON object")
    return document


def network_map_query(document: Json, groups: Pids) -> tuple[list[str], bool]:
    """Return which PIDs, and whether IPv4 addresses, are asked for; unknown PIDs are as if not given."""
    wanted = _strings(document, "pids", required=True)
    kinds = _strings(document, "address-types")
    for kind in kinds:
        if kind not in ("ipv4", "ipv6"):
            raise _invalid("address-types", kind)
    shown = [pid for pid in groups if not wanted or pid in wanted]
    return shown, not kinds or "ipv4" in kinds


def cost_map_query(document: Json, groups: Pids) -> CostQuery:
    """Read the request for a filtered cost map; no PIDs means all (RFC 7285, section 11.3.2.3)."""
    asked = _object(document, "pids")
    sides = [_strings(asked, name, prefix="pids/") for name in ("srcs", "dsts")]
    srcs, dsts = [tuple(pid for pid in groups if not side or pid in side) for side in sides]
    return _query(document, srcs, dsts)


def endpoint_cost_query(document: Json, client: str) -> CostQuery:
    """Read the request for endpoint costs; an empty side stands for the client (section 11.5.1.3)."""
    asked = _object(document, "endpoints", required=True)
    sides = [_strings(asked, name, prefix="endpoints/") for name in ("srcs", "dsts")]
    if not any(sides):
        raise AltoError("E_MISSING_FIELD", field="endpoints/dsts")
    for name, side in zip(("srcs", "dsts"), sides, strict=True):
        for address in side:
            _check_address(f"endpoints/{name}", address)
    srcs, dsts = [
        tuple(dict.fromkeys(item.removeprefix("ipv4:") for item in side if item.startswith("ipv4:")))
        for side in (side or [f"ipv4:{client}"] for side in sides)
    ]
    return _query(document, srcs, dsts)


def endpoint_property_query(document: Json) -> list[str]:
    """Return the endpoints whose PID is asked for."""
    for name in _strings(document, "properties", required=True, filled=True):
        if name != PID_PROPERTY:
            raise _invalid("properties", name)
    addresses = _strings(document, "endpoints", required=True, filled=True)
    for address in addresses:
        _check_address("endpoints", address)
    return addresses


def _query(document: Json, srcs: tuple[str, ...], dsts: tuple[str, ...]) -> CostQuery:
    return CostQuery(
        cost_type=_cost_type(document), srcs=srcs, dsts=dsts, constraints=tuple(_constraints(document))
    )


def _cost_type(document: Json) -> CostType:
    asked = _object(document, "cost-type", required=True)
    for name in ("cost-metric", "cost-mode"):
        if name not in asked:
            raise AltoError("E_MISSING_FIELD", field=f"cost-type/{name}")
    for name in ("cost-metric", "cost-mode", "description"):
        if not isinstance(asked.get(name, ""), str):
            raise AltoError("E_INVALID_FIELD_TYPE", field=f"cost-type/{name}")
    cost_type = COST_TYPES.get(asked["cost-metric"])
    if cost_type is None:
        raise _invalid("cost-type/cost-metric", asked["cost-metric"])
    if asked["cost-mode"] != NUMERICAL:
        raise _invalid("cost-type/cost-mode", asked["cost-mode"])
    context = _object(asked, "cost-context", prefix="cost-type/")
    if "cost-context" in asked and context.get("cost-source") != ESTIMATION["cost-source"]:
        raise _invalid("cost-type/cost-context", json.dumps(context))
    return cost_type


def _constraints(document: Json) -> Iterable[tuple[str, float]]:
    for text in _strings(document, "constraints"):
        name, _, number = text.partition(" ")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if name not in OPERATORS or not math.isfinite(limit):
            raise _invalid("constraints", text)
        yield name, limit


def _object(document: Json, name: str, *, required: bool = False, prefix: str = "") -> Json:
    if name not in document:
        if required:
            raise AltoError("E_MISSING_FIELD", field=prefix + name)
        return {}
    value = document[name]
    if not isinstance(value, dict):
        raise AltoError("E_INVALID_FIELD_TYPE", field=prefix + name)
    return value


def _strings(
    document: Json, name: str, *, required: bool = False, filled: bool = False, prefix: str = ""
) -> list[str]:
    if name not in document:
        if required:
            raise AltoError("E_MISSING_FIELD", field=prefix + name)
        return []
    value = document[name]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise AltoError("E_INVALID_FIELD_TYPE", field=prefix + name)
    if filled and not value:
        raise _invalid(prefix + name, "[]")
    return value


def _check_address(field: str, text: str) -> None:
    kind, _, address = text.partition(":")
    try:
        {"ipv4": ipaddress.IPv4Address, "ipv6": ipaddress.IPv6Address}[kind](address)
    except (KeyError, ValueError) as error:
        raise _invalid(field, text) from error


def _invalid(field: str, value: str) -> AltoError:
    return AltoError("E_INVALID_FIELD_VALUE", field=field, value=value[:200])
