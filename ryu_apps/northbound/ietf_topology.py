"""The topology as RFC 8345 models it (ietf-network, ietf-network-topology), encoded as RFC 7951 says.

Switches and hosts are nodes, ports and interfaces termination points, and each direction of a link is a link.
There are no layer 3 attributes (RFC 8346): no node here routes, and a host's address is its node's id.
"""

from __future__ import annotations

from typing import Any

from ryu.app.wsgi import Response

from ryu_apps.northbound.http import document
from ryu_apps.northbound.routes import Answer, Api, Request, Route
from ryu_apps.northbound.schemas import TEXT, Schema, listing, record, ref

NETWORK_ID = "utopia"
MEDIA_TYPE = "application/yang-data+json"
"""RFC 8040, section 11.3.2."""

Json = dict[str, Any]


def _networks(api: Api, request: Request) -> Response:
    topology, links = api.views.topology(), api.views.links()["links"]
    network = {
        "network-id": NETWORK_ID,
        "network-types": {},
        "node": [
            *(_node(item["dpid"], _numbers(item["ports"])) for item in topology["switches"]),
            *(_node(item["ip"], [item["mac"]]) for item in topology["hosts"]),
        ],
        "ietf-network-topology:link": [_link(link) for link in links],
    }
    return document({"ietf-network:networks": {"network": [network]}}, media_type=MEDIA_TYPE)


def _node(node_id: str, points: list[str]) -> Json:
    return {
        "node-id": node_id,
        "ietf-network-topology:termination-point": [{"tp-id": point} for point in points],
    }


def _numbers(ports: list[Json]) -> list[str]:
    return [str(port["port"]) for port in ports]


def _link(link: Json) -> Json:
    source, destination = _end(link["src"]), _end(link["dst"])
    return {
        "link-id": link["id"],
        "source": {"source-node": source[0], "source-tp": source[1]},
        "destination": {"dest-node": destination[0], "dest-tp": destination[1]},
    }


def _end(end: Json) -> tuple[str, str]:
    return (end["ip"], end["mac"]) if end["type"] == "host" else (end["dpid"], str(end["port"]))


def _named(**fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {name.replace("__", ":").replace("_", "-"): schema for name, schema in fields.items()},
        "required": [name.replace("__", ":").replace("_", "-") for name in fields],
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Schema] = {
    "IetfNetwork": _named(
        network_id=TEXT,
        network_types={"type": "object"},
        node=listing(
            _named(node_id=TEXT, ietf_network_topology__termination_point=listing(_named(tp_id=TEXT)))
        ),
        ietf_network_topology__link=listing(
            _named(
                link_id=TEXT,
                source=_named(source_node=TEXT, source_tp=TEXT),
                destination=_named(dest_node=TEXT, dest_tp=TEXT),
            )
        ),
    ),
    "IetfNetworks": _named(ietf_network__networks=record(network=listing(ref("IetfNetwork")))),
}

ROUTES = (
    Route(
        method="GET",
        path="/restconf/data/ietf-network:networks",
        handler=_networks,
        summary="Return the topology in the model of RFC 8345",
        answers=(
            Answer(summary="Nodes and links that are up", schema=ref("IetfNetworks"), media_type=MEDIA_TYPE),
        ),
    ),
)
