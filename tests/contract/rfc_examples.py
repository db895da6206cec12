"""Examples of the RFCs, with which the readers of the contract tests are tested.

Network map, cost map and endpoint cost (RFC 7285, sections 11.2.1.7, 11.2.3.7, 11.5.1.7) hold the RFC's
facts, checked against a transcription of it, with its many alike entries left out. Directory, endpoint
properties and errors (9.2.3, 11.4.1.7, 8.5) follow its form and were written from memory. Of RFC 8345
(appendix B) the names are confirmed; of RFC 9439 (3.1, 4.1) the form is the RFC's, the numbers are ours.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

DIRECTORY: Json = {
    "meta": {
        "cost-types": {
            "num-routing": {
                "cost-mode": "numerical",
                "cost-metric": "routingcost",
                "description": "My default",
            },
            "ord-routing": {"cost-mode": "ordinal", "cost-metric": "routingcost"},
        },
        "default-alto-network-map": "my-default-network-map",
    },
    "resources": {
        "my-default-network-map": {
            "uri": "http://alto.example.com/networkmap",
            "media-type": "application/alto-networkmap+json",
        },
        "numerical-routing-cost-map": {
            "uri": "http://alto.example.com/costmap/num/routingcost",
            "media-type": "application/alto-costmap+json",
            "capabilities": {"cost-type-names": ["num-routing"]},
            "uses": ["my-default-network-map"],
        },
        "filtered-network-map": {
            "uri": "http://alto.example.com/networkmap/filtered",
            "media-type": "application/alto-networkmap+json",
            "accepts": "application/alto-networkmapfilter+json",
            "uses": ["my-default-network-map"],
        },
        "filtered-cost-map": {
            "uri": "http://alto.example.com/costmap/filtered",
            "media-type": "application/alto-costmap+json",
            "accepts": "application/alto-costmapfilter+json",
            "capabilities": {"cost-constraints": True, "cost-type-names": ["num-routing", "ord-routing"]},
            "uses": ["my-default-network-map"],
        },
        "endpoint-property": {
            "uri": "http://alto.example.com/endpointprop/lookup",
            "media-type": "application/alto-endpointprop+json",
            "accepts": "application/alto-endpointpropparams+json",
            "capabilities": {"prop-types": ["my-default-network-map.pid", "priv:ietf-example-prop"]},
        },
        "endpoint-cost": {
            "uri": "http://alto.example.com/endpointcost/lookup",
            "media-type": "application/alto-endpointcost+json",
            "accepts": "application/alto-endpointcostparams+json",
            "capabilities": {"cost-constraints": True, "cost-type-names": ["num-routing", "ord-routing"]},
        },
    },
}

NETWORK_MAP: Json = {
    "meta": {
        "vtag": {
            "resource-id": "my-default-network-map",
            "tag": "da65eca2eb7a10ce8b059740b0b2e3f8eb1d4785",
        }
    },
    "network-map": {
        "PID1": {"ipv4": ["192.0.2.0/24", "198.51.100.0/25"]},
        "PID2": {"ipv4": ["198.51.100.128/25"]},
        "PID3": {"ipv4": ["0.0.0.0/0"], "ipv6": ["::/0"]},
    },
}

COST_MAP: Json = {
    "meta": {
        "dependent-vtags": [
            {"resource-id": "my-default-network-map", "tag": "3ee2cb7e8d63d9fab71b9b34cbf764436315542e"}
        ],
        "cost-type": {"cost-mode": "numerical", "cost-metric": "routingcost"},
    },
    "cost-map": {
        "PID1": {"PID1": 1, "PID2": 5, "PID3": 10},
        "PID2": {"PID1": 5, "PID2": 1, "PID3": 15},
        "PID3": {"PID1": 20, "PID2": 15},
    },
}

ENDPOINT_COSTS: Json = {
    "meta": {"cost-type": {"cost-mode": "ordinal", "cost-metric": "routingcost"}},
    "endpoint-cost-map": {
        "ipv4:192.0.2.2": {"ipv4:192.0.2.89": 1, "ipv4:198.51.100.34": 2, "ipv4:203.0.113.45": 3}
    },
}

DELAYS: Json = {
    "meta": {
        "cost-type": {
            "cost-mode": "numerical",
            "cost-metric": "delay-ow",
            "cost-context": {"cost-source": "estimation"},
        }
    },
    "endpoint-cost-map": {"ipv4:192.0.2.2": {"ipv4:192.0.2.89": 10000, "ipv4:198.51.100.34": 20000.5}},
}

ENDPOINT_PROPERTIES: Json = {
    "meta": {
        "dependent-vtags": [
            {"resource-id": "my-default-network-map", "tag": "7915dc0290c2705481c491a2b4ffbec482b3cf62"}
        ]
    },
    "endpoint-properties": {
        "ipv4:192.0.2.34": {"my-default-network-map.pid": "PID1", "priv:ietf-example-prop": "1"},
        "ipv4:203.0.113.129": {"my-default-network-map.pid": "PID3"},
    },
}

ALTO_ERROR: Json = {"meta": {"code": "E_INVALID_FIELD_TYPE", "field": "cost-type/cost-mode"}}


def _link(source: str, source_tp: str, dest: str, dest_tp: str) -> Json:
    return {
        "link-id": f"{source},{source_tp},{dest},{dest_tp}",
        "source": {"source-node": source, "source-tp": source_tp},
        "destination": {"dest-node": dest, "dest-tp": dest_tp},
    }


TOPOLOGY: Json = {
    "ietf-network:networks": {
        "network": [
            {
                "network-types": {},
                "network-id": "otn-hc",
                "node": [
                    {
                        "node-id": f"D{number}",
                        "ietf-network-topology:termination-point": [
                            {"tp-id": f"{number}-{other}-1"} for other in (0, 1, 2, 3) if other != number
                        ],
                    }
                    for number in (1, 2, 3)
                ],
                "ietf-network-topology:link": [
                    _link("D1", "1-2-1", "D2", "2-1-1"),
                    _link("D1", "1-3-1", "D3", "3-1-1"),
                    _link("D2", "2-1-1", "D1", "1-2-1"),
                    _link("D2", "2-3-1", "D3", "3-2-1"),
                    _link("D3", "3-1-1", "D1", "1-3-1"),
                    _link("D3", "3-2-1", "D2", "2-3-1"),
                ],
            }
        ]
    }
}
