"""Tell the orchestrator's own traffic from that of others, per link.

The orchestrator declares the classes of its transfers (a protocol and a port, at either end). For every pair
of hosts that has a way, each class gets rules of its own on the same way; their byte counters are what the
orchestrator caused, and what else is used is cross traffic. Nothing is added while nothing is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

from ryu_apps import openflow
from ryu_apps.discovery import Host, Network
from ryu_apps.errors import BadRequestError
from ryu_apps.flows import MAX_PORT, PROTOCOLS, Flow, TrafficClass
from ryu_apps.forwarding import Forwarding
from ryu_apps.paths import Hop
from ryu_apps.rates import CounterRate
from ryu_apps.signals import Change, Signals
from ryu_apps.stats import STALE_AFTER_S, Measurement, unknown

MAX_CLASSES = 4
MAX_RULES = 10_000
"""So many are counted per switch."""
EXAMPLE = '{"classes": [{"protocol": "tcp", "port": 7000}]}'
SOURCE = "flow_counters"
UNIT = "bit/s"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class OwnClass:
    """What a transfer of the orchestrator looks like: a protocol, and a port at one of its ends."""

    protocol: str
    port: int

    def directions(self) -> tuple[TrafficClass, TrafficClass]:
        """Return the packets to that port and those from it."""
        return (
            TrafficClass(protocol=self.protocol, dst_port=self.port),
            TrafficClass(protocol=self.protocol, src_port=self.port),
        )

    def as_json(self) -> dict[str, object]:
        """Return what `parse_classes` reads."""
        return {"protocol": self.protocol, "port": self.port}


def parse_classes(body: object) -> tuple[OwnClass, ...]:
    """Read a declaration.

    Raises:
        BadRequestError: it is none.
    """
    if not isinstance(body, dict) or set(body) != {"classes"} or not isinstance(body["classes"], list):
        raise BadRequestError(f"the body must be a map with exactly one key, such as {EXAMPLE}")
    if len(body["classes"]) > MAX_CLASSES:
        raise BadRequestError(f"{len(body['classes'])} classes are declared; {MAX_CLASSES} are the most")
    return tuple(sorted({_parse_class(item) for item in body["classes"]}))


def _parse_class(item: object) -> OwnClass:
    if not isinstance(item, dict) or set(item) != {"protocol", "port"}:
        raise BadRequestError(f"a class must be a map with protocol and port, as in {EXAMPLE}")
    protocol, port = item["protocol"], item["port"]
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise BadRequestError(f"protocol is {str(protocol)[:40]!r}; it is {' or '.join(PROTOCOLS)}")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= MAX_PORT:
        raise BadRequestError(f"port is {str(port)[:40]!r}; it is a whole number between 1 and {MAX_PORT}")
    return OwnClass(protocol=protocol, port=port)


@dataclass(slots=True, eq=False)
class _Rule:
    """The counter of one rule, and the ports between which it sends."""

    in_port: int
    out_port: int
    rate: CounterRate = field(default_factory=CounterRate)


class OwnTraffic:
    """Own what is declared, and the rates of the rules of those classes."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        *,
        forwarding: Forwarding,
        clock: Callable[[], float],
    ) -> None:
        self._network = network
        self._forwarding = forwarding
        self._clock = clock
        self._classes: tuple[OwnClass, ...] = ()
        self._rules: dict[int, dict[tuple[int, int], _Rule]] = {}
        """By switch, and there by cookie and the port where packets come in."""
        signals.connect(Change.PATH_INSTALLED, self._path_installed)
        signals.connect(Change.SWITCH_DOWN, lambda switch: self._rules.pop(switch.dpid, None))

    @property
    def classes(self) -> tuple[OwnClass, ...]:
        """What is declared."""
        return self._classes

    def declare(self, classes: tuple[OwnClass, ...]) -> None:
        """Count these classes as the orchestrator's own from now on, and no others."""
        gone = set(self._classes) - set(classes)
        self._classes = classes
        for src, dst in permutations(list(self._network.hosts), 2):
            pair = Flow(src=src, dst=dst)
            for flow in _flows(pair, gone):
                self._forwarding.unfollow(flow)
            if self._forwarding.way(pair) is not None:
                self._follow(pair)

    def _path_installed(self, installed: tuple[Flow, list[str]]) -> None:
        flow, _ = installed
        if flow.traffic_class is None:
            self._follow(flow)

    def _follow(self, pair: Flow) -> None:
        for flow in _flows(pair, self._classes):
            self._forwarding.follow(flow)

    def counted(self, dpid: int, entries: list[Any]) -> None:
        """Take in the counters of a switch's rules for hosts' packets."""
        if not self._classes:
            self._rules.clear()
            return
        now = self._clock()
        rules = self._rules.setdefault(dpid, {})
        for entry in entries:
            if self._is_own(entry.match):
                _count(now, rules, entry)
        for key in [key for key, rule in rules.items() if _is_old(rule, now)]:
            del rules[key]

    def _is_own(self, match: Any) -> bool:
        return any(
            match.get("ip_proto") == PROTOCOLS[own.protocol]
            and own.port in (match.get(f"{own.protocol}_dst"), match.get(f"{own.protocol}_src"))
            for own in self._classes
        )

    def rate(self, now: float, what: Hop | Host, *, to_host: bool) -> Measurement:
        """Return what the orchestrator's own transfers use of a link."""
        if not self._classes:
            reason = "no traffic is declared as the orchestrator's own (PUT own-traffic)"
            return unknown(reason, source=SOURCE, unit=UNIT)
        if isinstance(what, Hop):
            rules = [rule for rule in self._at(what.dst) if rule.in_port == what.dst_port]
        elif to_host:
            rules = [rule for rule in self._at(what.dpid) if rule.out_port == what.port]
        else:
            rules = [rule for rule in self._at(what.dpid) if rule.in_port == what.port]
        return _sum([rule.rate.rate(now) for rule in rules])

    def _at(self, dpid: int) -> Iterable[_Rule]:
        return self._rules.get(dpid, {}).values()


