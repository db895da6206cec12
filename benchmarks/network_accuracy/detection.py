"""Measure how soon a change shows: one value is doubled or halved at a time, and the controller watched.

`value_s` is the time from the moment the emulator has confirmed the change (used bandwidth: the sender has
been told) until the northbound value, read ten times a second, is past the middle between old and new value
for good: a reading that falls back starts the search anew. `event_s` is the time until a server-sent event
`metric_changed` tells of such a value. A step that does not show in time has null, with a `reason`, and
counts as infinitely late.

All hosts tell what their interfaces carried, as in the other phases. Delay and capacity change on idle
links. Used and available bandwidth change with numbered UDP traffic from 35 to 70 % of a link. Loss changes
from 5 to 10 % under `LOSS_PPS` packets a second each way; from 1 to 2 % it cannot show within 3 s, whoever
counts: `packets_needed` are the packets that Wald's test needs on average to tell the two apart with one
error in a thousand. That step is measured and reported, but does not count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from benchmarks.network_accuracy.interfaces import Watch
from benchmarks.network_accuracy.northbound import Events
from benchmarks.network_accuracy.phases import Row
from benchmarks.network_accuracy.traffic import UDP_HEADERS, Flow, Traffic
from benchmarks.network_accuracy.world import Emulation, World

POLL_S = 0.1
HOLD_S = 0.5
SETTLED_SHARE = 0.2
LEAST_SETTLE_S = 1.5
EVENT_PATIENCE_S = 2.0
LOSS_PPS = 300.0
STEP_PAYLOAD_BYTES = 1200
_ERROR_RATIO = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change and where it should show."""

    metric: str
    what: str
    phase: str
    before: float
    after: float
    change: Callable[[], object]
    read: Callable[[], float | None]
    events: frozenset[str] = frozenset()
    event_metric: str | None = None
    patience_s: float = 10.0
    settle_s: float = 8.0
    counts: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def is_past_middle(self, value: float | None) -> bool:
        """Tell whether a value is nearer to the new one than to the old one."""
        if value is None:
            return False
        middle = (self.before + self.after) / 2
        return value > middle if self.after > self.before else value < middle


def measure(world: World, progress: Callable[[str], None], *, thorough: bool) -> list[Row]:
    """Take all steps on one network; not `thorough`: one step of delay up and down."""
    events = Events(world.url)
    emulation = Emulation(world)
    hosts = {name: world.hosts[name] for name in ("orch", *world.edge)}
    watch = Watch(hosts, world.client(), report=True)
    rows: list[Row] = []
    try:
        for steps in _all_steps(world, thorough):
            progress(f"{world.name}: {steps[0].metric} of {steps[0].what}")
            for step in steps:
                rows.append(_take(step, events))
                emulation.look()
    finally:
        watch.close()
        events.close()
    seen = emulation.row()
    place = {"part": world.part.name, "network": world.name}
    why = {"valid": seen["valid"]}
    rows.append({"phase": "idle", **seen})
    return [{**place, **row, **why} for row in rows]


def packets_needed(before: float, after: float) -> int:
    """Return how many packets tell a loss of `after` from `before` on average (Wald 1945, section 4.3).

    The log-likelihood ratio grows by their Kullback-Leibler divergence per packet, up to log(1 / error).
    """
    gain = after * math.log(after / before) + (1 - after) * math.log((1 - after) / (1 - before))
    return math.ceil(math.log(1 / _ERROR_RATIO) / gain)


def _take(step: Step, events: Events) -> Row:
    """Wait until the old value shows, change it, and watch."""
    settled = _settle(step)
    started = time.time()
    step.change()
    changed = time.time()
    value_s = _watch(step, changed)
    event_s = _find_event(step, events, started, changed) if step.event_metric else None
    reason = None
    if not settled:
        reason = "the value before the change had not settled"
    elif value_s is None:
        reason = f"it did not show within {step.patience_s:g} s"
    return {
        "kind": "detection",
        "phase": step.phase,
        "metric": step.metric,
        "what": step.what,
        "before": step.before,
        "after": step.after,
        "settled": settled,
        "value_s": value_s,
        "event_s": event_s,
        "event_metric": step.event_metric,
        "counts": step.counts,
        "reason": reason,
        **step.extra,
    }


