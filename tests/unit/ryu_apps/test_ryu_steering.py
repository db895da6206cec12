"""Pins on simulated switches: where traffic goes, and how a pin stands."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from ryu_world import World
from steering_world import H1, H2, H4, chosen_by, cut, dpids, link, mend, pin, ring_in_use, stands, way

from ryu_apps import packets, steering
from ryu_apps.pins import read_wish


@pytest.fixture
def world() -> World:
    return ring_in_use()


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
