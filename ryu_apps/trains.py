"""Estimate what links can carry with packet trains, one at a time.

A train is a burst of 1442-byte frames handed to the switch at once; the bottleneck spreads it, and the
spread gives its rate. Only every n-th frame is a marked one that comes back to the controller, the others are
dropped by a rule behind the link, since a controller cannot take thousands of packets a second. Trains start
small and grow until their spread can be measured, up to MAX_FRAMES (1 MB); they are sent over idle links
only.

A host's train is made of echo requests, whose replies load the other direction as much: the estimate is the
smaller of both directions and stands for both. A train that loses frames spreads less, so the rate is
multiplied by 1 - loss: what is delivered.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from ryu_apps import openflow, packets, probe
from ryu_apps.capacity import MIN_DISPERSION_S, CapacityEstimator, TrainResult, train_rate
from ryu_apps.discovery import Host, Network, dpid_text, hop_id
from ryu_apps.monitor import Monitor
from ryu_apps.options import Options
from ryu_apps.paths import Hop
from ryu_apps.probe import Kind, Probe
from ryu_apps.prober import Prober, host_echo, link_probe
from ryu_apps.signals import Change, Signals

LOG = logging.getLogger(__name__)

FRAME_BYTES = 1442
PADDING = FRAME_BYTES - 42 - probe.PAYLOAD_BYTES
MIN_FRAMES = 24
MAX_FRAMES = 694
MARKERS = 24
SPREAD_S = 0.060
MAX_GROWTH = 8.0
FIRST_ARRIVAL_S = 2.5
QUIET_S = 0.3
IDLE_SHARE = 0.1
IDLE_FLOOR_BPS = 0.5e6
RETRY_S = 2.0
UNSETTLED_S = 1.0
QUICK_TRAINS = 8
TOO_FAST_S = 300.0
HOST_PAUSE_S = 1.0
LINK_PAUSE_S = 10.0
"""The first train waits: for the host's loss to be known, for an operator to configure the link."""
PAUSE_S = 0.1


@dataclass(slots=True, eq=False)
class Subject:
    """A link whose capacity is estimated: a host's access link or one between switches."""

    name: str
    what: Host | Hop
    estimator: CapacityEstimator = field(default_factory=CapacityEstimator)
    frames: int = MIN_FRAMES
    due: float = 0.0
    hurry: int = QUICK_TRAINS
    """How many more trains may follow each other quickly while the estimate is not settled."""
    closed: bool = False


@dataclass(slots=True)
class _Flight:
    """The train that is under way: its number and the arrivals of its markers."""

    number: int
    arrivals: dict[int, float] = field(default_factory=dict)


