"""Read the controller second by second beside the truth, and make rows of it; phases.py says which."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

from benchmarks.network_accuracy import plan
from benchmarks.network_accuracy.interfaces import Watch
from benchmarks.network_accuracy.northbound import cpu_s
from benchmarks.network_accuracy.pinger import Pinger
from benchmarks.network_accuracy.world import World
from topologies import userspace_switch

Row = dict[str, Any]
PING_INTERVAL_S = 0.2
TRUTH_SPAN_S = 2.0
REFRESHED = ("delay_s", "used_bps")


class Samples:
    """What one phase collects, second by second."""

    def __init__(self, world: World, phase: str, pinger: Pinger, watch: Watch) -> None:
        self._world, self._phase, self._pinger, self._watch = world, phase, pinger, watch
        self._delays: dict[str, list[Any]] = defaultdict(list)
        self._link_delays: dict[str, list[Any]] = defaultdict(list)
        self._bandwidths: dict[tuple[str, str], list[Any]] = defaultdict(list)
        self._ages: list[float] = []
        self._oldest: list[str] = []
        self._links: dict[str, Any] = {}

    def take(self) -> None:
        """Take one second's samples."""
        world = self._world
        now = time.time()
        orch = world.ip("orch")
        forth = world.northbound.paths(f"src={orch}")
        back = world.northbound.paths(f"dst={orch}")
        self._links = world.northbound.links()
        classic = None if world.rival is None else world.rival.document()
        for host in world.edge:
            there, here = forth.get((orch, world.ip(host))), back.get((world.ip(host), orch))
            if there is None or here is None:
                continue
            self._take_delay(host, now, there, here, classic)
            self._take_bandwidth(host, now, there, here, classic)
        self._take_links(classic)

    def _take_delay(self, host: str, now: float, there: Row, here: Row, classic: Row | None) -> None:
        trip_s = self._pinger.round_trip_s("orch", host, now - TRUTH_SPAN_S, now)
        ways = there["delay_s"]["value"], here["delay_s"]["value"]
        ours = None if None in ways else (ways[0] + ways[1]) / 2
        theirs = None if classic is None else _classic_delay_s(classic, there, here)
        truth = None if trip_s is None else trip_s / 2
        self._delays[host].append({"truth_s": truth, "measured_s": ours, "classic_s": theirs})

    def _take_bandwidth(self, host: str, now: float, there: Row, here: Row, classic: Row | None) -> None:
        rates = self._watch.rates_bps(host, now - TRUTH_SPAN_S, now)
        if rates is None:
            return
        capacity = self._world.rate_bps(host)
        arrives = 1 - plan.LOSS_RATIO
        counted = {
            ("orch", host): (rates.received_bps, rates.trains_received_bps),
            (host, "orch"): (rates.sent_bps * arrives, rates.trains_sent_bps * arrives),
        }
        switch = self._world.access_ids(host)[1].split("-")[0]
        port = (classic or {"ports": {}})["ports"].get(switch)
        for (pair, (used, trains)), path in zip(counted.items(), (there, here), strict=True):
            self._bandwidths[pair].append(
                {
                    "truth_bps": max(0.0, capacity - (used - trains)),
                    "counted_bps": max(0.0, capacity - used),
                    "measured_bps": path["available_bps"]["value"],
                    "classic_bps": None if port is None else port["free_bps"],
                    "classic_told_bps": None if port is None else max(0.0, capacity - port["speed_bps"]),
                }
            )

    def _take_links(self, classic: Row | None) -> None:
        ages = {}
        for link_id, link in self._links.items():
            known = (classic or {"links": {}})["links"].get(link_id)
            self._link_delays[link_id].append(
                {
                    "measured_s": link["delay_s"]["value"],
                    "classic_s": None if known is None else known["delay_s"],
                }
            )
            for metric in REFRESHED:
                ages[f"{link_id} {metric}"] = link[metric]["age_s"]
        known_ages = {name: age for name, age in ages.items() if age is not None}
        if known_ages:
            oldest = max(known_ages, key=lambda name: known_ages[name])
            self._ages.append(known_ages[oldest])
            self._oldest.append(oldest)

    def rows(self) -> list[Row]:
        """Return the rows of the phase."""
        world = self._world
        rows: list[Row] = []
        for host, samples in self._delays.items():
            configured = world.spec.end_to_end(host).delay_s
            rows.append({"kind": "path_delay", "host": host, "configured_s": configured, "samples": samples})
        if self._phase == "idle":
            rows += self._link_rows()
        for (src, dst), samples in self._bandwidths.items():
            host = dst if src == "orch" else src
            rows.append(
                {
                    "kind": "bandwidth",
                    "src": src,
                    "dst": dst,
                    "capacity_bps": world.rate_bps(host),
                    "capacity_configured": host in world.configured,
                    "samples": samples,
                }
            )
        rows += [self._capacity_row(host) for host in world.edge]
        rows.append({"kind": "refresh", "ages_s": self._ages, "oldest": self._oldest})
        return rows

    def _link_rows(self) -> list[Row]:
        rows = []
        for link in self._world.status.links:
            delays_s = {side: does["delay_s"] for side, does in link["current"].items()}
            for side, link_id in link["northbound"].items():
                rows.append(
                    {
                        "kind": "link_delay",
                        "link": link_id,
                        "between_switches": link["kind"] == "core" and "orch" not in (link["a"], link["b"]),
                        "asymmetric": len(set(delays_s.values())) > 1,
                        "configured_s": delays_s[side],
                        "samples": self._link_delays.get(link_id, []),
                    }
                )
        return rows

    def _capacity_row(self, host: str) -> Row:
        link = self._links.get(self._world.access_ids(host)[1])
        estimate = None if link is None else link["estimated_capacity_bps"]
        return {
            "kind": "capacity",
            "host": host,
            "truth_bps": self._world.spec.link(self._world.access(host)).a_to_b.rate_bps,
            "estimate": estimate,
        }


