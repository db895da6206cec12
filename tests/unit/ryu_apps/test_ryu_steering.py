"""Pins on simulated switches: where traffic goes, how a pin stands, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from ryu_world import KEY, OPTIONS, World

from ryu_apps import packets, steering
from ryu_apps.errors import BadRequestError, ConflictError, NotFoundError, RequestError, StartError
from ryu_apps.parts import Parts
from ryu_apps.pins import MAX_PINS, PinFile, read_wish

H1, H2, H4 = "198.18.1.1", "198.18.1.2", "198.18.1.4"


@pytest.fixture
def world() -> World:
    """Four switches in a ring; the hosts at 1, 2 and 4 have spoken; the default from 1 to 4 is over 2."""
    world = World()
    for ip, dpid in ((H1, 1), (H2, 2), (H4, 4)):
        world.host(ip, dpid, 11)
    world.advance(2.0)
    for ip, other in ((H1, H4), (H4, H1), (H2, H1)):
        world.say_arp(ip, other)
    world.deliver()
    world.say(H1, H4)
    world.deliver()
    world.advance(1.0)
    world.received.clear()
    return world


def dpids(*numbers: int) -> list[str]:
    return [f"{number:016x}" for number in numbers]


def link(a: int, b: int) -> str:
    return f"{a:016x}.{b}-{b:016x}.{a}"


def pin(world: World, **wish: Any) -> str:
    """Pin H1 -> H4 and let the switches confirm; return the pin's id."""
    made = world.parts.steering.create(read_wish({"src": H1, "dst": H4, **wish}))
    world.deliver()
    return made.id


def stands(world: World, pin_id: str) -> dict[str, Any]:
    steering = world.parts.steering
    return world.parts.pin_views.pin(steering.get(pin_id), None)


def way(world: World, src: str, dst: str, *, port: int = 9) -> list[int]:
    """Return the switches that a datagram passes; fails on a loop or a switch without a rule."""
    (dpid, in_port), passed = world.hosts[src], []
    packet = packets.parse_ipv4(world.datagram(src, dst, b"", port=port))
    while True:
        assert dpid not in passed
        passed.append(dpid)
        out_port = world.switches[dpid].output(in_port, packet)
        assert out_port is not None, f"no rule at {dpid}"
        if (dpid, out_port) == world.hosts[dst]:
            return passed
        dpid, in_port = out_port, dpid


def cut(world: World, a: int, b: int) -> None:
    world.cables.discard(frozenset((a, b)))
    world.parts.network.port_changed(world.now, a, b, "x", up=False)


def mend(world: World, a: int, b: int) -> None:
    world.cables.add(frozenset((a, b)))
    world.parts.network.port_changed(world.now, a, b, "x", up=True)


def chosen_by(world: World, src: str, dst: str) -> str:
    document = world.parts.views.path_maker()(src, dst)
    assert document is not None
    return str(document["chosen_by"])


def test_an_explicit_pin_leads_one_direction_and_delete_restores_the_default(world: World) -> None:
    assert way(world, H1, H4) == [1, 2, 4]
    assert chosen_by(world, H1, H4) == "default"
    name = pin(world, path=dpids(1, 3, 4))
    assert way(world, H1, H4) == [1, 3, 4]
    assert way(world, H4, H1) == [4, 2, 1]
    assert stands(world, name)["state"] == "installed"
    assert (chosen_by(world, H1, H4), chosen_by(world, H4, H1)) == (f"pin {name}", "default")
    world.parts.steering.delete(name)
    world.deliver()
    assert way(world, H1, H4) == [1, 2, 4]
    assert chosen_by(world, H1, H4) == "default"


def test_a_pin_of_both_directions_leads_the_answers_over_the_same_links(world: World) -> None:
    pin(world, path=[link(1, 3), link(3, 4)], both_directions=True)
    assert (way(world, H1, H4), way(world, H4, H1)) == ([1, 3, 4], [4, 3, 1])


