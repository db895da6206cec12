"""Compare what hosts say their interface has carried with what the switch port has: loss of access links.

A switch cannot see what a host received. A host's agent may report the counters of its interface through the
northbound side; matched in time with those of the switch port they give the loss of real traffic, each
direction by itself. So that both ends are read together the port is asked twice for every report: when what
the host then sent arrives there, and when what the host will have received by its next report leaves. How
late the replies come does not matter: the switch's own clock says when the port was read. A host that lies
changes the figures of its own access link only; one that reports to have received more than was sent is found
out, and its reports are refused until they go together with what the switch saw.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from ryu_apps import openflow
from ryu_apps.discovery import Host, Network
from ryu_apps.errors import BadRequestError
from ryu_apps.monitor import Monitor, PortPackets
from ryu_apps.prober import Prober
from ryu_apps.readtimes import Rhythm, SwitchClock
from ryu_apps.signals import Change, Signals
from ryu_apps.tallies import WRAP, CounterPair
from ryu_apps.tally import NOTHING, WINDOW_S, Tally

LOG = logging.getLogger(__name__)

MAX_SKEW_S = 30.0
LEAST_APART_S = 0.2
STALE_S = 15.0
TIMING_S = 0.002
"""Standard deviation of the moments at which both ends are read."""
LEAST_IMPOSSIBLE = 100.0
IMPOSSIBLE_SHARE = 0.1
"""So many more packets received than sent, beyond four standard deviations, are no inaccuracy."""
REFUSED_S = 10.0
MARGIN_S = 0.003
"""The port is asked so much earlier, so that what it had received then had left before the report."""
BREATH_S = 0.005
IDLE_S = 0.05
MAX_ASKS = 256
"""So many questions may wait; where more hosts report, the port is asked when a report comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a host's interface has carried since it came up, read at Unix time `at`."""

    at: float
    rx_packets: int
    tx_packets: int

    def __post_init__(self) -> None:
        if not math.isfinite(self.at):
            raise ValueError(f"at is {self.at}, it must be a Unix time in seconds")
        for name in ("rx_packets", "tx_packets"):
            value = getattr(self, name)
            if not 0 <= value < WRAP:
                raise ValueError(f"{name} is {str(value)[:24]}, it must be between 0 and 2^64 - 1")


@dataclass(slots=True, eq=False)
class _Access:
    """Both directions of a host's access link."""

    place: tuple[int, int]
    to_host: CounterPair = field(default_factory=CounterPair)
    from_host: CounterPair = field(default_factory=CounterPair)
    clock: SwitchClock = field(default_factory=SwitchClock)
    rhythm: Rhythm = field(default_factory=Rhythm)
    reported_at: float = -math.inf
    refused_until: float = -math.inf