def _count(now: float, rules: dict[tuple[int, int], _Rule], entry: Any) -> None:
    in_port, out_port = entry.match.get("in_port"), openflow.output_port(entry)
    key = entry.cookie, in_port
    rule = rules.get(key)
    if rule is None or rule.out_port != out_port:
        if len(rules) >= MAX_RULES:
            return
        rule = rules[key] = _Rule(in_port=in_port, out_port=out_port)
    rule.rate.add(now, entry.duration_sec + entry.duration_nsec * 1e-9, entry.byte_count)


def _sum(rates: list[Measurement]) -> Measurement:
    known = [rate for rate in rates if rate.value is not None]
    return Measurement(
        value=sum(rate.value for rate in known if rate.value is not None),
        raw=sum(rate.raw for rate in known if rate.raw is not None),
        samples=min((rate.samples for rate in known), default=0),
        age_s=max((rate.age_s for rate in known if rate.age_s is not None), default=None),
        source=SOURCE,
        unit=UNIT,
    )


def cross_traffic(used: Measurement, own: Measurement) -> Measurement:
    """Return used - own, at least 0: what others use; unknown when either is."""
    for name, part in (("own", own), ("used", used)):
        if part.reason is not None:
            return unknown(f"{name} is unknown: {part.reason}", source="derived", unit=UNIT)
    assert used.value is not None
    assert own.value is not None
    raw = None if used.raw is None or own.raw is None else max(0.0, used.raw - own.raw)
    ages = [age for age in (used.age_s, own.age_s) if age is not None]
    return Measurement(
        value=max(0.0, used.value - own.value),
        raw=raw,
        samples=used.samples,
        age_s=max(ages, default=None),
        source="derived",
        unit=UNIT,
    )


def _flows(pair: Flow, classes: set[OwnClass] | tuple[OwnClass, ...]) -> Iterator[Flow]:
    for own in classes:
        for traffic_class in own.directions():
            yield Flow(src=pair.src, dst=pair.dst, traffic_class=traffic_class)


def _is_old(rule: _Rule, now: float) -> bool:
    age_s = rule.rate.rate(now).age_s
    return age_s is not None and age_s > STALE_AFTER_S