class Trains:
    """Own the capacity estimates and the one train that is under way."""

    def __init__(
        self,
        network: Network,
        signals: Signals,
        options: Options,
        *,
        prober: Prober,
        monitor: Monitor,
        key: bytes,
        clock: Callable[[], float],
        sleep: Callable[[float], None],
        is_configured: Callable[[str], bool],
    ) -> None:
        self._network = network
        self._interval_s = options.train_interval_s
        self._prober = prober
        self._monitor = monitor
        self._key = key
        self._clock = clock
        self._sleep = sleep
        self._is_configured = is_configured
        self._subjects: dict[str, Subject] = {}
        self._numbers = itertools.count(1)
        self._flight: _Flight | None = None
        self.sent_bytes = 0
        signals.connect(Change.HOST_LEARNED, self._host_up)
        signals.connect(Change.HOST_MOVED, self._host_up)
        signals.connect(Change.HOST_LOST, lambda host: self._close(host.ip))
        signals.connect(Change.LINK_UP, lambda hop: self._open(hop_id(hop), hop))
        signals.connect(Change.LINK_DOWN, lambda hop: self._close(hop_id(hop)))

    def _host_up(self, host: Host) -> None:
        self._close(host.ip)
        self._open(host.ip, host)

    def _open(self, name: str, what: Host | Hop) -> None:
        pause_s = HOST_PAUSE_S if isinstance(what, Host) else LINK_PAUSE_S
        self._subjects[name] = Subject(name=name, what=what, due=self._clock() + pause_s)

    def _close(self, name: str) -> None:
        subject = self._subjects.pop(name, None)
        if subject is not None:
            subject.closed = True

    def estimator(self, name: str) -> CapacityEstimator:
        """Return the estimate of a host's (by address) or a link's (by id) capacity."""
        subject = self._subjects.get(name)
        if subject is None:
            return CapacityEstimator(reason="the link is not known")
        if self._interval_s == 0 and subject.estimator.value_bps is None:
            subject.estimator.reason = "packet trains are switched off (--train-interval 0)"
        return subject.estimator

    def request(self, name: str) -> None:
        """Send the next train of a link soon: it seems to have changed."""
        subject = self._subjects.get(name)
        if subject is not None:
            subject.due = min(subject.due, self._clock())
            subject.hurry = QUICK_TRAINS

    def run(self) -> None:
        """Send the trains that are due, one at a time, for ever."""
        while True:
            if self._interval_s > 0:
                now = self._clock()
                due = [subject for subject in self._subjects.values() if subject.due <= now]
                if due:
                    self._serve(min(due, key=lambda subject: subject.due))
            self._sleep(PAUSE_S)

    def _serve(self, subject: Subject) -> None:
        now = self._clock()
        if isinstance(subject.what, Hop) and self._is_configured(subject.name):
            subject.due = now + self._interval_s
            subject.estimator.reason = "not estimated: the capacity is configured"
            return
        busy = self._busy(subject, now)
        if busy is not None:
            subject.due = now + RETRY_S
            if subject.estimator.value_bps is None:
                subject.estimator.reason = busy
            return
        result = self._send(subject)
        if not subject.closed:
            self._learn(subject, result)

    def _busy(self, subject: Subject, now: float) -> str | None:
        """Say why a link must not be loaded now, None when it may."""
        value = subject.estimator.value_bps
        limit = IDLE_FLOOR_BPS if value is None else max(IDLE_SHARE * value, 1e5)
        for dpid, port in self._touched(subject.what):
            if dpid not in self._network.switches or openflow.congested(
                self._network.switches[dpid].datapath
            ):
                return f"switch {dpid_text(dpid)} takes no packets now"
            for rate in (self._monitor.sent(dpid, port), self._monitor.received(dpid, port)):
                used = rate.rate(now).raw
                if used is not None and used > limit:
                    return f"the link carries {used / 1e6:.2f} Mbit/s, trains wait until it is idle"
        return None

    @staticmethod
    def _touched(what: Host | Hop) -> list[tuple[int, int]]:
        if isinstance(what, Host):
            return [what.place]
        return [(what.src, what.src_port), (what.dst, what.dst_port)]

    def _learn(self, subject: Subject, result: TrainResult) -> None:
        """Take a train's result in, and decide when the next one goes and how long it is."""
        now = self._clock()
        LOG.debug("train of %d frames over %s: %s", subject.frames, subject.name, result)
        too_short = result.rate_bps is None and result.dispersion_s > 0
        if result.rate_bps is not None:
            subject.estimator.add(now, result.rate_bps * (1 - self._loss(subject.what, now)))
            subject.frames = _clamp(result.rate_bps * SPREAD_S / 8 / FRAME_BYTES)
        elif too_short and result.dispersion_s < MIN_DISPERSION_S and subject.frames < MAX_FRAMES:
            growth = min(MAX_GROWTH, max(1.5, SPREAD_S * 0.7 / result.dispersion_s))
            subject.frames = _clamp(subject.frames * growth)
        elif self._is_beyond(subject, result, too_short):
            subject.frames = MIN_FRAMES
            subject.due = now + TOO_FAST_S
            subject.estimator.reason = (
                f"faster than a train of {MAX_FRAMES * FRAME_BYTES / 1e6:.1f} MB can tell "
                f"({result.reason}); configure it with PUT"
            )
            return
        elif result.reason is not None:
            subject.estimator.reason = result.reason
        subject.due = now + self._pause_s(subject)

    @staticmethod
    def _is_beyond(subject: Subject, result: TrainResult, too_short: bool) -> bool:
        """Tell whether trains cannot measure a link: the longest is too short, or overruns its buffers."""
        if too_short:
            return result.dispersion_s < MIN_DISPERSION_S
        return result.rate_bps is None and subject.frames > MIN_FRAMES and isinstance(subject.what, Hop)

    def _pause_s(self, subject: Subject) -> float:
        """Return how long to wait until the next train: a little while the estimate is not settled."""
        if subject.estimator.unsettled and subject.hurry > 0:
            subject.hurry -= 1
            return UNSETTLED_S
        return self._interval_s if subject.estimator.value_bps is not None else self._interval_s / 4

    def _loss(self, what: Host | Hop, now: float) -> float:
        if isinstance(what, Host):
            stream = self._prober.host_stream(what.ip)
        else:
            stream = self._prober.hop_stream(what)
        loss = None if stream is None else stream.loss.loss(now).value
        return loss if loss is not None and loss < 0.5 else 0.0

    def _send(self, subject: Subject) -> TrainResult:
        """Send one train and wait for its markers."""
        what = subject.what
        number = next(self._numbers) & 0xFFFF
        if isinstance(what, Host):
            self._introduce_filler(what)
        dpid, port = _departure(what)
        every = max(1, subject.frames // MARKERS)
        count = max(1, subject.frames // every)
        filler = self._filler(what)
        groups = []
        for index in range(1, count + 1):
            if every > 1:
                groups.append(openflow.packet_out(filler, port, copies=every - 1))
            groups.append(openflow.packet_out(self._marker(what, number, index * every), port))
        self._flight = _Flight(number=number)
        self._disturb(what)
        self.sent_bytes += count * every * FRAME_BYTES
        switch = self._network.switches.get(dpid)
        if switch is not None:
            switch.datapath.send(b"".join(groups))
            self._await(count, what)
        arrivals, self._flight = self._flight.arrivals, None
        return train_rate([(index * FRAME_BYTES, at) for index, at in arrivals.items()])

    def _await(self, count: int, what: Host | Hop) -> None:
        """Wait until all markers are back or no more seem to come."""
        assert self._flight is not None
        started = self._clock()
        arrivals = self._flight.arrivals
        while len(arrivals) < count:
            now = self._clock()
            if now - max(arrivals.values(), default=started + FIRST_ARRIVAL_S - QUIET_S) > QUIET_S:
                break
            self._sleep(0.02)
            self._disturb(what)

    def _disturb(self, what: Host | Hop) -> None:
        for dpid, port in self._touched(what):
            self._monitor.disturb(self._clock(), dpid, port)

    def _introduce_filler(self, host: Host) -> None:
        """Let the host learn the filler's hardware address, so that it does not hold replies back."""
        frame = packets.build_arp(
            operation=packets.ARP_REQUEST,
            sender_mac=probe.VIRTUAL_MAC,
            sender_ip=probe.FILLER_IP,
            target_mac=bytes(6),
            target_ip=packets.ip_bytes(host.ip),
        )
        switch = self._network.switches.get(host.dpid)
        if switch is not None:
            switch.datapath.send(openflow.packet_out(frame, host.port))

    def _filler(self, what: Host | Hop) -> bytes:
        if isinstance(what, Host):
            return host_echo(
                what,
                identifier=0,
                number=0,
                payload=bytes(probe.PAYLOAD_BYTES),
                padding=PADDING,
                source=probe.FILLER_IP,
            )
        return packets.build_udp(
            source_mac=probe.VIRTUAL_MAC,
            destination_mac=probe.PROBE_MAC,
            source=probe.VIRTUAL_IP,
            destination=probe.FILLER_IP,
            port=probe.UDP_PORT,
            payload=bytes(probe.PAYLOAD_BYTES + PADDING),
        )

    def _marker(self, what: Host | Hop, train: int, index: int) -> bytes:
        kind = Kind.ECHO_TRAIN if isinstance(what, Host) else Kind.LINK_TRAIN
        dpid, port = _departure(what)
        sent = Probe(kind=kind, dpid=dpid, port=port, number=index, sent_at=self._clock(), train=train)
        if isinstance(what, Host):
            payload = probe.seal(sent, self._key)
            return host_echo(what, identifier=train, number=index, payload=payload, padding=PADDING)
        return link_probe(sent, self._key, padding=PADDING)

    def arrived(self, now: float, sent: Probe) -> None:
        """Take a marker in that came back."""
        if self._flight is not None and self._flight.number == sent.train:
            self._flight.arrivals.setdefault(sent.number, now)


def _departure(what: Host | Hop) -> tuple[int, int]:
    """Return the switch and port that a train leaves from."""
    return what.place if isinstance(what, Host) else (what.src, what.src_port)


def _clamp(frames: float) -> int:
    return round(min(MAX_FRAMES, max(MIN_FRAMES, frames)))
