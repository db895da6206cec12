"""Pins on simulated switches: a ring with traffic, and which way a packet takes through it."""

from __future__ import annotations

from typing import Any

from ryu_world import World

from ryu_apps import packets
from ryu_apps.pins import read_wish

H1, H2, H4 = "198.18.1.1", "198.18.1.2", "198.18.1.4"


def ring_in_use() -> World:
    """Make four switches in a ring; hosts at 1, 2 and 4 have spoken; the default from 1 to 4 is over 2."""
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