def _classic_delay_s(classic: Row, there: Row, here: Row) -> float | None:
    """Return the one-way delay that the classic method has for a path: the links between switches only."""
    total = 0.0
    for link_id in (*there["links"], *here["links"]):
        if any(end.count(".") == 3 for end in link_id.split("-")):
            continue  # the last mile is unknown to it
        if link_id not in classic["links"]:
            return None
        total += float(classic["links"][link_id]["delay_s"])
    return total / 2


class Costs:
    """What measuring cost the controller between two moments."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._at, self._cpu_s = time.monotonic(), cpu_s(world.controller_pid)
        self._switch_pid = userspace_switch.process_id() if world.status.datapath == "user" else None
        self._switch_cpu_s = cpu_s(self._switch_pid) if self._switch_pid is not None else 0.0
        self._counters = world.northbound.counters()

    def row(self, read_every_s: float | None) -> Row:
        """Return the costs per second since this was made."""
        span_s = time.monotonic() - self._at
        after = self._world.northbound.counters()
        effort = self._world.northbound.get("/effort")

        def per_s(name: str) -> float:
            return (after.get(name, 0.0) - self._counters.get(name, 0.0)) / span_s

        return {
            "kind": "controller",
            "cpu_s_per_s": (cpu_s(self._world.controller_pid) - self._cpu_s) / span_s,
            "switch_cpu_s_per_s": None
            if self._switch_pid is None
            else (cpu_s(self._switch_pid) - self._switch_cpu_s) / span_s,
            "span_s": span_s,
            "read_every_s": read_every_s,
            "links": len(self._world.status.links) * 2,
            "classic_beside_it": self._world.rival is not None,
            "probe_bytes_per_s": per_s("utopia_probes_sent_bytes_total"),
            "probes_per_s": per_s("utopia_probes_sent_total"),
            "train_bytes_per_s": per_s("utopia_train_sent_bytes_total"),
            **{
                name: effort.get(name)
                for name in ("probe_limit_per_s", "probe_limit_reason", "late_switch_s")
            },
        }
