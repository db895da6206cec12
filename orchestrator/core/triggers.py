"""Should a deployment be reconfigured, and why (Koch 2025, Algorithm 1 and Table 3).

Triggers say that something is wrong; hysteresis says whether a move is worth its price; the cool-down keeps
moves apart, except for failures, privacy and what the operator asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from orchestrator.core.cost import Breakdown
from orchestrator.core.decisions import Crossing
from orchestrator.core.errors import InvalidValue
from orchestrator.core.model import Network, NodeState, Placement
from orchestrator.core.ranges import check_above_zero, check_ranges

LATENCY, UTILISATION, BANDWIDTH = "latency", "utilisation", "bandwidth"
PRIVACY, NODE_LOSS, STALL, DRAIN, OPERATOR = "privacy", "node-loss", "stall", "drain", "operator"
URGENT = frozenset({PRIVACY, NODE_LOSS, STALL, DRAIN, OPERATOR})
"""Triggers that neither the cool-down nor the margin holds back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When to reconsider a placement; the defaults are Koch 2025, Table 3."""

    latency_s: float = 0.150
    utilisation: float = 0.85
    available_bps: float = 50e6
    cool_down_s: float = 30.0

    def __post_init__(self) -> None:
        check_above_zero("thresholds", self, latency_s=inf, utilisation=1)
        check_ranges("thresholds", self, available_bps=(0, inf), cool_down_s=(0, inf))


@dataclass(frozen=True, slots=True, kw_only=True)
class Hysteresis:
    """What a move must gain: `gain_ratio` of the present cost, and its own price back in `horizon_tokens`."""

    gain_ratio: float = 0.2
    horizon_tokens: int = 200

    def __post_init__(self) -> None:
        if not 0 <= self.gain_ratio < 1:
            raise InvalidValue(f"hysteresis: gain_ratio is {self.gain_ratio}, must be at least 0 and below 1")
        if self.horizon_tokens < 1:
            raise InvalidValue(f"hysteresis: horizon_tokens is {self.horizon_tokens}, must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ewma:
    """An exponentially weighted moving average; None before the first value."""

    weight: float = 0.3
    value: float | None = None

    def add(self, sample: float) -> Ewma:
        """Return the average with `sample` in it."""
        value = sample if self.value is None else self.value + self.weight * (sample - self.value)
        return Ewma(weight=self.weight, value=value)


def crossings(
    placement: Placement,
    nodes: Iterable[NodeState],
    network: Network,
    latency_s: float | None,
    thresholds: Thresholds,
    *,
    private: bool = False,
) -> tuple[Crossing, ...]:
    """List the thresholds that are crossed now on the route of `placement`.

    `latency_s` is the EWMA of the time per token (None: none seen). Unknown utilisation or bandwidth crosses
    nothing: there is nothing to act on. `private` asks that no untrusted node runs a layer.
    """
    by_name = {node.name: node for node in nodes}
    found = [
        *_latency(latency_s, thresholds),
        *_nodes(placement, by_name, thresholds),
        *_bandwidth(placement, network, thresholds),
        *(_privacy(placement, by_name) if private else ()),
    ]
    return tuple(found)


def is_urgent(found: Iterable[Crossing]) -> bool:
    """Say whether any of the crossings must not wait for the cool-down."""
    return any(crossing.trigger in URGENT for crossing in found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a move is worth it, in a sentence."""

    worth: bool
    reason: str


def worth_moving(current: float | None, candidate: Breakdown, hysteresis: Hysteresis) -> Verdict:
    """Judge a move from a placement of cost `current` (None: unknown) to `candidate`.

    The cost must fall by `gain_ratio`, and what is saved over `horizon_tokens` must exceed the time that the
    switch takes: the tokens so far are replayed through the new route, about one prefill.
    """
    if current is None:
        return Verdict(
            worth=False, reason="the cost of the present placement is unknown, so no gain can be shown"
        )
    saved = current - candidate.phi
    ratio = saved / current if current > 0 else 0.0
    if ratio < hysteresis.gain_ratio:
        return Verdict(
            worth=False,
            reason=f"the cost would change by {-ratio:+.1%}, the margin is {-hysteresis.gain_ratio:+.0%}",
        )
    if saved * hysteresis.horizon_tokens < candidate.prefill_s:
        return Verdict(
            worth=False,
            reason=f"saves {saved * hysteresis.horizon_tokens:.3g} over {hysteresis.horizon_tokens} tokens, "
            f"less than the {candidate.prefill_s:.3g} s that the switch takes",
        )
    return Verdict(
        worth=True, reason=f"the cost falls by {ratio:.1%}, from {current:.4g} to {candidate.phi:.4g}"
    )


def _latency(latency_s: float | None, thresholds: Thresholds) -> list[Crossing]:
    if latency_s is None or latency_s <= thresholds.latency_s:
        return []
    reason = f"a token takes {latency_s:.3f} s on average, more than {thresholds.latency_s:.3f} s"
    return [_crossing(LATENCY, latency_s, thresholds.latency_s, "s", "route", reason)]


def _nodes(placement: Placement, nodes: dict[str, NodeState], thresholds: Thresholds) -> list[Crossing]:
    found = []
    for name in placement.nodes:
        node = nodes.get(name)
        if node is None or not node.alive:
            found.append(_crossing(NODE_LOSS, None, None, "", name, f"node {name} of the route is lost"))
        elif node.draining and name != placement.head:
            found.append(_crossing(DRAIN, None, None, "", name, f"node {name} is being drained"))
        elif node.cpu_utilisation is not None and node.cpu_utilisation > thresholds.utilisation:
            reason = f"node {name} is {node.cpu_utilisation:.0%} busy, more than {thresholds.utilisation:.0%}"
            found.append(
                _crossing(UTILISATION, node.cpu_utilisation, thresholds.utilisation, "ratio", name, reason)
            )
    return found


def _bandwidth(placement: Placement, network: Network, thresholds: Thresholds) -> list[Crossing]:
    found = []
    for src, dst in placement.hops:
        path = network.path(src, dst)
        available = path.usable_bps.value
        if available is not None and available < thresholds.available_bps:
            reason = (
                f"{src} to {dst} has {available / 1e6:.3g} Mbit/s available, "
                f"less than {thresholds.available_bps / 1e6:.3g} ({path.usable_basis})"
            )
            where = f"{src}->{dst}"
            found.append(_crossing(BANDWIDTH, available, thresholds.available_bps, "bit/s", where, reason))
    return found


def _privacy(placement: Placement, nodes: dict[str, NodeState]) -> list[Crossing]:
    exposed = [stage.node for stage in placement.stages if not _trusted(nodes.get(stage.node))]
    if not exposed:
        return []
    reason = f"a private request's layers would run on {', '.join(exposed)}, not trusted"
    return [_crossing(PRIVACY, None, None, "", ",".join(exposed), reason)]


def _trusted(node: NodeState | None) -> bool:
    return node is not None and node.trusted


def _crossing(
    trigger: str, value: float | None, threshold: float | None, unit: str, where: str, reason: str
) -> Crossing:
    return Crossing(trigger=trigger, value=value, threshold=threshold, unit=unit, where=where, reason=reason)