def _settle(step: Step) -> bool:
    """Wait until the measured value is near the old one; tell whether it came there."""
    began = time.monotonic()
    while time.monotonic() - began < step.settle_s:
        value = step.read()
        near = value is not None and abs(value - step.before) <= SETTLED_SHARE * step.before
        if near and time.monotonic() - began >= LEAST_SETTLE_S:
            return True
        time.sleep(POLL_S)
    return False


def _watch(step: Step, changed: float) -> float | None:
    """Return how long after the change the value was past the middle for good; None if never in time."""
    since: float | None = None
    while True:
        now = time.time()
        if step.is_past_middle(step.read()):
            since = since or now
            if now - since >= HOLD_S:
                return since - changed
        else:
            since = None
            if now - changed > step.patience_s:
                return None
        time.sleep(max(0.0, now + POLL_S - time.time()))


def _find_event(step: Step, events: Events, started: float, changed: float) -> float | None:
    deadline = time.time() + EVENT_PATIENCE_S
    while True:
        for at, kind, datum in list(events.seen):
            if (
                kind == "metric_changed"
                and at >= started
                and datum["link"] in step.events
                and datum["metric"] == step.event_metric
                and step.is_past_middle(datum["after"])
            ):
                return max(0.0, at - changed)
        if time.time() > deadline:
            return None
        time.sleep(POLL_S)


# --- the steps


def _all_steps(world: World, thorough: bool) -> Iterator[list[Step]]:
    """Yield groups of steps; what a group needs (traffic) is there while it is taken."""
    slow = sorted(world.edge, key=world.rate_bps)
    if not thorough:
        yield _delay_steps(world, world.edge[0])
        return
    for host in world.edge[:3]:
        yield _delay_steps(world, host)
    yield _core_delay_steps(world)
    for host in slow[:2]:
        yield _capacity_steps(world, host)
    for host in slow[:2]:
        with _one_flow(world, host) as traffic:
            yield _used_steps(world, host, traffic)
    host = slow[-1]
    with _both_ways(world, host):
        world.testbed.degrade(world.access(host), loss_ratio=0.05)
        yield _loss_steps(world, host, 0.05)
        world.testbed.degrade(world.access(host), loss_ratio=0.01)
        yield _loss_steps(world, host, 0.01)[:1]


def _link_value(world: World, link_id: str, metric: str) -> Callable[[], float | None]:
    def read() -> float | None:
        value = world.northbound.get(f"/links/{link_id}")[metric]["value"]
        return None if value is None else float(value)

    return read


def _up_and_down(world: World, link: str, name: str, low: float, high: float, **step: Any) -> list[Step]:
    """Return the steps from one configured value of a link to the other and back."""

    def change(value: float) -> Callable[[], object]:
        return lambda: world.testbed.degrade(link, **{name: value})

    return [
        Step(before=low, after=high, change=change(high), **step),
        Step(before=high, after=low, change=change(low), **step),
    ]


def _delay_steps(world: World, host: str) -> list[Step]:
    ids = world.access_ids(host)
    delay_s = world.spec.link(world.access(host)).a_to_b.delay_s
    return _up_and_down(
        world, world.access(host), "delay_s", delay_s, 2 * delay_s,
        metric="delay", what=f"access link of {host}", phase="idle",
        read=_link_value(world, ids[1], "delay_s"), events=frozenset(ids), event_metric="delay_s",
    )  # fmt: skip


