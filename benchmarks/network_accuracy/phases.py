"""Measure one network: idle, then loaded. Every row says what was compared with what.

Every second (large networks: every few) the controller's paths between `orch` and the measured hosts are
read, both ways, and its links; beside them stand, for the same moment:

- `path_delay`: half of the median round trip of the pings of the last 2 s, against half of the sum of both
  directions' northbound delays (one-way seconds). A ping cannot tell the directions apart; so `link_delay`
  compares every direction of every link with the emulator's configuration (idle only: load adds queues).
- `bandwidth`: the true capacity of the path less the traffic on it, against `available_bps`. Loaded, the
  traffic is what the receiver's interface counted over the last 2 s (towards `orch`: what the host sent times
  1 - loss). Idle, it is the pings alone: the controller's own packet trains give way to traffic; what they
  take is in `counted_bps`, of which the figure `bandwidth_error_p95_counting_trains` is made.
- `capacity`: the configured rate of the access link against `estimated_capacity_bps`, once, at the end.
- `loss`: the configured loss against `loss_ratio` and its interval, once: idle at the end (the controller's
  window of 60 s is full), loaded at the end, that is `after_s` seconds after the traffic began.
  `delivered_loss_ratio` is what the receivers of the numbered traffic missed.
- `refresh`: the greatest `age_s` of any link's delay and used bandwidth.
- `controller`: its CPU seconds per second, and what its probes and packet trains sent. `read_every_s` says
  how often everything was read meanwhile; null: in large networks it is measured while nobody reads, too.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from benchmarks.network_accuracy import plan
from benchmarks.network_accuracy.interfaces import Watch
from benchmarks.network_accuracy.northbound import cpu_s
from benchmarks.network_accuracy.pinger import Pinger
from benchmarks.network_accuracy.traffic import Flow, Traffic
from benchmarks.network_accuracy.world import Emulation, World

Row = dict[str, Any]
PING_INTERVAL_S = 0.2
PING_BPS = 8 * 98 / PING_INTERVAL_S
TRUTH_SPAN_S = 2.0
STRAY_LOSS_RATIO = 0.001
SETTLE_S = 4.0
"""Left out at the start of a phase: the controller smooths over about so long."""
REFRESHED = ("delay_s", "used_bps")


class _Samples:
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
        counted = {("orch", host): rates[0], (host, "orch"): rates[1] * (1 - plan.LOSS_RATIO)}
        switch = self._world.access_ids(host)[1].split("-")[0]
        port = (classic or {"ports": {}})["ports"].get(switch)
        for (pair, used), path in zip(counted.items(), (there, here), strict=True):
            self._bandwidths[pair].append(
                {
                    "truth_bps": max(0.0, capacity - (PING_BPS if self._phase == "idle" else used)),
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
            for side, link_id in link["northbound"].items():
                rows.append(
                    {
                        "kind": "link_delay",
                        "link": link_id,
                        "between_switches": link["kind"] == "core" and "orch" not in (link["a"], link["b"]),
                        "configured_s": link["current"][side]["delay_s"],
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


class _Costs:
    """What measuring cost the controller between two moments."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._at, self._cpu_s = time.monotonic(), cpu_s(world.controller_pid)
        self._counters = world.northbound.counters()

    def row(self, read_every_s: float | None) -> Row:
        """Return the costs per second since this was made."""
        span_s = time.monotonic() - self._at
        after = self._world.northbound.counters()

        def per_s(name: str) -> float:
            return (after.get(name, 0.0) - self._counters.get(name, 0.0)) / span_s

        return {
            "kind": "controller",
            "cpu_s_per_s": (cpu_s(self._world.controller_pid) - self._cpu_s) / span_s,
            "span_s": span_s,
            "read_every_s": read_every_s,
            "links": len(self._world.status.links) * 2,
            "classic_beside_it": self._world.rival is not None,
            "probe_bytes_per_s": per_s("utopia_probes_sent_bytes_total"),
            "probes_per_s": per_s("utopia_probes_sent_total"),
            "train_bytes_per_s": per_s("utopia_train_sent_bytes_total"),
        }


def measure(world: World, progress: Callable[[str], None]) -> list[Row]:
    """Measure one network in all phases that its part has; return the rows."""
    part = world.part
    world.announce_hosts()
    pinger = Pinger([("orch", host) for host in world.edge], world.hosts, interval_s=PING_INTERVAL_S)
    watch = Watch({name: world.hosts[name] for name in ("orch", *world.edge)}, world.client(), report=True)
    rows: list[Row] = []
    try:
        make_known(world, pinger)
        world.set_loss(plan.LOSS_RATIO)
        if part.idle_s:
            world.configure_capacities()
            progress(f"{world.name}: idle for {part.idle_s:g} s")
            rows += _mark("idle", world, _idle(world, pinger, watch))
        if part.loaded_s:
            progress(f"{world.name}: loaded for {part.loaded_s:g} s")
            rows += _mark("loaded", world, _loaded(world, pinger, watch))
    finally:
        watch.close()
        pinger.close()
    return rows


def make_known(world: World, pinger: Pinger) -> None:
    """Wait until every measured host has answered, and the controller knows it.

    Raises:
        RuntimeError: some do not within 30 s; the text names them.
    """
    deadline = time.monotonic() + 30
    while silent := [host for host in world.edge if pinger.replies("orch", host) < 3]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{world.name}: no answer within 30 s from {', '.join(silent)}")
        time.sleep(0.2)


