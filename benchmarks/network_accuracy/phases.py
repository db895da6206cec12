"""Measure one network: idle, then loaded. Every row says what was compared with what.

Every second (large networks: every few) the controller's paths between `orch` and the measured hosts are
read, both ways, and its links; beside them stand, for the same moment:

- `path_delay`: half of the median round trip of the pings of the last 2 s, against half of the sum of both
  directions' northbound delays (one-way seconds). A ping cannot tell the directions apart; so `link_delay`
  compares every direction of every link with the emulator's configuration (idle only: load adds queues).
  One link between switches is made asymmetric for that.
- `bandwidth`: the true capacity of the path less the traffic on it, against `available_bps`. The traffic is
  what the receiver's interface counted over the last 2 s (towards `orch`: what the host sent times 1 - loss),
  less the controller's own packet trains, which give way to traffic: a filter at the host counts them
  (train_frames.py). `counted_bps`, of which the figure `bandwidth_error_p95_counting_trains` is made, takes
  them for traffic.
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
from collections.abc import Callable

from benchmarks.network_accuracy import plan
from benchmarks.network_accuracy.interfaces import Watch
from benchmarks.network_accuracy.pinger import Pinger
from benchmarks.network_accuracy.samples import PING_INTERVAL_S, Costs, Row, Samples
from benchmarks.network_accuracy.traffic import Flow, Traffic
from benchmarks.network_accuracy.world import Emulation, World

STRAY_LOSS_RATIO = 0.001
SETTLE_S = 4.0
"""Left out at the start of a phase: the controller smooths over about so long."""


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
            world.make_asymmetric()
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
        costs = Costs(world)
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
    """Take the phase for invalid if the testbed itself lost numbered packets: then the truth is not known.

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
    emulation, costs, samples = Emulation(world), Costs(world), Samples(world, phase, pinger, watch)
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
