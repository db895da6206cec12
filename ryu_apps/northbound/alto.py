"""ALTO information resources (RFC 7285, RFC 9439) on the controller's view of the network.

Everything is found from the directory. POST requests only ask, so they need no token.
"""

from __future__ import annotations

from collections.abc import Iterable

from ryu.app.wsgi import Response
from ryu.lib import hub

from ryu_apps import alto, alto_queries
from ryu_apps.alto import COST_TYPES, AltoError, CostType
from ryu_apps.errors import NotFoundError, RequestError
from ryu_apps.northbound.http import MAX_BODY_BYTES, document, problem
from ryu_apps.northbound.paths import PATHS_PER_BREATH
from ryu_apps.northbound.routes import BASE, Answer, Api, Parameter, Request, Route
from ryu_apps.northbound.schemas import TEXT, Schema, listing, one_of, ref

PREFIX = f"{BASE}/alto"
MAX_ENDPOINT_PAIRS = 10_000


def _directory(api: Api, request: Request) -> Response:
    return _answer("directory", alto.directory())


def _network_map(api: Api, request: Request) -> Response:
    groups = _pids(api)
    return _answer("networkmap", alto.network_map(groups, groups))


def _filtered_network_map(api: Api, request: Request) -> Response:
    groups = _pids(api)
    shown, ipv4 = alto_queries.network_map_query(alto_queries.parse(_body(request)), groups)
    return _answer("networkmap", alto.network_map(groups, shown, ipv4=ipv4))


def _cost_map(api: Api, request: Request, cost_metric: str) -> Response:
    cost_type = COST_TYPES.get(cost_metric)
    if cost_type is None:
        raise NotFoundError(
            f"there is no cost map of {cost_metric}; there are those of {', '.join(COST_TYPES)}"
        )
    groups = _pids(api)
    sampled = alto.sample(groups)
    costs = _costs(api, alto.between(sampled, groups, groups), cost_type)
    return _answer("costmap", alto.cost_map(groups, sampled, costs, cost_type))


def _filtered_cost_map(api: Api, request: Request) -> Response:
    groups = _pids(api)
    query = alto_queries.cost_map_query(alto_queries.parse(_body(request)), groups)
    sampled = alto.sample(groups)
    costs = _costs(api, alto.between(sampled, query.srcs, query.dsts), query.cost_type)
    return _answer("costmap", alto.cost_map(groups, sampled, costs, query.cost_type, query))


def _endpoint_costs(api: Api, request: Request) -> Response:
    query = alto_queries.endpoint_cost_query(alto_queries.parse(_body(request)), request.remote_addr or "")
    hosts = {host for group in _pids(api).values() for host in group}
    srcs = [host for host in query.srcs if host in hosts]
    dsts = [host for host in query.dsts if host in hosts]
    if len(srcs) * len(dsts) > MAX_ENDPOINT_PAIRS:
        raise AltoError(
            "E_INVALID_FIELD_VALUE",
            field="endpoints",
            value=f"{len(srcs)} times {len(dsts)} known endpoints; {MAX_ENDPOINT_PAIRS} pairs are the most",
        )
    pairs = [(src, dst) for src in srcs for dst in dsts if src != dst]
    return _answer("endpointcost", alto.endpoint_cost_map(_costs(api, pairs, query.cost_type), query))


def _endpoint_properties(api: Api, request: Request) -> Response:
    addresses = alto_queries.endpoint_property_query(alto_queries.parse(_body(request)))
    return _answer("endpointprop", alto.endpoint_properties(_pids(api), addresses))


def _pids(api: Api) -> alto.Pids:
    return alto.pids((host["ip"], host["dpid"]) for host in api.views.topology()["hosts"])


def _costs(api: Api, pairs: Iterable[tuple[str, str]], cost_type: CostType) -> dict[tuple[str, str], float]:
    """Return the costs that are known, all from the same values."""
    make, costs = api.views.path_maker(), {}
    for number, pair in enumerate(pairs, 1):
        path = make(*pair)
        cost = None if path is None else cost_type.cost(path)
        if cost is not None:
            costs[pair] = cost
        if number % PATHS_PER_BREATH == 0:
            hub.sleep(0)
    return costs