def _mark(phase: str, world: World, rows: list[Row]) -> list[Row]:
    """Say of every row where it belongs and whether the emulation kept up."""
    emulation = next(row for row in rows if row["kind"] == "emulation")
    place = {"part": world.part.name, "network": world.name, "phase": phase}
    why = {"valid": emulation["valid"], "reason": emulation["reason"]}
    return [{**place, **row, **why} for row in rows]


def _idle(world: World, pinger: Pinger, watch: Watch) -> list[Row]:
    rows = _phase(world, "idle", world.part.idle_s, pinger, watch, {})
    if world.part.quiet_s:
        costs = _Costs(world)
        time.sleep(world.part.quiet_s)
        rows.append(costs.row(read_every_s=None))
    return rows


def _loaded(world: World, pinger: Pinger, watch: Watch) -> list[Row]:
    rates = {host: world.rate_bps(host) for host in world.edge}
    flows = plan.background(world.edge, rates, seed=world.seed)
    traffic = Traffic(flows, world.hosts)
    try:
        rows = _phase(world, "loaded", world.part.loaded_s, pinger, watch, {(f.src, f.dst): f for f in flows})
    finally:
        last = traffic.stop()
    carried = _traffic_rows(flows, last, world.part.loaded_s) if last["sent"] else []
    _add_delivered(rows, carried)
    _check_testbed(rows, carried)
    return [*rows, *carried]


def _add_delivered(rows: list[Row], carried: list[Row]) -> None:
    """Add to every path's loss what the receiver of its numbered traffic missed."""
    lost = {(row["src"], row["dst"]): row["loss_ratio"] for row in carried}
    for row in rows:
        if row["kind"] == "loss":
            row["delivered_loss_ratio"] = lost.get((row["src"], row["dst"]))


def _check_testbed(rows: list[Row], carried: list[Row]) -> None:
    """Take the phase for invalid if the testbed itself lost numbered packets: the emulator's loss is no truth.

    Busy switches do that. Allowed are the configured loss, three standard deviations and STRAY_LOSS_RATIO.
    """
    emulation = next(row for row in rows if row["kind"] == "emulation")
    for forth in (True, False):
        udp = [row for row in carried if row["traffic"] == "udp" and (row["src"] == "orch") is forth]
        sent = sum(row["sent_packets"] for row in udp)
        if not sent:
            continue
        ratio = 1 - sum(row["received_packets"] for row in udp) / sent
        chance = 3 * math.sqrt(plan.LOSS_RATIO * (1 - plan.LOSS_RATIO) / sent)
        way = "from orch" if forth else "to orch"
        emulation[f"delivered_loss_ratio_{way.replace(' ', '_')}"] = ratio
        if ratio > plan.LOSS_RATIO + chance + STRAY_LOSS_RATIO:
            emulation["valid"] = False
            emulation["reason"] = f"the testbed lost {ratio:.2%} of {sent} packets {way}, not 1 %"


def _phase(
    world: World,
    phase: str,
    duration_s: float,
    pinger: Pinger,
    watch: Watch,
    flows: dict[tuple[str, str], Flow],
) -> list[Row]:
    """Sample every second for `duration_s`, then read what is read once."""
    emulation, costs, samples = Emulation(world), _Costs(world), _Samples(world, phase, pinger, watch)
    began = time.monotonic()
    turn = 0
    settle_s = min(SETTLE_S, duration_s / 2)
    while (elapsed := time.monotonic() - began) < duration_s:
        if elapsed >= settle_s:
            samples.take()
        turn += 1
        if turn % 5 == 0:
            emulation.look()
        time.sleep(max(0.0, began + turn * world.part.sample_s - time.monotonic()))
    rows = [
        costs.row(world.part.sample_s),
        *samples.rows(),
        *_loss_rows(world, flows, time.monotonic() - began),
    ]
    rows.append(emulation.row())
    rows.append({"kind": "host_counters", "reported": watch.reported})
    return rows


def _loss_rows(world: World, flows: dict[tuple[str, str], Flow], after_s: float) -> list[Row]:
    """Compare the loss of every measured path with what the emulator is set to."""
    orch = world.ip("orch")
    paths = {**world.northbound.paths(f"src={orch}"), **world.northbound.paths(f"dst={orch}")}
    rows = []
    for host in world.edge:
        for src, dst in (("orch", host), (host, "orch")):
            path = paths.get((world.ip(src), world.ip(dst)))
            flow = flows.get((src, dst))
            rows.append(
                {
                    "kind": "loss",
                    "src": src,
                    "dst": dst,
                    "truth_ratio": plan.LOSS_RATIO,
                    "traffic": None if flow is None else flow.kind,
                    "traffic_pps": flow.pps if flow is not None and flow.kind == "udp" else 0.0,
                    "after_s": after_s,
                    "measured": None if path is None else path["loss_ratio"],
                    "links": None if path is None else path["links"],
                }
            )
    return rows


def _traffic_rows(flows: list[Flow], last: Row, duration_s: float) -> list[Row]:
    """Tell what the background traffic delivered."""
    rows = []
    for flow, sent, received in zip(flows, last["sent"], last["received"], strict=True):
        unit = "packets" if flow.kind == "udp" else "bytes"
        rows.append(
            {
                "kind": "traffic",
                "traffic": flow.kind,
                "src": flow.src,
                "dst": flow.dst,
                "greedy": flow.kind == "tcp" and flow.rate_bps is None,
                f"sent_{unit}": sent,
                f"received_{unit}": received,
                "loss_ratio": 1 - received / sent if flow.kind == "udp" and sent else None,
                "duration_s": duration_s,
            }
        )
    return rows