class HostCounters:
    """Own the reports of hosts, and the counters of the ports that lead to those that report."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        *,
        prober: Prober,
        monitor: Monitor,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._network = network
        self._prober = prober
        self._monitor = monitor
        self._clock = clock
        self._sleep = sleep
        self._asks: list[tuple[float, tuple[int, int]]] = []
        self._accesses: dict[str, _Access] = {}
        self._at_place: dict[tuple[int, int], dict[str, _Access]] = {}
        self.counts: Counter[str] = Counter()
        signals.connect(Change.HOST_MOVED, self._forget)
        signals.connect(Change.HOST_LOST, self._forget)

    def _forget(self, host: Host) -> None:
        access = self._accesses.pop(host.ip, None)
        if access is None:
            return
        there = self._at_place[access.place]
        del there[host.ip]
        if not there:
            del self._at_place[access.place], self._monitor.readers[access.place]

    def report(self, now: float, host: Host, report: Report) -> None:
        """Take a report of a known host in.

        Raises:
            BadRequestError: it cannot be true, or cannot be used.
        """
        access = self._accesses.get(host.ip)
        try:
            self._check(now, access, report)
        except BadRequestError:
            self.counts["refused"] += 1
            raise
        if access is None:
            access = self._accesses[host.ip] = _Access(place=host.place)
            self._at_place.setdefault(host.place, {})[host.ip] = access
            self._monitor.readers[host.place] = self._port_read
        access.reported_at = report.at
        self.counts["taken"] += 1
        access.to_host.add_received(report.at, report.rx_packets)
        access.from_host.sent.add(report.at, report.tx_packets)
        access.rhythm.came(report.at)
        self._match(now, host.ip, access)
        self._plan(now, host.ip, access)

    def _plan(self, now: float, ip: str, access: _Access) -> None:
        """Have the port asked when the packets pass it that this report and the next one count last."""
        stream, overhead_s = self._prober.host_stream(ip), self._prober.overhead_s(*access.place[:1] * 2)
        delay_s = (None if stream is None else stream.delay.delay(now).value) or 0.0
        early_s = (overhead_s or 0.0) / 2
        self._ask_at(now, access.reported_at + delay_s - early_s - MARGIN_S, access.place)
        following = access.rhythm.next_at()
        if following is not None and len(self._asks) < MAX_ASKS:
            self._ask_at(now, following - delay_s - early_s, access.place)

    def _ask_at(self, now: float, at: float, place: tuple[int, int]) -> None:
        if at <= now or len(self._asks) >= MAX_ASKS:
            self._ask(place)
        else:
            heapq.heappush(self._asks, (at, place))

    def _ask(self, place: tuple[int, int]) -> None:
        dpid, port = place
        switch = self._network.switches.get(dpid)
        if switch is not None and place in self._at_place and not openflow.congested(switch.datapath):
            switch.datapath.send_msg(openflow.port_stats_request(switch.datapath, port))

    def run(self) -> None:
        """Ask ports when it is time, for ever."""
        while True:
            now = self._clock()
            while self._asks and self._asks[0][0] <= now:
                self._ask(heapq.heappop(self._asks)[1])
            self._sleep(BREATH_S if self._asks else IDLE_S)

    @staticmethod
    def _check(now: float, access: _Access | None, report: Report) -> None:
        if abs(report.at - now) > MAX_SKEW_S:
            raise BadRequestError(
                f"at is {report.at:.3f}, {abs(report.at - now):.0f} s off the controller's clock "
                f"({now:.3f}); it may be {MAX_SKEW_S:g} s off: set the host's clock"
            )
        if access is None:
            return
        if report.at - access.reported_at < LEAST_APART_S:
            raise BadRequestError(
                f"at is {report.at:.3f}, the last report was of {access.reported_at:.3f}; "
                f"report at most every {LEAST_APART_S:g} s, in order"
            )
        if now < access.refused_until:
            raise BadRequestError(
                f"the last reports had more packets received than sent; "
                f"reports are taken again in {access.refused_until - now:.0f} s"
            )

    def _port_read(self, now: float, dpid: int, port: int, packets: PortPackets) -> None:
        """Take the counters of a port in."""
        for ip, access in list(self._at_place.get((dpid, port), {}).items()):
            at = access.clock.read_at(now, packets.duration_s)
            access.to_host.sent.add(at, packets.tx, packets.duration_s)
            access.from_host.add_received(at, packets.rx, packets.duration_s)
            self._match(now, ip, access)

    def _match(self, now: float, ip: str, access: _Access) -> None:
        """Match both directions by half of the echo's delay; which of them has the queue it does not tell."""
        stream = self._prober.host_stream(ip)
        delay_s = None if stream is None else stream.delay.delay(now).value
        if stream is None or delay_s is None:
            return
        timing_s = TIMING_S + (stream.delay.jitter(now).value or 0.0) + stream.delay.queueing_s()
        for pair in (access.to_host, access.from_host):
            pair.match(delay_s=delay_s, timing_s=timing_s)
            if _is_impossible(pair.tally(now)):
                self._refuse(now, ip, access)
                return

    def _refuse(self, now: float, ip: str, access: _Access) -> None:
        LOG.warning("host %s: more packets received than sent; its reports are refused for a while", ip)
        self.counts["impossible"] += 1
        access.to_host, access.from_host = CounterPair(), CounterPair()
        access.refused_until = now + REFUSED_S

    def tally(self, now: float, ip: str, *, to_host: bool, window_s: float = WINDOW_S) -> Tally:
        """Return what crossed a host's access link in one direction, and what was lost there."""
        access = self._accesses.get(ip)
        if access is None or len(self._at_place[access.place]) > 1 or now - access.reported_at > STALE_S:
            return NOTHING
        return (access.to_host if to_host else access.from_host).tally(now, window_s)


def _is_impossible(tally: Tally) -> bool:
    allowed = LEAST_IMPOSSIBLE + IMPOSSIBLE_SHARE * tally.sent + 4 * math.sqrt(tally.variance)
    return -tally.lost > allowed
