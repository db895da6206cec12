"""Wishes for pins: which are refused with what reason, and how those that stand are kept over a restart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ryu_world import KEY, OPTIONS, World
from steering_world import H1, H2, H4, cut, dpids, link, pin, ring_in_use, stands, way

from ryu_apps.errors import BadRequestError, ConflictError, NotFoundError, RequestError, StartError
from ryu_apps.parts import Parts
from ryu_apps.pins import MAX_PINS, PinFile


@pytest.fixture
def world() -> World:
    return ring_in_use()


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