def _core_delay_steps(world: World) -> list[Step]:
    link = next(item for item in world.status.links if item["name"] == "g1-c1")
    delay_s = link["current"]["a_to_b"]["delay_s"]
    link_id = link["northbound"]["a_to_b"]
    return _up_and_down(
        world, "g1-c1", "delay_s", delay_s, 2 * delay_s,
        metric="delay", what="link between switches g1-c1", phase="idle",
        read=_link_value(world, link_id, "delay_s"),
        events=frozenset(link["northbound"].values()), event_metric="delay_s",
    )  # fmt: skip


def _capacity_steps(world: World, host: str) -> list[Step]:
    ids = world.access_ids(host)
    rate_bps = world.rate_bps(host)
    high, low = rate_bps, rate_bps / 2
    steps = _up_and_down(
        world, world.access(host), "rate_bps", low, high,
        metric="capacity", what=f"access link of {host}", phase="idle", settle_s=40.0,
        read=_link_value(world, ids[1], "capacity_bps"), events=frozenset(ids), event_metric="capacity_bps",
    )  # fmt: skip
    return steps[::-1]


@contextmanager
def _one_flow(world: World, host: str) -> Iterator[Traffic]:
    traffic = Traffic(
        [
            Flow(
                kind="udp",
                src="orch",
                dst=host,
                payload_bytes=STEP_PAYLOAD_BYTES,
                pps=_pps(world, host, 0.35),
            )
        ],
        world.hosts,
    )
    try:
        yield traffic
    finally:
        traffic.stop()


def _pps(world: World, host: str, share: float) -> float:
    return share * world.rate_bps(host) / 8 / (STEP_PAYLOAD_BYTES + UDP_HEADERS)


def _used_steps(world: World, host: str, traffic: Traffic) -> list[Step]:
    ids = world.access_ids(host)
    rate_bps = world.rate_bps(host)

    def step(metric: str, before: float, after: float, share: float) -> Step:
        name = f"{metric}_bps"
        return Step(
            metric=metric, what=f"access link of {host}", phase="loaded",
            before=before * rate_bps, after=after * rate_bps,
            change=lambda: traffic.set_pps(0, _pps(world, host, share)),
            read=_link_value(world, ids[1], name), events=frozenset({ids[1]}),
            event_metric=name,
        )  # fmt: skip

    return [
        step("used", 0.35, 0.70, 0.70),
        step("used", 0.70, 0.35, 0.35),
        step("available", 0.65, 0.30, 0.70),
        step("available", 0.30, 0.65, 0.35),
    ]


@contextmanager
def _both_ways(world: World, host: str) -> Iterator[Traffic]:
    flows = [
        Flow(kind="udp", src=src, dst=dst, payload_bytes=200, pps=LOSS_PPS)
        for src, dst in (("orch", host), (host, "orch"))
    ]
    traffic = Traffic(flows, world.hosts)
    try:
        yield traffic
    finally:
        traffic.stop()


def _loss_steps(world: World, host: str, loss_ratio: float) -> list[Step]:
    query = f"/paths?src={world.ip('orch')}&dst={world.ip(host)}"

    def read() -> float | None:
        value = world.northbound.get(query)["loss_ratio"]["value"]
        return None if value is None else float(value)

    needed = packets_needed(loss_ratio, 2 * loss_ratio)
    in_time = needed <= 3 * LOSS_PPS
    return _up_and_down(
        world, world.access(host), "loss_ratio", loss_ratio, 2 * loss_ratio,
        metric="loss" if in_time else f"loss {loss_ratio:.0%} to {2 * loss_ratio:.0%}",
        what=f"path to {host}", phase="loaded",
        read=read, patience_s=20.0, settle_s=60.0, counts=in_time,
        events=frozenset(world.access_ids(host)), event_metric="loss_ratio",
        extra={
            "traffic_pps": LOSS_PPS,
            "packets_needed": needed,
            "physics": None
            if in_time
            else f"{needed} packets are needed, {3 * LOSS_PPS:.0f} pass within 3 s",
        },
    )  # fmt: skip
