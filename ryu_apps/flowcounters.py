"""Ask the switches how many packets their pair rules have carried, and compare along each way.

Every rule of a route has the same cookie on all switches of its path, so what the rule of one switch sent
over a link and the rule of the next one received from it are the same packets, but for those lost.

Open vSwitch brings the counters of rules up to date every half second only, unless its tables change. So
every round begins by writing one rule anew as it is; the counters asked for just after that are those of
that moment, the same on all switches. Rounds get rarer when there are many rules, so that reading them
costs no more than `ENTRIES_PER_S`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from ryu_apps import openflow
from ryu_apps.discovery import Network, Switch
from ryu_apps.options import Options
from ryu_apps.paths import Hop
from ryu_apps.prober import Prober
from ryu_apps.signals import Change, Signals
from ryu_apps.tallies import KEEP_S, CounterPair
from ryu_apps.tally import NOTHING, WINDOW_S, Tally

SETTLE_S = 0.025
"""A switch needs about so long to bring its counters up to date."""
SPREAD_S = 0.010
MOST_SPREAD_S = 0.2
"""The requests of a round are spread, but all come before the next update by the switches themselves."""
TIMING_S = 0.005
"""Standard deviation of the moment at which a switch brings its counters up to date."""
ENTRIES_PER_S = 300.0
MAX_PAIRS = 8192
IDLE_ROUNDS = 5
"""A switch without pair rules is asked once in so many rounds."""
OPEN_VSWITCH = "Open vSwitch"


class _Entry(NamedTuple):
    packets: int
    duration_s: float
    out_port: int


class _Way(NamedTuple):
    """What a rule sends over a link, counted at both ends."""

    hop: Hop
    pair: CounterPair


class FlowCounters:
    """Own the counters of pair rules at both ends of every link."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        options: Options,
        *,
        prober: Prober,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._network = network
        self._interval_s = options.poll_interval_s
        self._prober = prober
        self._clock = clock
        self._sleep = sleep
        self._lagging: set[int] = set()
        self._read_at: dict[int, float] = {}
        self._partial: dict[int, list[Any]] = {}
        self._entries: dict[int, int] = {}
        self._ways: dict[tuple[int, int], _Way] = {}
        self._by_hop: dict[Hop, dict[int, CounterPair]] = {}
        self._round = 0
        self.counts: Counter[str] = Counter()
        signals.connect(Change.SWITCH_UP, self._switch_up)
        signals.connect(Change.SWITCH_DOWN, self._switch_down)
        signals.connect(Change.LINK_DOWN, self._link_down)

    def _switch_up(self, switch: Switch) -> None:
        self._forget(switch.dpid)
        switch.datapath.send_msg(openflow.description_request(switch.datapath))

    def _switch_down(self, switch: Switch) -> None:
        self._forget(switch.dpid)

    def _forget(self, dpid: int) -> None:
        self._lagging.discard(dpid)
        for kept in (self._read_at, self._partial, self._entries):
            kept.pop(dpid, None)

    def _link_down(self, hop: Hop) -> None:
        for cookie in self._by_hop.pop(hop, {}):
            way = self._ways.get((hop.dst, cookie))
            if way is not None and way.hop == hop:
                del self._ways[hop.dst, cookie]

    def described(self, dpid: int, hardware: bytes | str) -> None:
        """Note what a switch is."""
        name = hardware if isinstance(hardware, str) else hardware.decode("utf-8", "replace")
        if dpid in self._network.switches and name.startswith(OPEN_VSWITCH):
            self._lagging.add(dpid)

    # Asking.

    def run(self) -> None:
        """Ask all switches, again and again, for ever."""
        while True:
            started_at = self._clock()
            self._ask([switch for switch in self._network.switches.values() if self._is_due(switch)])
            self._round += 1
            self._drop_old(self._clock())
            self._sleep(max(0.1, self.interval_s() - (self._clock() - started_at)))

    def interval_s(self) -> float:
        """Return how long a round takes, so that reading the replies costs no more than it may."""
        return max(self._interval_s, sum(self._entries.values()) / ENTRIES_PER_S)

    def _is_due(self, switch: Switch) -> bool:
        if openflow.congested(switch.datapath):
            return False
        return self._entries.get(switch.dpid, 1) > 0 or self._round % IDLE_ROUNDS == 0

    def _ask(self, switches: list[Switch]) -> None:
        for switch in switches:
            self._read_at.pop(switch.dpid, None)
            if switch.dpid in self._lagging:
                self._read_at[switch.dpid] = self._clock()
                switch.datapath.send_msg(openflow.unchanged_rule(switch.datapath))
        self._sleep(SETTLE_S)
        for switch in switches:
            if not openflow.congested(switch.datapath):
                self._partial[switch.dpid] = []
                self._read_at.setdefault(switch.dpid, self._clock())
                switch.datapath.send_msg(openflow.pair_stats_request(switch.datapath))
            self._sleep(min(SPREAD_S, MOST_SPREAD_S / len(switches)))

    # Comparing.

    def replied(self, dpid: int, body: list[Any], *, more: bool) -> None:
        """Take a reply in, or a part of one."""
        entries = self._partial.get(dpid)
        read_at = self._read_at.get(dpid)
        if entries is None or read_at is None:
            return
        entries.extend(body)
        if more:
            return
        del self._partial[dpid]
        self._entries[dpid] = len(entries)
        self.counts["read"] += len(entries)
        for cookie, entry in _by_cookie(entries).items():
            self._received(read_at, dpid, cookie, entry)
            self._sent(read_at, dpid, cookie, entry)

    def _sent(self, at: float, dpid: int, cookie: int, entry: _Entry) -> None:
        """Take in what a rule sent over a link."""
        hop = self._network.link_from(dpid, entry.out_port)
        if hop is None:
            return
        way = self._ways.get((hop.dst, cookie))
        if way is None or way.hop != hop:
            if len(self._ways) >= MAX_PAIRS:
                self.counts["left_out"] += 1
                return
            if way is not None:
                self._by_hop.get(way.hop, {}).pop(cookie, None)
            way = self._ways[hop.dst, cookie] = _Way(hop, CounterPair())
            self._by_hop.setdefault(hop, {})[cookie] = way.pair
        way.pair.sent.add(at, entry.packets, entry.duration_s)
        self._match(way)

    def _received(self, at: float, dpid: int, cookie: int, entry: _Entry) -> None:
        """Take in what a rule received over the link that leads to it."""
        way = self._ways.get((dpid, cookie))
        if way is not None:
            way.pair.add_received(at, entry.packets, entry.duration_s)
            self._match(way)

    def _match(self, way: _Way) -> None:
        stream, now = self._prober.hop_stream(way.hop), self._clock()
        delay_s = None if stream is None else stream.delay.delay(now).value
        if stream is None or delay_s is None:
            return
        jitter_s = stream.delay.jitter(now).value or 0.0
        way.pair.match(delay_s=delay_s, timing_s=TIMING_S + jitter_s)

    def _drop_old(self, now: float) -> None:
        for key, way in list(self._ways.items()):
            last_at = way.pair.sent.last_at
            if last_at is None or last_at < now - KEEP_S:
                del self._ways[key]
                self._by_hop.get(way.hop, {}).pop(key[1], None)

    def tally(self, now: float, hop: Hop, window_s: float = WINDOW_S) -> Tally:
        """Return what was sent over a link, and lost, as counted at both ends."""
        total = NOTHING
        for pair in self._by_hop.get(hop, {}).values():
            total += pair.tally(now, window_s)
        return total


def _by_cookie(entries: list[Any]) -> dict[int, _Entry]:
    """Return one entry per cookie; rules of one cookie that send to several ports are left out."""
    found: dict[int, _Entry] = {}
    ambiguous = set()
    for entry in entries:
        new = _Entry(
            packets=entry.packet_count,
            duration_s=entry.duration_sec + entry.duration_nsec * 1e-9,
            out_port=openflow.output_port(entry),
        )
        old = found.get(entry.cookie, new)
        if old.out_port != new.out_port:
            ambiguous.add(entry.cookie)
        elif entry.cookie in found:
            new = _Entry(old.packets + new.packets, min(old.duration_s, new.duration_s), new.out_port)
        found[entry.cookie] = new
    return {cookie: entry for cookie, entry in found.items() if cookie not in ambiguous}