def test_a_class_goes_its_own_way_and_its_answers_come_back_over_it(world: World) -> None:
    name = pin(
        world,
        path=dpids(1, 3, 4),
        both_directions=True,
        traffic_class={"protocol": "udp", "dst_port": 53},
    )
    assert way(world, H1, H4, port=53) == [1, 3, 4]
    assert way(world, H4, H1, port=53) == [4, 3, 1]
    assert way(world, H1, H4) == [1, 2, 4]
    assert chosen_by(world, H1, H4) == "default"
    world.parts.steering.delete(name)
    world.advance(3.0)
    assert way(world, H1, H4, port=53) == [1, 2, 4]
    assert all(
        priority <= 100 or priority == 1000 for s in world.switches.values() for priority, _ in s.rules
    )


def test_a_class_stays_above_its_pairs_pin(world: World) -> None:
    pin(world, path=dpids(1, 2, 4), traffic_class={"protocol": "udp", "dst_port": 53})
    pin(world, path=dpids(1, 3, 4))
    assert (way(world, H1, H4, port=53), way(world, H1, H4)) == ([1, 2, 4], [1, 3, 4])
    part = world.parts.steering.pins[0]
    assert stands(world, part.id)["state"] == "installed"


def test_an_explicit_pin_falls_back_while_its_link_is_down_and_returns_with_it(world: World) -> None:
    name = pin(world, path=dpids(1, 3, 4))
    cut(world, 1, 3)
    world.advance(0.3)
    assert way(world, H1, H4) == [1, 2, 4]
    found = stands(world, name)
    assert found["state"] == "fallback"
    assert "is down; the default path is taken" in found["directions"][0]["reason"]
    assert chosen_by(world, H1, H4) == "default"
    mend(world, 1, 3)
    world.advance(6.0)
    assert way(world, H1, H4) == [1, 3, 4]
    assert stands(world, name)["state"] == "installed"


def test_a_class_whose_link_is_down_follows_its_pair(world: World) -> None:
    name = pin(world, path=dpids(1, 3, 4), traffic_class={"protocol": "udp"})
    cut(world, 3, 4)
    world.advance(0.3)
    assert way(world, H1, H4) == [1, 2, 4]
    assert stands(world, name)["state"] == "fallback"
    mend(world, 3, 4)
    world.advance(6.0)
    assert way(world, H1, H4) == [1, 3, 4]


def test_a_pin_survives_its_switch_starting_anew(world: World) -> None:
    name = pin(world, path=dpids(1, 3, 4))
    world.join(3)
    world.advance(6.0)
    assert way(world, H1, H4) == [1, 3, 4]
    assert stands(world, name)["state"] == "installed"


def test_a_pin_waits_for_a_host_that_is_gone(world: World) -> None:
    name = pin(world, path=dpids(1, 3, 4))
    world.parts.network.port_changed(world.now, 4, 11, "x", up=False)
    assert stands(world, name)["state"] == "waiting"
    world.parts.network.port_changed(world.now, 4, 11, "x", up=True)
    world.advance(1.5)
    world.say_arp(H4, H1)
    world.deliver()
    assert way(world, H1, H4) == [1, 3, 4]
    assert stands(world, name)["state"] == "installed"


def test_a_path_for_a_place_that_the_host_has_left_is_not_taken(world: World) -> None:
    name = pin(world, path=dpids(1, 3, 4))
    world.host(H4, 2, 12)
    world.say_arp(H4, H1)
    world.advance(3.0)
    world.say_arp(H4, H1)
    world.advance(1.0)
    assert way(world, H1, H4) == [1, 2]
    assert "host 198.18.1.4 is at switch 0000000000000002" in stands(world, name)["directions"][0]["reason"]


def slow(world: World, a: int, b: int, delay_s: float) -> None:
    """Make the estimate of a link's delay what it is not, in both directions."""
    for hop in list(world.parts.network.hops):
        if {hop.src, hop.dst} == {a, b}:
            stream = world.parts.prober.hop_stream(hop)
            assert stream is not None
            for _ in range(30):
                stream.delay.add(world.now + 0.001, delay_s)
            stream.delay._value = delay_s


