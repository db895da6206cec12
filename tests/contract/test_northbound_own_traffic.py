"""What is declared as the orchestrator's own is counted apart from what others send."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from northbound_client import BASE, H1, H4, Client
from ryu.ofproto import ofproto_v1_3 as protocol

PATH = f"{BASE}/own-traffic"
OWN = {"classes": [{"protocol": "tcp", "port": 7000}]}
TO_H4 = f"0000000000000004.11-{H4}"


@pytest.fixture
def client() -> Client:
    """A network in which the two hosts have talked."""
    client = Client()
    client.world.say(H1, H4)
    client.world.advance(1.0)
    return client


def declare(client: Client, body: Any = OWN, **options: Any) -> Any:
    answer = client.ask(PATH, method="PUT", body=json.dumps(body).encode(), **options)
    client.world.advance(3.0)
    return answer


def own_rules(client: Client) -> list[Any]:
    routes = client.world.parts.forwarding._routes
    return [route for route in routes if route.flow.traffic_class is not None and not route.ending]


def entry(*, cookie: int, in_port: int, out_port: int, seconds: float, sent: int, port: int = 7000) -> Any:
    action = SimpleNamespace(type=protocol.OFPAT_OUTPUT, port=out_port)
    return SimpleNamespace(
        cookie=cookie,
        match={"in_port": in_port, "ip_proto": 6, "tcp_dst": port, "ipv4_src": H1, "ipv4_dst": H4},
        instructions=[SimpleNamespace(actions=[action])],
        duration_sec=int(seconds),
        duration_nsec=0,
        byte_count=sent,
    )


def carry(client: Client, *, own_bps: float, port: int = 7000) -> None:
    """Let a rule at the last switch carry so much for some seconds."""
    for second in range(6):
        client.world.now += 1.0
        sent = int(second * own_bps / 8)
        rule = entry(cookie=9, in_port=2, out_port=11, seconds=10 + second, sent=sent, port=port)
        client.world.parts.own_traffic.counted(4, [rule])
        client.world.parts.monitor.sent(4, 11).add(client.world.now, 50.0 + second, second * 1_000_000)


def test_nothing_is_added_while_nothing_is_declared(client: Client) -> None:
    assert client.get(PATH) == {"classes": []}
    assert own_rules(client) == []
    link = client.get(f"{BASE}/links/{TO_H4}")
    assert "PUT own-traffic" in link["own_bps"]["reason"]
    assert "PUT own-traffic" in link["cross_traffic_bps"]["reason"]


def test_a_declared_class_gets_rules_on_the_way_of_every_pair(client: Client) -> None:
    assert declare(client).json == OWN
    routes = own_rules(client)
    flows = {(route.flow.src, route.flow.dst, route.flow.traffic_class.dst_port) for route in routes}
    assert flows == {(H1, H4, 7000), (H1, H4, None), (H4, H1, 7000), (H4, H1, None)}
    pairs = client.world.parts.forwarding._routes
    assert all(route.complete and route.way == pairs.get(route.flow.pair).way for route in routes)


def test_what_was_declared_before_loses_its_rules(client: Client) -> None:
    declare(client)
    assert declare(client, {"classes": []}).json == {"classes": []}
    client.world.advance(10.0)
    assert own_rules(client) == []


def test_a_pair_that_begins_to_talk_later_is_counted_too() -> None:
    client = Client()
    declare(client)
    assert own_rules(client) == []
    client.world.say(H1, H4)
    client.world.advance(2.0)
    assert len(own_rules(client)) == 4


def test_cross_traffic_is_what_others_use(client: Client) -> None:
    declare(client)
    carry(client, own_bps=6e6)
    link = client.get(f"{BASE}/links/{TO_H4}")
    assert link["own_bps"]["value"] == pytest.approx(6e6)
    assert link["used_bps"]["value"] == pytest.approx(8e6)
    assert link["cross_traffic_bps"]["value"] == pytest.approx(2e6)


def test_a_class_with_a_host_gets_only_the_rules_that_can_match(client: Client) -> None:
    own = {"classes": [{"protocol": "tcp", "port": 7000, "host": H4}]}
    assert declare(client, own).json == own
    flows = {
        (route.flow.src, route.flow.dst, *route.flow.traffic_class.as_json()) for route in own_rules(client)
    }
    assert flows == {(H1, H4, "protocol", "dst_port"), (H4, H1, "protocol", "src_port")}


def test_traffic_to_the_same_port_of_another_host_is_not_the_orchestrators(client: Client) -> None:
    declare(client, {"classes": [{"protocol": "tcp", "port": 7000, "host": H1}]})
    carry(client, own_bps=6e6)  # to H4
    assert client.get(f"{BASE}/links/{TO_H4}")["own_bps"]["value"] == 0.0


def test_a_class_that_is_narrowed_to_a_host_keeps_its_rules_there_and_loses_the_others(
    client: Client,
) -> None:
    declare(client)
    kept = {route.flow: route.cookie for route in own_rules(client)}
    declare(client, {"classes": [{"protocol": "tcp", "port": 7000, "host": H4}]})
    client.world.advance(10.0)
    left = {route.flow: route.cookie for route in own_rules(client)}
    assert len(left) == 2
    assert left.items() <= kept.items()


def test_what_own_transfers_can_have_is_not_reduced_by_themselves(client: Client) -> None:
    client.ask(f"{BASE}/links/{TO_H4}", method="PUT", body=b'{"capacity_bps": 20000000}')
    before = client.get(f"{BASE}/links/{TO_H4}")["available_to_own_bps"]
    assert before["value"] is None
    assert "PUT own-traffic" in before["reason"]
    declare(client)
    carry(client, own_bps=6e6)
    link = client.get(f"{BASE}/links/{TO_H4}")
    assert link["available_bps"]["value"] == pytest.approx(12e6)
    assert link["available_to_own_bps"]["value"] == pytest.approx(18e6)


@pytest.mark.parametrize("phase_s", [0.0, 0.2, 0.5, 0.8])
def test_a_transfer_that_has_just_begun_is_hardly_taken_for_that_of_others(
    client: Client, phase_s: float
) -> None:
    """Rules are read in another phase than ports, and what they tell is a quarter of a second old."""
    declare(client)
    world, began = client.world, client.world.now + 8.0
    port = world.parts.monitor.sent(4, 11)
    worst = 0.0
    for tenth in range(150):
        world.now += 0.1
        if tenth % 10 == 3:
            sent = max(0.0, world.now - began) * 1_000_000
            port.add(world.now, 50.0 + world.now, int(sent))
        if tenth % 10 == int(phase_s * 10):
            sent = max(0.0, world.now - 0.25 - began) * 1_000_000
            rule = entry(cookie=9, in_port=2, out_port=11, seconds=tenth // 10 + 10, sent=int(sent))
            world.parts.own_traffic.counted(4, [rule])
        if tenth > 40:
            worst = max(worst, client.get(f"{BASE}/links/{TO_H4}")["cross_traffic_bps"]["value"])
    assert client.get(f"{BASE}/links/{TO_H4}")["own_bps"]["value"] == pytest.approx(8e6, rel=0.2)
    assert worst < 0.1 * 8e6


def test_what_waits_in_the_queue_to_a_host_is_still_the_orchestrators(client: Client) -> None:
    """Rules count 1.5 MB within a second, the port sends it in three; then others send half as fast."""
    declare(client)
    world, began = client.world, client.world.now + 6.0
    port = world.parts.monitor.sent(4, 11)
    shown = []
    for tenth in range(200):
        world.now += 0.1
        since = max(0.0, world.now - began)
        others = max(0.0, since - 7.0) * 250_000
        if tenth % 9 == 3:
            port.add(world.now, 50.0 + world.now, int(min(since, 3.0) * 500_000 + others))
        if tenth % 10 == 7:
            sent = int(min(max(0.0, since - 0.25), 1.0) * 1_500_000)
            rule = entry(cookie=9, in_port=2, out_port=11, seconds=tenth // 10 + 10, sent=sent)
            world.parts.own_traffic.counted(4, [rule])
        if tenth > 40:
            shown.append(client.get(f"{BASE}/links/{TO_H4}")["cross_traffic_bps"]["value"])
    assert max(shown[:85]) < 0.15 * 4e6
    assert shown[-1] == pytest.approx(2e6, rel=0.05)


def test_what_a_new_rule_carried_before_it_was_first_read_counts(client: Client) -> None:
    declare(client)
    world = client.world
    for second in range(4):
        world.now += 1.0
        world.parts.monitor.sent(4, 11).add(world.now, 50.0 + second, max(0, second - 1) * 1_000_000)
        if second >= 2:
            rule = entry(cookie=9, in_port=2, out_port=11, seconds=second - 1, sent=(second - 1) * 1_000_000)
            world.parts.own_traffic.counted(4, [rule])
    link = client.get(f"{BASE}/links/{TO_H4}")
    assert link["own_bps"]["value"] == pytest.approx(8e6)
    assert link["cross_traffic_bps"]["value"] < 0.1 * 8e6


def test_traffic_of_other_ports_is_not_the_orchestrators(client: Client) -> None:
    declare(client)
    carry(client, own_bps=6e6, port=80)
    link = client.get(f"{BASE}/links/{TO_H4}")
    assert link["own_bps"]["value"] == 0.0
    assert link["cross_traffic_bps"]["value"] == pytest.approx(8e6)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ([], "exactly one key"),
        ({"classes": 7}, "exactly one key"),
        ({"classes": [7]}, "a class must be a map"),
        ({"classes": [{"protocol": "icmp", "port": 1}]}, "protocol is 'icmp'; it is tcp or udp"),
        ({"classes": [{"protocol": ["tcp"], "port": 1}]}, "protocol is"),
        ({"classes": [{"protocol": "tcp", "port": 0}]}, "port is '0'"),
        ({"classes": [{"protocol": "tcp", "port": True}]}, "port is 'True'"),
        ({"classes": [{"protocol": "tcp", "port": port} for port in range(1, 7)]}, "4 are the most"),
        ({"classes": [{"protocol": "tcp", "port": 1, "host": "h1"}]}, "host is 'h1', not an IPv4 address"),
        ({"classes": [{"protocol": "tcp", "port": 1, "host": None}]}, "host is 'None'"),
        (
            {"classes": [{"protocol": "tcp", "port": port, "host": H1} for port in range(1, 259)]},
            "258 classes are declared; 256 are the most",
        ),
    ],
)
def test_wrong_declarations_get_one_clear_problem(client: Client, body: Any, detail: str) -> None:
    answer = declare(client, body)
    assert answer.status_int == 400
    assert detail in answer.json["detail"]
    assert client.get(PATH) == {"classes": []}


def test_only_who_has_the_token_declares(client: Client) -> None:
    assert declare(client, token=None).status_int == 401
