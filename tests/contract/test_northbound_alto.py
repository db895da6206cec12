"""Our ALTO resources are read by a client that reads the examples of RFC 7285 and RFC 9439."""

from __future__ import annotations

import copy
import json
from typing import Any

import alto_reader as reader
import pytest
import rfc_examples as rfc
from alto_reader import AltoClient, NotAlto
from northbound_client import BASE, H1, H4, Client

DIRECTORY = f"{BASE}/alto/directory"
S1, S4 = "switch-0000000000000001", "switch-0000000000000004"
E1, E4 = f"ipv4:{H1}", f"ipv4:{H4}"


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


@pytest.fixture(scope="module")
def alto(client: Client) -> AltoClient:
    def send(method: str, uri: str, body: Any, kind: str | None) -> tuple[int, str, Any]:
        sent = None if body is None else json.dumps(body).encode()
        answer = client.ask(uri, method=method, body=sent, token=None)
        return answer.status_int, answer.content_type, answer.json

    return AltoClient(send, DIRECTORY)


# --- the reader reads the RFCs


def test_the_reader_takes_the_examples_of_the_rfcs() -> None:
    assert "endpoint-cost" in reader.read_directory(rfc.DIRECTORY)
    assert len(reader.read_network_map(rfc.NETWORK_MAP)["PID3"]) == 2
    assert reader.read_cost_map(rfc.COST_MAP)[1]["PID3", "PID1"] == 20
    assert reader.read_endpoint_costs(rfc.ENDPOINT_COSTS)[0] == "routingcost"
    assert reader.read_endpoint_costs(rfc.DELAYS)[0] == "delay-ow"
    assert len(reader.read_endpoint_properties(rfc.ENDPOINT_PROPERTIES)) == 2
    assert reader.read_error(rfc.ALTO_ERROR) == "E_INVALID_FIELD_TYPE"


def test_the_reader_refuses_what_the_rfcs_forbid() -> None:
    broken = copy.deepcopy(rfc.COST_MAP)
    broken["meta"]["cost-type"]["cost-metric"] = "bw-maxres"
    with pytest.raises(NotAlto, match="not registered"):
        reader.read_cost_map(broken)
    broken = copy.deepcopy(rfc.COST_MAP)
    broken["cost-map"]["PID1"]["PID2"] = None
    with pytest.raises(NotAlto, match="no number"):
        reader.read_cost_map(broken)
    broken = copy.deepcopy(rfc.DIRECTORY)
    broken["resources"]["numerical-routing-cost-map"]["uses"] = ["gone"]
    with pytest.raises(NotAlto, match="uses gone"):
        reader.read_directory(broken)


# --- and us


def test_the_network_map_has_the_hosts_of_each_edge_switch(alto: AltoClient) -> None:
    found, vtag = alto.network_map()
    assert {pid: [str(prefix) for prefix in prefixes] for pid, prefixes in found.items()} == {
        S1: [f"{H1}/32"],
        S4: [f"{H4}/32"],
    }
    part, same = alto.network_map([S4, "no-such-pid", S4])
    assert set(part) == {S4}
    assert same == vtag == (alto.default_map, vtag[1])
    assert alto.network_map([])[0] == found


@pytest.mark.parametrize(
    ("metric", "path_value", "factor"),
    [
        ("delay-ow", "delay_s", 1e6),
        ("delay-variation", "jitter_s", 1e6),
        ("lossrate", "loss_ratio", 100),
        ("routingcost", "delay_s", 1e3),
    ],
)
def test_costs_are_the_paths_values_in_the_units_of_rfc_9439(
    client: Client, alto: AltoClient, metric: str, path_value: str, factor: float
) -> None:
    path = client.get(f"{BASE}/paths?src={H1}&dst={H4}")
    wanted = pytest.approx(path[path_value]["value"] * factor, rel=0.05)
    assert alto.endpoint_costs(metric, endpoints={"srcs": [E1], "dsts": [E4, E1]}) == {(E1, E4): wanted}
    costs, vtags = alto.cost_map(metric)
    assert costs[S1, S4] == wanted
    assert vtags == [alto.network_map()[1]]
    assert alto.filtered_costs(metric, pids={"srcs": [S1], "dsts": []}) == {(S1, S4): wanted}


def test_bandwidth_is_in_bytes_per_second_and_left_out_while_unknown(
    client: Client, alto: AltoClient
) -> None:
    both = {"srcs": [E1], "dsts": [E4]}
    for metric in ("bw-residual", "bw-available"):
        assert alto.endpoint_costs(metric, endpoints=both) == {}
        assert alto.cost_map(metric)[0] == {}
    for link in client.get(f"{BASE}/links")["links"]:
        body = json.dumps({"capacity_bps": 8e6}).encode()
        assert client.ask(f"{BASE}/links/{link['id']}", method="PUT", body=body).status_int == 200
    assert alto.endpoint_costs("bw-residual", endpoints=both) == {(E1, E4): 1e6}