def _body(request: Request) -> bytes:
    length = request.content_length or 0
    if length > MAX_BODY_BYTES:
        raise AltoError("E_SYNTAX", syntax_error=f"{length} bytes; {MAX_BODY_BYTES} are the most")
    return bytes(request.body) if length else b""


def _answer(kind: str, content: alto.Json) -> Response:
    return document(content, media_type=f"application/alto-{kind}+json")


def _refuse(error: RequestError) -> Response:
    if isinstance(error, AltoError):
        return document(error.document, status=error.status, media_type="application/alto-error+json")
    return problem(error)


_VTAG: Schema = {
    "type": "object",
    "properties": {"resource-id": TEXT, "tag": {"type": "string", "pattern": "^[!-~]{1,64}$"}},
    "required": ["resource-id", "tag"],
}
_COST_TYPE: Schema = {
    "type": "object",
    "properties": {
        "cost-metric": one_of(*COST_TYPES),
        "cost-mode": {"const": alto.NUMERICAL},
        "cost-context": {
            "type": "object",
            "properties": {"cost-source": {"const": "estimation"}},
            "required": ["cost-source"],
        },
        "description": TEXT,
    },
    "required": ["cost-metric", "cost-mode"],
}
_COSTS: Schema = {
    "type": "object",
    "additionalProperties": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}},
}
_ADDRESSES: Schema = listing({"type": "string", "pattern": "^(ipv4|ipv6):"})