def test_an_objective_moves_a_flow_once_another_way_is_better_for_long_enough(world: World) -> None:
    name = pin(world, objective="delay")
    assert way(world, H1, H4) == [1, 2, 4]
    started = world.now
    while way(world, H1, H4) == [1, 2, 4] and world.now < started + 10:
        slow(world, 1, 2, 0.050)
        world.advance(0.1)
    assert 3.0 <= world.now - started <= 5.0
    found = stands(world, name)["directions"][0]
    assert (way(world, H1, H4), found["moves"], found["state"]) == ([1, 3, 4], 1, "installed")
    assert "alternatives for delay" in found["explanation"]


def test_an_objective_takes_another_way_at_once_when_its_link_fails(world: World) -> None:
    name = pin(world, objective="delay")
    cut(world, 2, 4)
    world.advance(0.5)
    assert way(world, H1, H4) == [1, 3, 4]
    assert stands(world, name)["state"] == "installed"
    cut(world, 3, 4)
    world.advance(0.5)
    found = stands(world, name)["directions"][0]
    assert (found["state"], found["reason"], found["links"]) == ("fallback", "no way leads there now", [])


def test_alternatives_come_with_values_and_reasons(world: World) -> None:
    wish = read_wish({"src": H1, "dst": H4, "objective": "delay", "k": 5, "preview": True})
    (direction,) = world.parts.pin_views.preview(wish)["directions"]
    ways = [part["links"][1:-1] for part in direction["alternatives"]]
    assert ways == [[link(1, 2), link(2, 4)], [link(1, 3), link(3, 4)]]
    assert [part["chosen"] for part in direction["alternatives"]] == [True, False]
    assert direction["alternatives"][0]["delay_s"]["value"] == pytest.approx(0.01, abs=0.01)
    assert world.parts.steering.pins == []


def test_an_objective_with_nothing_measured_says_so(world: World) -> None:
    name = pin(world, objective="available_bandwidth")
    steering = world.parts.steering
    found = world.parts.pin_views.pin(steering.get(name), 2)["directions"][0]
    assert found["explanation"].startswith("no way can be judged by available_bandwidth")
    assert [part["score"] for part in found["alternatives"]] == [None, None]
    assert found["alternatives"][1]["why"].startswith("cannot be judged: available_bandwidth of link")


def test_no_packet_is_lost_or_doubled_while_pins_come_and_go(world: World) -> None:
    sent, name = [], None
    for step in range(120):
        if step % 20 == 5:
            name = pin(world, objective="delay") if step % 40 == 5 else pin(world, path=dpids(1, 3, 4))
        elif step % 20 == 15 and name is not None:
            world.parts.steering.delete(name)
        sent.append(str(step).encode())
        world.say(H1, H4, sent[-1])
        world.advance(0.05)
    arrived = [packets.parse_ipv4(frame) for ip, frame in world.received if ip == H4 and frame[12] == 8]
    got = [packets.udp_payload(each) for each in arrived if each.source == packets.ip_bytes(H1)]
    assert got == sent


def test_pins_are_told_as_events(world: World) -> None:
    told: list[tuple[str, str]] = []
    original = world.parts.steering._signals.emit

    def emit(change: Any, payload: Any) -> None:
        if change == "pin_changed":
            told.append((payload["id"], payload["state"]))
        original(change, payload)

    world.parts.steering._signals.emit = emit  # type: ignore[method-assign]
    name = pin(world, path=dpids(1, 3, 4))
    world.advance(0.3)
    cut(world, 3, 4)
    world.advance(0.3)
    world.parts.steering.delete(name)
    states = [state for _, state in told]
    assert [after for before, after in pairwise(["", *states]) if before != after] == [
        "installing",
        "installed",
        "fallback",
        "deleted",
    ]


# --- over a restart


def restarted(world: World, path: Path) -> None:
    """Let a new controller take over the switches."""
    options = replace(OPTIONS, pins_file=str(path))
    world.parts = Parts(options, key=KEY, clock=lambda: world.now, sleep=world._sleep)
    world.received.clear()
    for dpid in world.switches:
        world.join(dpid)
    world.advance(3.0)


