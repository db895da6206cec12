"""Send probes over every link and to every host, spread in time, and turn what comes back into samples.

One numbered, authenticated probe per port and tick leaves by packet-out. At another switch's port it shows
the directed link and is a sample of its delay: arrival - departure - half of the echo times of both switches.
A host answers an ICMP echo request from a virtual address; half of the round trip is the delay of its access
link. OpenFlow echo requests give the switches' own share.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import struct
from collections import Counter
from collections.abc import Callable
from statistics import median

from ryu_apps import openflow, probe, probe_rates
from ryu_apps.discovery import Host, Network, Port, Switch
from ryu_apps.errors import ForgedProbeError
from ryu_apps.loss import LossEstimator
from ryu_apps.options import Options
from ryu_apps.paths import Hop
from ryu_apps.probe import Kind, Probe
from ryu_apps.probe_budget import Cost, ProbeBudget
from ryu_apps.probe_frames import host_echo, link_probe
from ryu_apps.signals import Change, Signals
from ryu_apps.stats import DelayEstimator
from ryu_apps.streams import LATE_S, Stream, SwitchEcho, Target

LOG = logging.getLogger(__name__)

SWITCH_ECHO_RATE = 4.0
SEARCH_RATE = 5.0
SEARCH_S = 3.0
IDLE_RATE = 1.0
"""A port probes quickly while it is new, and once a second when it leads to no switch."""
TICK_S = 0.01
"""What comes due within a tick leaves together: waking a switch up costs it more than a packet does."""
MAX_TOGETHER = 32
FRESH_S = 2.0
"""A probe that is older shows no new link: it may have been kept by a host."""
DEAD_LINK_S = 3.0
DEAD_LINK_PROBES = 12
"""A link is down when so many probes in a row, over at least this time, did not arrive."""
GOLDEN = 0.618034

_ECHO = struct.Struct("!4sd")
_ECHO_MAGIC = b"UTOE"


class Prober:
    """Own the probe streams: one per switch port, one per host, one echo per switch."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        options: Options,
        *,
        key: bytes,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        cpu_s: Callable[[], float],
    ) -> None:
        self._network = network
        self._options = options
        self._cpu_s = cpu_s
        self._key = key
        self._clock = clock
        self._sleep = sleep
        self._ports: dict[tuple[int, int], Stream] = {}
        self._hosts: dict[str, Stream] = {}
        self._switches: dict[int, SwitchEcho] = {}
        self._queue: list[tuple[float, int, Target]] = []
        self._order = itertools.count()
        self._identifier = int.from_bytes(key[:2], "big")
        self._slowdown = 1.0
        self._late_turns_s: list[float] = []
        self.budget = ProbeBudget(most_rate=options.max_probe_rate, cpu_share=options.cpu_share)
        self.counts: Counter[str] = Counter()
        signals.connect(Change.SWITCH_UP, self._switch_up)
        signals.connect(Change.SWITCH_DOWN, self._switch_down)
        signals.connect(Change.PORT_UP, self._port_up)
        signals.connect(Change.PORT_DOWN, self._port_down)
        signals.connect(Change.LINK_UP, self._restart_stream)
        signals.connect(Change.HOST_LEARNED, self._host_up)
        signals.connect(Change.HOST_MOVED, self._host_up)
        signals.connect(Change.HOST_LOST, self._host_down)

    # What there is to send to.

    def _switch_up(self, switch: Switch) -> None:
        self._switch_down(switch)
        target = self._add(lambda now: SWITCH_ECHO_RATE, lambda now: self._send_switch_echo(switch, now))
        self._switches[switch.dpid] = SwitchEcho(target)

    def _switch_down(self, switch: Switch) -> None:
        echo = self._switches.pop(switch.dpid, None)
        if echo is not None:
            echo.target.closed = True

    def _port_up(self, change: tuple[Switch, Port]) -> None:
        switch, port = change
        self._port_down(change)
        place = (switch.dpid, port.number)
        target = self._add(
            lambda now: self._port_rate(switch, port, now), lambda now: self._send_probe(switch, port, now)
        )
        self._ports[place] = Stream(
            target=target,
            delay=DelayEstimator(source="probe"),
            loss=LossEstimator(source="probe", round_trip=False),
        )

    def _port_rate(self, switch: Switch, port: Port, now: float) -> float:
        if self._network.link_from(switch.dpid, port.number) is not None:
            stream = self._ports.get((switch.dpid, port.number))
            return self._options.probe_rate + (0.0 if stream is None else stream.extra_rate)
        return SEARCH_RATE if now - port.since < SEARCH_S else IDLE_RATE

    def _port_down(self, change: tuple[Switch, Port]) -> None:
        switch, port = change
        stream = self._ports.pop((switch.dpid, port.number), None)
        if stream is not None:
            stream.target.closed = True

    def _restart_stream(self, hop: Hop) -> None:
        """Forget what a port's probes told before they crossed this link."""
        stream = self._ports.get((hop.src, hop.src_port))
        if stream is not None:
            stream.delay = DelayEstimator(source="probe")
            stream.loss = LossEstimator(source="probe", round_trip=False)

    def _host_up(self, host: Host) -> None:
        self._host_down(host)
        target = self._add(lambda now: self._host_rate(host), lambda now: self._send_echo(host, now))
        self._hosts[host.ip] = Stream(
            target=target,
            delay=DelayEstimator(source="echo"),
            loss=LossEstimator(source="echo", round_trip=True),
        )

    def _host_rate(self, host: Host) -> float:
        stream = self._hosts.get(host.ip)
        return self._options.echo_rate + (0.0 if stream is None else stream.extra_rate)

    def _host_down(self, host: Host) -> None:
        stream = self._hosts.pop(host.ip, None)
        if stream is not None:
            stream.target.closed = True

    def _add(self, rate: Callable[[float], float], send: Callable[[float], None]) -> Target:
        target = Target(rate=rate, send=send)
        order = next(self._order)
        now = self._clock()
        heapq.heappush(self._queue, (now + (order * GOLDEN % 1.0) / rate(now), order, target))
        return target

    # The measuring loop.

    def run(self) -> None:
        """Send what is due, for ever, tick by tick."""
        next_budget = expected = 0.0
        while True:
            now = self._clock()
            self._late_turns_s.append(max(0.0, now - expected) if expected else 0.0)
            if now >= next_budget:
                self._budget(now)
                next_budget = now + 1.0
            for _ in range(MAX_TOGETHER):
                if not self._queue or self._queue[0][0] > now:
                    break
                self._send_next(now)
            expected = self._clock() + TICK_S
            self._sleep(TICK_S)

    def _budget(self, now: float) -> None:
        """Spend what the limit leaves on links that deserve more; slow all down alike when it is exceeded."""
        linked = [stream for place, stream in self._ports.items() if self._network.link_from(*place)]
        streams = [*((stream, self._options.probe_rate) for stream in linked)]
        streams += [(stream, self._options.echo_rate) for stream in self._hosts.values()]
        for stream, _ in streams:
            stream.extra_rate = 0.0
        wanted = sum(target.rate(now) for _, _, target in self._queue if not target.closed)
        extra = [self._deserved(now, stream, base) - base for stream, base in streams]
        self.budget.note(self._cost(now), wanted_rate=wanted + sum(extra))
        self._slowdown = max(1.0, wanted / self.budget.rate)
        spare = self.budget.rate - wanted
        for (stream, _), rate in zip(streams, probe_rates.shares(extra, spare), strict=True):
            stream.extra_rate = rate

    def _cost(self, now: float) -> Cost:
        late_turns_s, self._late_turns_s = self._late_turns_s, []
        return Cost(
            at=now,
            cpu_s=self._cpu_s(),
            late_turn_s=median(late_turns_s) if late_turns_s else 0.0,
            late_switch_s=self.late_switch_s,
        )

    @property
    def late_switch_s(self) -> float:
        """By how much switches' echo replies are later than at best (the median switch)."""
        return median([echo.late_s for echo in self._switches.values()] or [0.0])

    def _deserved(self, now: float, stream: Stream, base: float) -> float:
        return probe_rates.wanted_rate(
            base,
            stream.loss.tally(now),
            round_trip=stream.loss.round_trip,
            jitter_s=stream.delay.jitter(now).value,
        )

    def _send_next(self, now: float) -> None:
        due, order, target = heapq.heappop(self._queue)
        if target.closed:
            return
        period_s = self._slowdown / target.rate(now)
        following = due + period_s if now - due < LATE_S else now + period_s
        heapq.heappush(self._queue, (following, order, target))
        target.send(now)

    def _send_switch_echo(self, switch: Switch, now: float) -> None:
        if not openflow.congested(switch.datapath):
            switch.datapath.send(openflow.echo_request(_ECHO.pack(_ECHO_MAGIC, self._clock())))

    def _send_probe(self, switch: Switch, port: Port, now: float) -> None:
        if self._network.has_live_host(now, switch.dpid, port.number):
            return  # no host shall get hold of a probe that shows links
        stream = self._ports.get((switch.dpid, port.number))
        if stream is None or openflow.congested(switch.datapath):
            self.counts["skipped"] += 1
            return
        number = next(stream.numbers)
        sent_at = self._clock()
        frame = link_probe(
            Probe(kind=Kind.LINK, dpid=switch.dpid, port=port.number, number=number, sent_at=sent_at),
            self._key,
        )
        stream.loss.sent(sent_at, number)
        self._count_sent(frame)
        switch.datapath.send(openflow.packet_out(frame, port.number))

    def _send_echo(self, host: Host, now: float) -> None:
        stream, switch = self._hosts.get(host.ip), self._network.switches.get(host.dpid)
        if stream is None or switch is None or openflow.congested(switch.datapath):
            self.counts["skipped"] += 1
            return
        number = next(stream.numbers)
        sent_at = self._clock()
        payload = probe.seal(
            Probe(kind=Kind.ECHO, dpid=host.dpid, port=host.port, number=number, sent_at=sent_at), self._key
        )
        frame = host_echo(host, identifier=self._identifier, number=number, payload=payload)
        stream.loss.sent(sent_at, number)
        self._count_sent(frame)
        switch.datapath.send(openflow.packet_out(frame, host.port))

    def _count_sent(self, frame: bytes) -> None:
        self.counts["sent"] += 1
        self.counts["sent_bytes"] += len(frame)

    # What comes back.

    def switch_echo_arrived(self, now: float, dpid: int, data: bytes) -> None:
        """Take the reply to an echo request in; others' requests are not ours to count."""
        echo = self._switches.get(dpid)
        if echo is None or data is None or len(data) != _ECHO.size:
            return
        magic, sent_at = _ECHO.unpack(data)
        if magic == _ECHO_MAGIC:
            echo.add(now, now - sent_at)

    def link_probe_arrived(self, now: float, sent: Probe, dpid: int, port: int) -> None:
        """Take a link probe in at the switch port where it arrived."""
        if sent.dpid == dpid:
            self.counts["reflected"] += 1
            return
        hop = Hop(src=sent.dpid, src_port=sent.port, dst=dpid, dst_port=port)
        known, stream = self._network.has_hop(hop), self._ports.get((sent.dpid, sent.port))
        sent_at = None if stream is None else stream.loss.arrived(now, sent.number)
        if stream is None or sent_at is None or (not known and now - sent_at > FRESH_S):
            self.counts["replayed"] += 1
            return
        if not self._network.probe_arrived(now, hop):
            self.counts["implausible"] += 1
            return
        overhead_s = self.overhead_s(sent.dpid, dpid)
        if overhead_s is not None:
            stream.add_delay(now, now - sent_at - overhead_s, sent_at=sent_at)

    def echo_arrived(self, now: float, ip: str, sent: Probe, dpid: int, port: int) -> None:
        """Take a host's echo reply in."""
        host, stream = self._network.hosts.get(ip), self._hosts.get(ip)
        if (
            host is None
            or stream is None
            or host.place != (dpid, port)
            or (sent.dpid, sent.port) != host.place
        ):
            self.counts["misplaced"] += 1
            return
        sent_at = stream.loss.arrived(now, sent.number)
        if sent_at is None:
            self.counts["replayed"] += 1
            return
        self._network.host_answered(now, host)
        overhead_s = self.overhead_s(dpid, dpid)
        if overhead_s is not None:
            stream.add_delay(now, (now - sent_at - overhead_s) / 2, sent_at=sent_at)

    def overhead_s(self, src: int, dst: int) -> float | None:
        """Return what the control channels add to a probe from `src` to `dst`: half of each echo time."""
        first, second = self._switches.get(src), self._switches.get(dst)
        if first is None or second is None or first.round_trip_s is None or second.round_trip_s is None:
            return None
        return (first.round_trip_s + second.round_trip_s) / 2

    def read(self, payload: bytes) -> Probe | None:
        """Read a probe's payload; what is not ours is counted and ignored."""
        try:
            return probe.unseal(payload, self._key)
        except ForgedProbeError as error:
            self.counts["forged"] += 1
            LOG.debug("ignored a probe: %s", error)
            return None

    def drop_dead_links(self, now: float) -> None:
        """Take down the links over which nothing has come for a while though it was sent."""
        for hop in list(self._network.hops):
            stream = self._ports.get((hop.src, hop.src_port))
            silent_s = now - self._network.last_probe_at(hop)
            if stream is None or (silent_s > DEAD_LINK_S and stream.loss.unanswered >= DEAD_LINK_PROBES):
                LOG.info("no probe for %.1f s over a link", silent_s)
                self._network.link_lost(now, hop)

    def hop_stream(self, hop: Hop) -> Stream | None:
        """Return the stream of a link between switches."""
        return self._ports.get((hop.src, hop.src_port))

    def host_stream(self, ip: str) -> Stream | None:
        """Return the stream of a host's access link."""
        return self._hosts.get(ip)