def _object(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    """Return an object that may have more fields: readers ignore what they do not know (section 8.3.7)."""
    named = {name.replace("_", "-"): schema for name, schema in fields.items()}
    return {"type": "object", "properties": named, "required": list(required)}


SCHEMAS: dict[str, Schema] = {
    "AltoVersionTag": _VTAG,
    "AltoCostType": _COST_TYPE,
    "AltoDirectory": _object(
        ("meta", "resources"),
        meta=_object(
            ("cost-types", "default-alto-network-map"),
            cost_types={"type": "object", "additionalProperties": ref("AltoCostType")},
            default_alto_network_map=TEXT,
        ),
        resources={
            "type": "object",
            "additionalProperties": _object(
                ("uri", "media-type"),
                uri=TEXT,
                media_type=TEXT,
                accepts=TEXT,
                capabilities={"type": "object"},
                uses=listing(TEXT),
            ),
        },
    ),
    "AltoNetworkMap": _object(
        ("meta", "network-map"),
        meta=_object(("vtag",), vtag=ref("AltoVersionTag")),
        network_map={
            "type": "object",
            "additionalProperties": _object(
                ipv4=listing({"type": "string", "pattern": r"^\d+\.\d+\.\d+\.\d+/\d+$"})
            ),
        },
    ),
    "AltoNetworkMapFilter": _object(
        ("pids",), pids=listing(TEXT), address_types=listing(one_of("ipv4", "ipv6"))
    ),
    "AltoCostMap": _object(
        ("meta", "cost-map"),
        meta=_object(
            ("dependent-vtags", "cost-type"),
            dependent_vtags=listing(ref("AltoVersionTag")),
            cost_type=ref("AltoCostType"),
        ),
        cost_map=_COSTS,
    ),
    "AltoCostMapFilter": _object(
        ("cost-type",),
        cost_type=ref("AltoCostType"),
        constraints=listing(TEXT),
        pids=_object(srcs=listing(TEXT), dsts=listing(TEXT)),
    ),
    "AltoEndpointCosts": _object(
        ("meta", "endpoint-cost-map"),
        meta=_object(("cost-type",), cost_type=ref("AltoCostType")),
        endpoint_cost_map=_COSTS,
    ),
    "AltoEndpointCostQuery": _object(
        ("cost-type", "endpoints"),
        cost_type=ref("AltoCostType"),
        constraints=listing(TEXT),
        endpoints=_object(srcs=_ADDRESSES, dsts=_ADDRESSES),
    ),
    "AltoEndpointProperties": _object(
        ("meta", "endpoint-properties"),
        meta=_object(("dependent-vtags",), dependent_vtags=listing(ref("AltoVersionTag"))),
        endpoint_properties={
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": TEXT},
        },
    ),
    "AltoEndpointPropertyQuery": _object(
        ("properties", "endpoints"),
        properties={**listing({"const": alto.PID_PROPERTY}), "minItems": 1},
        endpoints={**_ADDRESSES, "minItems": 1},
    ),
    "AltoError": _object(
        ("meta",),
        meta=_object(
            ("code",),
            code=one_of("E_SYNTAX", "E_MISSING_FIELD", "E_INVALID_FIELD_TYPE", "E_INVALID_FIELD_VALUE"),
            syntax_error=TEXT,
            field=TEXT,
            value=TEXT,
        ),
    ),
}


def _is(kind: str, schema: str, summary: str) -> tuple[Answer, ...]:
    return (Answer(summary=summary, schema=ref(schema), media_type=f"application/alto-{kind}+json"),)


_REFUSED = Answer(
    summary="ALTO error", schema=ref("AltoError"), status=400, media_type="application/alto-error+json"
)

ROUTES = (
    Route(
        method="GET",
        path=f"{PREFIX}/directory",
        handler=_directory,
        summary="ALTO: list the information resources",
        answers=_is("directory", "AltoDirectory", "Where everything is"),
    ),
    Route(
        method="GET",
        path=f"{PREFIX}/networkmap",
        handler=_network_map,
        summary="ALTO: return the network map, one PID per edge switch",
        answers=_is("networkmap", "AltoNetworkMap", "All known hosts by PID"),
    ),
    Route(
        method="POST",
        path=f"{PREFIX}/filtered/networkmap",
        handler=_filtered_network_map,
        summary="ALTO: return some PIDs of the network map",
        body=ref("AltoNetworkMapFilter"),
        body_type="application/alto-networkmapfilter+json",
        answers=_is("networkmap", "AltoNetworkMap", "The PIDs that were asked for and are known"),
        refusals=(_REFUSED,),
        refuse=_refuse,
    ),
    Route(
        method="GET",
        path=f"{PREFIX}/costmap/{{cost_metric}}",
        handler=_cost_map,
        summary="ALTO: return the costs between all PIDs",
        in_path=(
            Parameter(name="cost_metric", summary="A metric of the directory", schema=one_of(*COST_TYPES)),
        ),
        answers=_is("costmap", "AltoCostMap", "The costs that are known"),
        problems=(404,),
    ),
    Route(
        method="POST",
        path=f"{PREFIX}/filtered/costmap",
        handler=_filtered_cost_map,
        summary="ALTO: return some costs between PIDs",
        body=ref("AltoCostMapFilter"),
        body_type="application/alto-costmapfilter+json",
        answers=_is("costmap", "AltoCostMap", "Those of the costs asked for that are known"),
        refusals=(_REFUSED,),
        refuse=_refuse,
    ),
    Route(
        method="POST",
        path=f"{PREFIX}/endpointcost",
        handler=_endpoint_costs,
        summary="ALTO: return costs between hosts",
        body=ref("AltoEndpointCostQuery"),
        body_type="application/alto-endpointcostparams+json",
        answers=_is("endpointcost", "AltoEndpointCosts", "Those of the costs asked for that are known"),
        refusals=(_REFUSED,),
        refuse=_refuse,
    ),
    Route(
        method="POST",
        path=f"{PREFIX}/endpointprop",
        handler=_endpoint_properties,
        summary="ALTO: return the PIDs of hosts",
        body=ref("AltoEndpointPropertyQuery"),
        body_type="application/alto-endpointpropparams+json",
        answers=_is("endpointprop", "AltoEndpointProperties", "Those of the hosts asked for that are known"),
        refusals=(_REFUSED,),
        refuse=_refuse,
    ),
)