def test_pins_are_kept_over_a_restart_and_installed_again(world: World, tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    restarted(world, path)
    for ip in (H1, H4):
        world.say_arp(ip, H2)
    world.deliver()
    explicit = pin(world, path=dpids(1, 3, 4), both_directions=True)
    pin(world, objective={"delay": 1, "loss": 3}, traffic_class={"dscp": 46})
    before = [each.as_json() for each in world.parts.steering.pins]
    restarted(world, path)
    assert [each.as_json() for each in world.parts.steering.pins] == before
    assert stands(world, explicit)["state"] == "waiting"
    world.say_arp(H1, H2)
    world.say_arp(H4, H2)
    world.advance(0.5)
    assert (way(world, H1, H4), way(world, H4, H1)) == ([1, 3, 4], [4, 3, 1])
    assert stands(world, explicit)["state"] == "installed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read"),
        ("{}", "holds no list"),
        ("[1]", "a pin is not a map"),
        ('[{"id": "x"}]', "the id of a pin is 'x'"),
        (
            '[{"id": "p1", "created_at": 1, "src": "198.18.0.1", "dst": "198.18.0.2", "path": ["y"]}]',
            "not of link",
        ),
        ('[{"id": "p1", "created_at": 1, "src": "h1", "dst": "h2", "objective": "delay"}]', "src is 'h1'"),
    ],
)
def test_a_pins_file_that_is_wrong_stops_the_start_with_the_way_out(
    tmp_path: Path, text: str, said: str
) -> None:
    path = tmp_path / "pins.json"
    path.write_text(text)
    with pytest.raises(StartError, match=said) as found:
        PinFile(str(path)).read()
    assert "--pins" in str(found.value)


def test_nothing_is_pinned_that_cannot_be_kept(world: World, tmp_path: Path) -> None:
    world.parts.steering._file = PinFile(str(tmp_path / "gone" / "pins.json"))
    with pytest.raises(RequestError, match="nothing was changed"):
        pin(world, path=dpids(1, 3, 4))
    assert world.parts.steering.pins == []


# --- what is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": ["x"]}, "which is no id of a link between switches"),
        ({"path": [link(1, 3)]}, "the path ends at switch 0000000000000003, but host 198.18.1.4 is at"),
        ({"path": dpids(3, 4)}, "the path starts at switch 0000000000000003"),
        ({"path": [link(1, 3), link(2, 4)]}, "not contiguous"),
        ({"path": dpids(1, 3, 1, 2, 4)}, "passes switch 0000000000000001 more than once"),
        ({"path": []}, "path is not a list of 1 to 64"),
        ({"path": [7]}, "path holds 7"),
        ({"path": dpids(1, 2), "objective": "delay"}, "exactly one of them"),
        ({}, "exactly one of them"),
        ({"objective": "speed"}, "an objective weighs some of delay"),
        ({"objective": {"delay": -1, "loss": 3}}, "weight of delay is -0.5"),
        ({"objective": {"delay": 0}}, "sum of the weights is 0"),
        ({"objective": {"delay": float("nan")}}, "sum of the weights is nan"),
        ({"objective": {"delay": True}}, "weight of 'delay' is True"),
        ({"objective": 3}, "neither a name nor a map"),
        ({"objective": "delay", "dst": H1}, "src and dst are both"),
        ({"objective": "delay", "src": "h1"}, "src is 'h1', not an IPv4 address"),
        ({"objective": "delay", "k": 0}, "k is 0"),
        ({"objective": "delay", "k": True}, "k is True"),
        ({"objective": "delay", "both_directions": "yes"}, "both_directions is 'yes'"),
        ({"objective": "delay", "hop": 1}, "the body has no 'hop'; it has src, dst"),
        ({"objective": "delay", "traffic_class": {}}, "names a protocol or a DSCP"),
        ({"objective": "delay", "traffic_class": {"dst_port": 80}}, "dst_port is 80 without a protocol"),
        ({"objective": "delay", "traffic_class": {"protocol": "icmp"}}, "protocol is 'icmp'; it is tcp or"),
        ({"objective": "delay", "traffic_class": {"protocol": "tcp", "dst_port": 0}}, "dst_port is 0"),
        (
            {"objective": "delay", "traffic_class": {"protocol": "tcp", "src_port": 65536}},
            "src_port is 65536",
        ),
        ({"objective": "delay", "traffic_class": {"dscp": 64}}, "dscp is 64; it is between 0 and 63"),
        ({"objective": "delay", "traffic_class": {"dscp": None}}, "dscp is None, not a whole number"),
        ({"objective": "delay", "traffic_class": {"port": 1}}, "traffic_class has no 'port'"),
    ],
)
def test_wishes_that_make_no_sense_are_refused_with_thing_and_value(
    world: World, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadRequestError) as found:
        pin(world, **change)
    assert said in found.value.detail
    assert world.parts.steering.pins == []


