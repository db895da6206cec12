"""Tell the orchestrator's own traffic from that of others, per link.

The orchestrator declares the classes of its transfers: a protocol and a port, at one host or at either end
of any pair. Every pair of hosts that has a way gets rules of its own for each class that it can have, on
the same way; their byte counters are what the orchestrator caused, and what else is used is cross traffic.
Nothing is added while nothing is declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import AddressValueError, IPv4Address
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

MAX_CLASSES = 256
MAX_ANYWHERE = 4
"""Of these, so many without a host: each gives rules to every pair."""
MAX_RULES = 10_000
"""So many are counted per switch."""
EXAMPLE = '{"classes": [{"protocol": "tcp", "port": 7000, "host": "198.18.0.1"}]}'
CROSS_WINDOW_S = 3.0
"""What is compared with what the link carried: means over so long, until both are known."""
RULES_LAG_S = 0.25
"""Rules' counters are up to 0.5 s behind those of ports (Open vSwitch's revalidators)."""
QUEUE_S = 4.0
"""So long own packets may wait in a switch's queue to a host: rules count before it, ports behind it."""
QUEUE_STEP_S = 0.5
SOURCE = "flow_counters"
UNIT = "bit/s"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class OwnClass:
    """What an own transfer looks like: a protocol, and a port at `host` ("": at either end)."""

    protocol: str
    port: int
    host: str = ""

    def flows(self, pair: Flow) -> Iterator[Flow]:
        """Yield the pair's packets to that port and those from it, where that host is at that end."""
        if self.host in ("", pair.dst):
            yield replace(pair, traffic_class=TrafficClass(protocol=self.protocol, dst_port=self.port))
        if self.host in ("", pair.src):
            yield replace(pair, traffic_class=TrafficClass(protocol=self.protocol, src_port=self.port))

    def as_json(self) -> dict[str, object]:
        """Return what `parse_classes` reads."""
        place = {"host": self.host} if self.host else {}
        return {"protocol": self.protocol, "port": self.port, **place}


def parse_classes(body: object) -> tuple[OwnClass, ...]:
    """Read a declaration.

    Raises:
        BadRequestError: it is none.
    """
    if not isinstance(body, dict) or set(body) != {"classes"} or not isinstance(body["classes"], list):
        raise BadRequestError(f"the body must be a map with exactly one key, such as {EXAMPLE}")
    if len(body["classes"]) > MAX_CLASSES:
        raise BadRequestError(f"{len(body['classes'])} classes are declared; {MAX_CLASSES} are the most")
    classes = {_parse_class(item) for item in body["classes"]}
    anywhere = sum(1 for own in classes if not own.host)
    if anywhere > MAX_ANYWHERE:
        raise BadRequestError(f"{anywhere} classes without a host are declared; {MAX_ANYWHERE} are the most")
    return tuple(sorted(classes))


def _parse_class(item: object) -> OwnClass:
    if not isinstance(item, dict) or set(item) - {"host"} != {"protocol", "port"}:
        raise BadRequestError(f"a class must be a map with protocol, port and maybe host, as in {EXAMPLE}")
    protocol, port = item["protocol"], item["port"]
    if not isinstance(protocol, str) or protocol not in PROTOCOLS:
        raise BadRequestError(f"protocol is {str(protocol)[:40]!r}; it is {' or '.join(PROTOCOLS)}")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= MAX_PORT:
        raise BadRequestError(f"port is {str(port)[:40]!r}; it is a whole number between 1 and {MAX_PORT}")
    return OwnClass(protocol=protocol, port=port, host=_address(item["host"]) if "host" in item else "")


def _address(value: object) -> str:
    try:
        if isinstance(value, str):
            return str(IPv4Address(value))
    except AddressValueError:
        pass
    raise BadRequestError(f"host is {str(value)[:40]!r}, not an IPv4 address such as 198.18.0.1")