def test_constraints_leave_out_costs(alto: AltoClient) -> None:
    cost = alto.cost_map("delay-ow")[0][S1, S4]
    assert (S1, S4) in alto.filtered_costs("delay-ow", constraints=[f"ge {cost / 2}", f"le {cost * 2}"])
    assert alto.filtered_costs("delay-ow", constraints=[f"gt {cost * 100}"]) == {}


def test_endpoints_that_are_not_known_have_no_cost_and_no_pid(alto: AltoClient) -> None:
    ends = {"srcs": [E1, "ipv4:203.0.113.1", "ipv6:2001:db8::1"], "dsts": ["ipv4:203.0.113.9"]}
    assert alto.endpoint_costs("delay-ow", endpoints=ends) == {}
    assert alto.endpoint_costs("delay-ow", endpoints={"dsts": [E4]}) == {}  # the client is no host
    assert alto.pids_of([E4, "ipv4:203.0.113.9"]) == {E4: {f"{alto.default_map}.pid": S4}}


GOOD = {"cost-type": {"cost-metric": "delay-ow", "cost-mode": "numerical"}}


@pytest.mark.parametrize(
    ("kind", "body", "code", "field"),
    [
        ("networkmap", {}, "E_MISSING_FIELD", "pids"),
        ("networkmap", {"pids": "x"}, "E_INVALID_FIELD_TYPE", "pids"),
        ("networkmap", {"pids": [], "address-types": ["mac"]}, "E_INVALID_FIELD_VALUE", "address-types"),
        ("costmap", {}, "E_MISSING_FIELD", "cost-type"),
        ("costmap", {"cost-type": {"cost-mode": "numerical"}}, "E_MISSING_FIELD", "cost-type/cost-metric"),
        (
            "costmap",
            {"cost-type": {"cost-metric": "bw-maxres", "cost-mode": "numerical"}},
            "E_INVALID_FIELD_VALUE",
            "cost-type/cost-metric",
        ),
        (
            "costmap",
            {"cost-type": {"cost-metric": "delay-ow", "cost-mode": "ordinal"}},
            "E_INVALID_FIELD_VALUE",
            "cost-type/cost-mode",
        ),
        ("costmap", {**GOOD, "constraints": ["ge ten"]}, "E_INVALID_FIELD_VALUE", "constraints"),
        ("costmap", {**GOOD, "constraints": ["like 1"]}, "E_INVALID_FIELD_VALUE", "constraints"),
        ("costmap", {**GOOD, "pids": {"srcs": [1]}}, "E_INVALID_FIELD_TYPE", "pids/srcs"),
        ("endpointcost", GOOD, "E_MISSING_FIELD", "endpoints"),
        ("endpointcost", {**GOOD, "endpoints": {}}, "E_MISSING_FIELD", "endpoints/dsts"),
        (
            "endpointcost",
            {**GOOD, "endpoints": {"dsts": ["ipv4:1.2.3"]}},
            "E_INVALID_FIELD_VALUE",
            "endpoints/dsts",
        ),
        ("endpointprop", {"properties": ["age"], "endpoints": [E1]}, "E_INVALID_FIELD_VALUE", "properties"),
        ("endpointprop", {"properties": ["network-map.pid"]}, "E_MISSING_FIELD", "endpoints"),
    ],
)
def test_wrong_requests_get_the_error_document_of_the_rfc(
    alto: AltoClient, kind: str, body: Any, code: str, field: str
) -> None:
    error = alto.refused(kind, body)
    assert (error["code"], error["field"]) == (code, field)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 30000, b"\xff", b" " * 70000])
def test_a_body_that_is_no_json_object_is_a_syntax_error(client: Client, body: bytes) -> None:
    answer = client.ask(f"{BASE}/alto/filtered/costmap", method="POST", body=body)
    assert answer.content_type == "application/alto-error+json"
    assert answer.json["meta"]["code"] == "E_SYNTAX"


def test_the_version_tag_changes_when_and_only_when_the_map_does() -> None:
    client = Client()

    def tag() -> str:
        return str(client.get(f"{BASE}/alto/networkmap")["meta"]["vtag"]["tag"])

    first = tag()
    client.world.advance(2.0)
    client.ask(
        f"{BASE}/links/0000000000000001.2-0000000000000002.1", method="PUT", body=b'{"capacity_bps": 1e9}'
    )
    assert tag() == first
    client.world.host("198.18.1.2", 1, 12)
    client.world.say_arp("198.18.1.2", H4)
    client.world.deliver()
    assert tag() != first
    client.world.parts.network.port_changed(client.world.now, 1, 12, "x", up=False)
    assert tag() == first