def refused(kind: type[RequestError], make: Callable[[], Any]) -> str:
    with pytest.raises(kind) as found:
        make()
    return found.value.detail


def test_what_is_unknown_down_or_taken_is_refused_with_the_way_out(world: World) -> None:
    def make(**wish: Any) -> Callable[[], Any]:
        return lambda: pin(world, **wish)

    assert "known hosts" in refused(NotFoundError, make(objective="delay", dst="198.18.9.9"))
    assert "connected: 0000000000000001" in refused(NotFoundError, make(path=dpids(1, 9, 4)))
    assert "no link from switch" in refused(ConflictError, make(path=dpids(1, 4)))
    cut(world, 1, 3)
    assert "GET /northbound/v1/links" in refused(ConflictError, make(path=[link(1, 3), link(3, 4)]))
    name = pin(world, objective="delay", both_directions=True)
    assert f"DELETE /northbound/v1/paths/{name}" in refused(
        ConflictError, make(path=dpids(4, 2, 1), src=H4, dst=H1)
    )
    assert f"known pins: {name}" in refused(NotFoundError, lambda: world.parts.steering.delete("p99"))


def test_there_are_not_more_pins_than_the_most(world: World) -> None:
    for number in range(MAX_PINS):
        pin(world, objective="delay", traffic_class={"protocol": "udp", "dst_port": 1000 + number})
    detail = refused(ConflictError, lambda: pin(world, objective="delay"))
    assert f"there are {MAX_PINS} pins" in detail


def test_the_file_is_replaced_whole(world: World, tmp_path: Path) -> None:
    path = tmp_path / "pins.json"
    world.parts.steering._file = PinFile(str(path))
    name = pin(world, path=dpids(1, 3, 4))
    assert [item["path"] for item in json.loads(path.read_text())] == [[link(1, 3), link(3, 4)]]
    world.parts.steering.delete(name)
    assert json.loads(path.read_text()) == []
    assert [file.name for file in tmp_path.iterdir()] == ["pins.json"]


def test_looking_up_ways_never_takes_a_round_over(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    for ip in (H1, H2, H4):
        for other in (H1, H2, H4):
            if ip != other:
                for weights in ({"delay": 1}, {"loss": 1}, {"delay": 1, "loss": 1}):
                    part = {"dscp": len(weights) * 10 + len(str(weights))}
                    wish = {"src": ip, "dst": other, "objective": weights, "traffic_class": part}
                    world.parts.steering.create(read_wish(wish))
    rounds: Counter[float] = Counter()
    original = steering.candidates

    def counted(*given: Any) -> Any:
        rounds[world.now] += 1
        return original(*given)

    monkeypatch.setattr(steering, "candidates", counted)
    world.parts.steering._topology_changed()
    world.advance(3.0)
    assert sum(rounds.values()) >= 18
    assert max(rounds.values()) <= steering.SEARCHES


def test_traffic_and_pins_go_round_a_switch_that_fails(world: World) -> None:
    name = pin(world, objective="loss")
    other = world.parts.steering.create(
        read_wish({"src": H1, "dst": H4, "path": dpids(1, 2, 4), "traffic_class": {"dscp": 46}})
    )
    for neighbour in (1, 4):
        world.cables.discard(frozenset((2, neighbour)))
        world.parts.network.port_changed(world.now, neighbour, 2, "x", up=False)
    world.parts.network.switch_left(world.now, world.switches[2])
    world.advance(0.5)
    assert (way(world, H1, H4), way(world, H4, H1)) == ([1, 3, 4], [4, 3, 1])
    assert [stands(world, each)["state"] for each in (name, other.id)] == ["installed", "fallback"]