class _Classes:
    """Declared classes, by the host that they name, so that a pair's are found without a search."""

    def __init__(self, classes: Iterable[OwnClass]) -> None:
        self._by_host: dict[str, list[OwnClass]] = {}
        for own in sorted(classes):
            self._by_host.setdefault(own.host, []).append(own)
        self._known = {(PROTOCOLS[own.protocol], own.host, own.port) for own in classes}

    def flows(self, pair: Flow) -> Iterator[Flow]:
        """Yield the parts of a pair's packets that are the orchestrator's own, each once."""
        found = (
            flow
            for host in ("", pair.src, pair.dst)
            for own in self._by_host.get(host, ())
            for flow in own.flows(pair)
        )
        yield from dict.fromkeys(found)

    def has(self, match: Any) -> bool:
        """Tell whether a rule's packets are of one of the classes."""
        for end in ("src", "dst"):
            for protocol, number in PROTOCOLS.items():
                port = match.get(f"{protocol}_{end}")
                if port is not None and not self._known.isdisjoint(
                    ((number, "", port), (number, match.get(f"ipv4_{end}"), port))
                ):
                    return True
        return False


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
        self._wanted = _Classes(())
        self._rules: dict[int, dict[tuple[int, int], _Rule]] = {}
        """By switch, and there by cookie and the port where packets come in."""
        self._by_port: dict[int, dict[tuple[bool, int], list[_Rule]]] = {}
        """The same by switch, and there by (going out, port); made when asked for."""
        signals.connect(Change.PATH_INSTALLED, self._path_installed)
        signals.connect(Change.SWITCH_DOWN, lambda switch: self._forget(switch.dpid))

    @property
    def classes(self) -> tuple[OwnClass, ...]:
        """What is declared."""
        return self._classes

    def declare(self, classes: tuple[OwnClass, ...]) -> None:
        """Count these classes as the orchestrator's own from now on, and no others."""
        gone = _Classes(set(self._classes) - set(classes))
        self._classes, self._wanted = classes, _Classes(classes)
        for src, dst in permutations(list(self._network.hosts), 2):
            pair = Flow(src=src, dst=dst)
            kept = set(self._wanted.flows(pair))
            for flow in gone.flows(pair):
                if flow not in kept:
                    self._forwarding.unfollow(flow)
            if self._forwarding.way(pair) is not None:
                self._follow(pair)

    def _path_installed(self, installed: tuple[Flow, list[str]]) -> None:
        flow, _ = installed
        if flow.traffic_class is None:
            self._follow(flow)

    def _follow(self, pair: Flow) -> None:
        for flow in self._wanted.flows(pair):
            self._forwarding.follow(flow)

    def counted(self, dpid: int, entries: list[Any]) -> None:
        """Take in the counters of a switch's rules for hosts' packets."""
        if not self._classes:
            self._rules.clear()
            self._by_port.clear()
            return
        now = self._clock()
        rules = self._rules.setdefault(dpid, {})
        for entry in entries:
            if self._wanted.has(entry.match):
                _count(now, rules, entry)
        for key in [key for key, rule in rules.items() if _is_old(rule, now)]:
            del rules[key]
        self._by_port.pop(dpid, None)

    def _forget(self, dpid: int) -> None:
        self._rules.pop(dpid, None)
        self._by_port.pop(dpid, None)

    def rate(self, now: float, what: Hop | Host, *, to_host: bool) -> Measurement:
        """Return what the orchestrator's own transfers use of a link."""
        if not self._classes:
            reason = "no traffic is declared as the orchestrator's own (PUT own-traffic)"
            return unknown(reason, source=SOURCE, unit=UNIT)
        return _sum([rule.rate.rate(now) for rule in self._rules_of(what, to_host=to_host)])

    def cross_traffic(self, now: float, what: Hop | Host, used: CounterRate, *, to_host: bool) -> Measurement:
        """Return what others use of a link that carries `used`: used - own over the same time, at least 0."""
        whole, own = used.rate(now), self.rate(now, what, to_host=to_host)
        for name, part in (("own", own), ("used", whole)):
            if part.reason is not None:
                return unknown(f"{name} is unknown: {part.reason}", source="derived", unit=UNIT)
        rules = [rule.rate for rule in self._rules_of(what, to_host=to_host)]
        window = _window(used, rules)
        if window is None:
            return unknown("used is known for too short a time", source="derived", unit=UNIT)
        start, end = window
        own_bps = _rate_of(rules, start, end)
        if isinstance(what, Host) and to_host and rules:
            own_bps += _waiting_bits(used, rules, start) / (end - start)
        raw = None if whole.raw is None or own.raw is None else max(0.0, whole.raw - own.raw)
        return Measurement(
            value=max(0.0, used.between(start, end) - own_bps),
            raw=raw,
            samples=whole.samples,
            age_s=max(0.0, now - end),
            source="derived",
            unit=UNIT,
        )

    def _rules_of(self, what: Hop | Host, *, to_host: bool) -> Sequence[_Rule]:
        if isinstance(what, Hop):
            dpid, out, port = what.dst, False, what.dst_port
        else:
            dpid, out, port = what.dpid, to_host, what.port
        if dpid not in self._by_port:
            rules = self._by_port[dpid] = {}
            for rule in self._rules.get(dpid, {}).values():
                rules.setdefault((False, rule.in_port), []).append(rule)
                rules.setdefault((True, rule.out_port), []).append(rule)
        return self._by_port[dpid].get((out, port), ())


