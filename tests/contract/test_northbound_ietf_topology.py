"""Our topology is valid where the example of RFC 8345 is: names, keys and references of its YANG modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import rfc_examples as rfc
from northbound_client import BASE, H1, H4, LINK, Client

URI = "/restconf/data/ietf-network:networks"
POINTS, LINKS = "ietf-network-topology:termination-point", "ietf-network-topology:link"


def check(document: Any) -> dict[str, dict[str, tuple[str, str, str, str]]]:
    """Return the links of each network, having checked what ietf-network and ietf-network-topology demand."""
    assert set(document) == {"ietf-network:networks"}
    networks = document["ietf-network:networks"]["network"]
    keyed(networks, "network-id")
    return {network["network-id"]: check_network(network) for network in networks}


def check_network(network: Any) -> dict[str, tuple[str, str, str, str]]:
    assert set(network) <= {"network-id", "network-types", "supporting-network", "node", LINKS}
    assert isinstance(network["network-types"], dict)
    points = {}
    for node in keyed(network["node"], "node-id"):
        assert set(node) <= {"node-id", "supporting-node", POINTS}
        points[node["node-id"]] = {point["tp-id"] for point in keyed(node[POINTS], "tp-id")}
    found = {}
    for link in keyed(network[LINKS], "link-id"):
        assert set(link) <= {"link-id", "source", "destination", "supporting-link"}
        ends = (
            link["source"]["source-node"],
            link["source"]["source-tp"],
            link["destination"]["dest-node"],
            link["destination"]["dest-tp"],
        )
        for node, point in (ends[:2], ends[2:]):
            assert point in points[node], f"{link['link-id']} ends at {point}, which {node} does not have"
        found[link["link-id"]] = ends
    return found


def keyed(items: Any, key: str) -> Any:
    """Check that a YANG list has its key, once each, as a string that is not empty (inet:uri)."""
    keys = [item[key] for item in items]
    assert all(isinstance(value, str) and value for value in keys)
    assert len(keys) == len(set(keys))
    return items


def test_the_check_takes_the_example_of_the_rfc() -> None:
    links = check(rfc.TOPOLOGY)["otn-hc"]
    assert links["D2,2-3-1,D3,3-2-1"] == ("D2", "2-3-1", "D3", "3-2-1")
    assert len(links) == 6


def test_the_check_refuses_a_link_that_ends_nowhere() -> None:
    broken = copy.deepcopy(rfc.TOPOLOGY)
    broken["ietf-network:networks"]["network"][0][LINKS][0]["source"]["source-tp"] = "1-9-1"
    with pytest.raises(AssertionError, match="does not have"):
        check(broken)


def test_switches_hosts_and_links_are_in_the_model_of_the_rfc() -> None:
    client = Client()
    answer = client.ask(URI, token=None)
    assert answer.content_type == "application/yang-data+json"
    links = check(answer.json)["utopia"]
    assert set(links) == set(client.get(f"{BASE}/topology")["links"])
    assert links[LINK] == ("0000000000000001", "2", "0000000000000002", "1")
    mac = next(host["mac"] for host in client.get(f"{BASE}/topology")["hosts"] if host["ip"] == H1)
    assert links[f"{H1}-0000000000000001.11"] == (H1, mac, "0000000000000001", "11")
    nodes = {node["node-id"]: node for node in answer.json["ietf-network:networks"]["network"][0]["node"]}
    assert set(nodes) == {f"{number:016x}" for number in (1, 2, 3, 4)} | {H1, H4}
