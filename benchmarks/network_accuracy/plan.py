"""Decide what is measured: seeded networks over the three setups, how long, with which traffic. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.network_accuracy.traffic import UDP_HEADERS, Flow
from scenarios.schema import Scenario, parse

LOSS_RATIO = 0.01
"""True loss of every access link, each way, while loss is measured."""
UDP_PAYLOAD_BYTES = 400
LEAST_PPS = 150.0
PPS = 200.0
TCP_SHARE = 0.4
MOST_TCP_BPS = 6e6
GREEDY_MOST_BPS = 12e6
_TRAFFIC_STREAM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the benchmark: networks of one size, and what is done on each."""

    name: str
    hosts: int
    domains: int
    networks: int
    idle_s: float
    loaded_s: float
    detect: bool
    pairs: int
    """How many hosts are pinged and loaded; the others are only there."""
    classic: bool
    sample_s: float = 1.0
    """How often everything is read: large networks have answers of a megabyte, which cost the controller."""
    quiet_s: float = 0.0
    """How long, after the idle phase, nobody reads while the controller's CPU is measured."""


def parts(*, networks: int, larger: int, idle_s: float, loaded_s: float, detecting: int) -> dict[str, Part]:
    """Return the parts of a full run by name; `larger` is the number of networks of 40 hosts."""
    return {
        "hosts12": Part(
            name="hosts12", hosts=12, domains=3, networks=networks, idle_s=idle_s, loaded_s=loaded_s,
            detect=False, pairs=12, classic=True,
        ),
        "detection": Part(
            name="detection", hosts=4, domains=2, networks=detecting, idle_s=0, loaded_s=0,
            detect=True, pairs=4, classic=True,
        ),
        "hosts40": Part(
            name="hosts40", hosts=40, domains=8, networks=larger, idle_s=max(idle_s, 60), loaded_s=loaded_s,
            detect=False, pairs=12, classic=False, sample_s=2.0, quiet_s=20.0,
        ),
        "hosts200": Part(
            name="hosts200", hosts=200, domains=48, networks=1, idle_s=max(idle_s, 60), loaded_s=0,
            detect=False, pairs=12, classic=False, sample_s=5.0, quiet_s=20.0,
        ),
    }  # fmt: skip


def quick() -> dict[str, Part]:
    """Return a small run of the same things: to see that they work, never for figures."""
    return {
        "quick": Part(
            name="quick", hosts=3, domains=2, networks=1, idle_s=10, loaded_s=10,
            detect=True, pairs=3, classic=True,
        )
    }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where testbeds may be on this machine: prefix and ports."""

    prefix: str
    openflow_port: int
    northbound_port: int
    api_port: int


def scenario(part: Part, number: int, *, seed: int, place: Place) -> Scenario:
    """Return network `number` of a part: setups 1, 2, 3 in turn, each with a seed of its own."""
    setup = number % 3 + 1
    return parse(
        {
            "name": f"{part.name}-setup{setup}-{seed + number}",
            "seed": seed + number,
            "topology": {"hosts": part.hosts, "domains": part.domains},
            "links": {"setup": setup},
            "devices": {"trusted": []},
            "finetune": {"policies": ["all"]},
            "network": {
                "prefix": place.prefix,
                "openflow_port": place.openflow_port,
                "northbound_port": place.northbound_port,
                "api_port": place.api_port,
            },
        },
        source=f"benchmark part {part.name}",
    )


def measured_hosts(part: Part) -> list[str]:
    """Return the edge hosts that are pinged and loaded: spread evenly over the part's hosts."""
    step = part.hosts / part.pairs
    return [f"h{int(number * step) + 1}" for number in range(part.pairs)]


def background(hosts: list[str], rates_bps: dict[str, float], *, seed: int) -> list[Flow]:
    """Return the load of one network: who of the hosts gets what.

    Two thirds exchange numbered UDP with `orch` both ways, `PPS` datagrams a second, smaller ones where that
    would be more than 60 % of the access link; of the rest half download over TCP, paced to `TCP_SHARE` of
    the access link (at most `MOST_TCP_BPS`), one (the last, on a link of at most `GREEDY_MOST_BPS`) as fast
    as it gets.
    """
    draw = np.random.default_rng([seed, _TRAFFIC_STREAM])
    shuffled = [hosts[number] for number in draw.permutation(len(hosts))]
    count = max(1, round(len(hosts) * 2 / 3))
    flows = []
    for host in shuffled[:count]:
        payload = min(UDP_PAYLOAD_BYTES, int(0.6 * rates_bps[host] / 8 / PPS) - UDP_HEADERS)
        for src, dst in (("orch", host), (host, "orch")):
            flows.append(Flow(kind="udp", src=src, dst=dst, payload_bytes=max(payload, 16), pps=PPS))
    rest = shuffled[count:]
    slow = [host for host in rest if rates_bps[host] <= GREEDY_MOST_BPS]
    greedy = slow[-1] if slow else None
    for host in rest:
        rate = None if host == greedy else min(TCP_SHARE * rates_bps[host], MOST_TCP_BPS)
        flows.append(Flow(kind="tcp", src="orch", dst=host, rate_bps=rate))
    return flows


def profile(part: Part) -> dict[str, Any]:
    """Describe what a part's networks are made of, for the result file."""
    return {
        "hosts": part.hosts + 1,
        "switches": part.domains + 2,
        "networks": part.networks,
        "idle_s": part.idle_s,
        "loaded_s": part.loaded_s,
        "pinged_hosts": part.pairs,
        "loss_ratio_of_access_links": LOSS_RATIO,
        "classic_method": part.classic,
        "read_every_s": part.sample_s,
    }