def _window(used: CounterRate, rules: Sequence[CounterRate]) -> tuple[float, float] | None:
    """Return the last seconds that the counters of a link and of the rules on it both cover."""
    if used.span is None:
        return None
    first, last = used.span
    told = [rule.span[1] - RULES_LAG_S for rule in rules if rule.span is not None]
    end = min(last, max(told, default=last))
    start = max(first, end - CROSS_WINDOW_S)
    return (start, end) if end > start else None


def _rate_of(rules: Sequence[CounterRate], start: float, end: float) -> float:
    return sum(rule.between(start + RULES_LAG_S, end + RULES_LAG_S) for rule in rules)


def _waiting_bits(used: CounterRate, rules: Sequence[CounterRate], at: float) -> float:
    """Return what of own traffic was counted by its rules and had not left the port at that time.

    The most by which it has outrun what left, since whatever moment (Lindley's recursion, written out). What
    the queue dropped is in it, too, and so leaves it after QUEUE_S only.
    """
    assert used.span is not None
    steps = int(min(QUEUE_S, at - used.span[0]) / QUEUE_STEP_S)
    since = [(at - step * QUEUE_STEP_S, step * QUEUE_STEP_S) for step in range(1, steps + 1)]
    outrun = (seconds * (_rate_of(rules, then, at) - used.between(then, at)) for then, seconds in since)
    return max(0.0, *outrun, 0.0)


def _count(now: float, rules: dict[tuple[int, int], _Rule], entry: Any) -> None:
    in_port, out_port = entry.match.get("in_port"), openflow.output_port(entry)
    duration_s = entry.duration_sec + entry.duration_nsec * 1e-9
    key = entry.cookie, in_port
    rule = rules.get(key)
    if rule is None or rule.out_port != out_port:
        if len(rules) >= MAX_RULES:
            return
        rule = rules[key] = _Rule(in_port=in_port, out_port=out_port)
        if 0 < duration_s <= CROSS_WINDOW_S:
            rule.rate.add(now - duration_s, 0.0, 0)  # it is new: all its bytes are of this time
    rule.rate.add(now, duration_s, entry.byte_count)


def _sum(rates: Sequence[Measurement]) -> Measurement:
    known = [rate for rate in rates if rate.value is not None]
    return Measurement(
        value=sum(rate.value for rate in known if rate.value is not None),
        raw=sum(rate.raw for rate in known if rate.raw is not None),
        samples=min((rate.samples for rate in known), default=0),
        age_s=max((rate.age_s for rate in known if rate.age_s is not None), default=None),
        source=SOURCE,
        unit=UNIT,
    )


def _is_old(rule: _Rule, now: float) -> bool:
    age_s = rule.rate.rate(now).age_s
    return age_s is not None and age_s > STALE_AFTER_S
