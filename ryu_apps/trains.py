"""Send packet trains over links and to hosts, and keep what they tell of capacities.

Several trains may be under way at once, each over ports of its own, full ones on different switches. They go
over idle links only. A host's train is echoed, and the replies load the other direction as much: the estimate
is the smaller of both directions and stands for both. A train that loses frames spreads less, so the rate is
multiplied by 1 - loss: what is delivered.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ryu_apps import openflow, train_frames
from ryu_apps.capacity import CapacityEstimator, TrainResult, check_rate, train_rate, without_cross
from ryu_apps.discovery import Host, Network, dpid_text, from_host_id, hop_id, to_host_id
from ryu_apps.monitor import Monitor
from ryu_apps.options import Options
from ryu_apps.paths import Hop
from ryu_apps.probe import Probe
from ryu_apps.prober import Prober
from ryu_apps.rates import PortCount
from ryu_apps.signals import Change, Signals
from ryu_apps.streams import Stream
from ryu_apps.train_plan import FRAME_BYTES, Order, Pace, TrainPlan

LOG = logging.getLogger(__name__)

FIRST_ARRIVAL_S = 2.5
QUIET_S = 0.3
IDLE_SHARE = 0.02
CROSSING_SHARE = 0.1
"""Of its rate, what others may send beside a train that is under way before it tells nothing."""
IDLE_FLOOR_BPS = 0.5e6
IDLE_LEAST_BPS = 0.1e6
UNKNOWN_DRAIN_S = 0.1
DRAIN_MARGIN_S = 0.01
"""How long probes wait behind a train: where its rate is not known, and what is added where it is."""
COUNT_S = 0.5
"""How long to wait for the counters at the end of a train."""
HOST_PAUSE_S = 1.0
LINK_PAUSE_S = 10.0
"""The first train waits: for the host's loss to be known, for an operator to configure the link."""
TICK_S = 0.05
MAX_FLIGHTS = 8
MAX_FULL_FLIGHTS = 2
GOLDEN = 0.618034


@dataclass(slots=True, eq=False)
class _Subject:
    """A link whose capacity is estimated: a host's access link or one between switches."""

    name: str
    what: Host | Hop
    plan: TrainPlan
    flight: _Flight | None = None

    @property
    def ports(self) -> list[tuple[int, int]]:
        """The switch ports that its trains cross."""
        if isinstance(self.what, Host):
            return [self.what.place]
        return [(self.what.src, self.what.src_port), (self.what.dst, self.what.dst_port)]


@dataclass(slots=True, eq=False)
class _Flight:
    """A train that is under way: the arrivals of its markers by frame number."""

    subject: _Subject
    order: Order
    number: int
    started_at: float
    lost: float
    arrivals: dict[int, float] = field(default_factory=dict)
    counted: int = 0
    """The frames that the counters of the far port were told of."""
    before: PortCount | None = None
    """What the port that it left from had counted before."""
    result: TrainResult | None = None
    """What it told, while the counters of the same moment are awaited."""
    ended_at: float = 0.0

    def is_over(self, now: float) -> bool:
        """Tell whether all markers are back or no more seem to come."""
        if len(self.arrivals) >= self.order.count:
            return True
        if not self.arrivals:
            return now - self.started_at > FIRST_ARRIVAL_S
        return now - max(self.arrivals.values()) > QUIET_S


class Trains:
    """Own the capacity estimates and the trains that are under way."""

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
        self._pace = Pace(
            interval_s=options.train_interval_s,
            check_interval_s=options.check_interval_s,
            check_share=options.check_share,
        )
        self._prober = prober
        self._monitor = monitor
        self._key = key
        self._clock = clock
        self._sleep = sleep
        self._is_configured = is_configured
        self._subjects: dict[str, _Subject] = {}
        self._flights: dict[int, _Flight] = {}
        self._numbers = itertools.count(1)
        self.counts: Counter[str] = Counter()
        signals.connect(Change.HOST_LEARNED, self._host_up)
        signals.connect(Change.HOST_MOVED, self._host_up)
        signals.connect(Change.HOST_LOST, lambda host: self._close(host.ip))
        signals.connect(Change.LINK_UP, lambda hop: self._open(hop_id(hop), hop))
        signals.connect(Change.LINK_DOWN, lambda hop: self._close(hop_id(hop)))

    def _host_up(self, host: Host) -> None:
        self._open(host.ip, host)

    def _open(self, name: str, what: Host | Hop) -> None:
        self._close(name)
        pause_s = HOST_PAUSE_S if isinstance(what, Host) else LINK_PAUSE_S
        stagger_s = (len(self._subjects) * GOLDEN) % 1.0
        plan = TrainPlan(pace=self._pace, full_at=self._clock() + pause_s + stagger_s)
        self._subjects[name] = _Subject(name=name, what=what, plan=plan)

    def _close(self, name: str) -> None:
        subject = self._subjects.pop(name, None)
        if subject is not None and subject.flight is not None:
            self._flights.pop(subject.flight.number, None)

    def estimator(self, name: str) -> CapacityEstimator:
        """Return the estimate of a host's (by address) or a link's (by id) capacity."""
        subject = self._subjects.get(name)
        if subject is None:
            return CapacityEstimator(reason="the link is not known")
        estimator = subject.plan.estimator
        if self._pace.interval_s == 0 and estimator.value_bps is None:
            estimator.reason = "packet trains are switched off (--train-interval 0)"
        return estimator

    def request(self, name: str) -> None:
        """Send the next full train of a link soon: it seems to have changed."""
        subject = self._subjects.get(name)
        if subject is not None:
            subject.plan.request(self._clock())

    def run(self) -> None:
        """End the trains that are back and send those that are due, for ever."""
        while True:
            self.look_after(self._clock())
            self._sleep(TICK_S)

    def look_after(self, now: float) -> None:
        """Do what is to be done now."""
        for flight in list(self._flights.values()):
            if flight.result is None and flight.is_over(now):
                self._end(now, flight)
            elif flight.result is not None and now - flight.ended_at > COUNT_S:
                self._learn(now, flight, flight.result)
        due = []
        for subject in self._subjects.values():
            order = None if subject.flight is not None else subject.plan.next_train(now)
            if order is not None:
                due.append((subject, order))
        for subject, order in sorted(due, key=_urgency):
            self._serve(now, subject, order)

    def _serve(self, now: float, subject: _Subject, order: Order) -> None:
        if self._needs_none(subject, order):
            subject.plan.started(now, order)
            subject.plan.full_at = max(subject.plan.full_at, now + self._pace.interval_s)
            return
        if not self._has_room(subject, order):
            return
        busy = self._busy(subject)
        if busy is not None:
            subject.plan.busy(now, order, busy)
        else:
            self._send(now, subject, order)

    def _needs_none(self, subject: _Subject, order: Order) -> bool:
        """Tell whether a link's capacity is configured, so that it needs no train (a host's: no check)."""
        what = subject.what
        if isinstance(what, Hop):
            if self._is_configured(subject.name):
                subject.plan.estimator.forget("not estimated: the capacity is configured")
                return True
            return False
        configured = self._is_configured(from_host_id(what)) and self._is_configured(to_host_id(what))
        return order.check and configured

    def _has_room(self, subject: _Subject, order: Order) -> bool:
        """Tell whether a train disturbs none of those that are under way."""
        flights = self._flights.values()
        if len(flights) >= MAX_FLIGHTS:
            return False
        taken = {port for flight in flights for port in flight.subject.ports}
        if any(port in taken for port in subject.ports):
            return False
        if order.check:
            return True
        full = [flight for flight in flights if not flight.order.check]
        switches = {dpid for flight in full for dpid, _ in flight.subject.ports}
        return len(full) < MAX_FULL_FLIGHTS and not any(dpid in switches for dpid, _ in subject.ports)

    def _busy(self, subject: _Subject) -> str | None:
        """Say why a link must not be loaded now, None when it may."""
        value = subject.plan.estimator.value_bps
        limit = IDLE_FLOOR_BPS if value is None else max(IDLE_SHARE * value, IDLE_LEAST_BPS)
        for dpid, port in subject.ports:
            switch = self._network.switches.get(dpid)
            if switch is None or openflow.congested(switch.datapath):
                return f"switch {dpid_text(dpid)} takes no packets now"
            for rate in (self._monitor.sent(dpid, port), self._monitor.received(dpid, port)):
                used = rate.recent_peak_bps
                if used is not None and used > limit:
                    return f"the link carries {used / 1e6:.2f} Mbit/s, trains wait until it is idle"
        return None

    def _send(self, now: float, subject: _Subject, order: Order) -> None:
        """Send one train; its markers are awaited."""
        what = subject.what
        dpid, port = train_frames.departure(what)
        switch = self._network.switches[dpid]
        number = next(self._numbers) & 0xFFFF
        flight = _Flight(
            subject=subject, order=order, number=number, started_at=now, lost=self._loss(what, now)
        )
        if isinstance(what, Host):
            switch.datapath.send(train_frames.introduction(what))
        if not order.check:
            self._monitor.count(dpid, port, lambda count: setattr(flight, "before", count))
        stream, value = self._stream(what), subject.plan.estimator.value_bps
        if stream is not None:
            drains_s = UNKNOWN_DRAIN_S if value is None else order.sent_bytes * 8 / value
            stream.queues(now, now + drains_s + DRAIN_MARGIN_S)
        subject.flight = self._flights[number] = flight
        subject.plan.started(now, order)
        self._monitor.add_own(dpid, port, tx=order.sent_bytes)
        self.counts["check_sent" if order.check else "train_sent"] += 1
        self.counts["check_sent_bytes" if order.check else "train_sent_bytes"] += order.sent_bytes
        switch.datapath.send(train_frames.messages(what, order, train=number, sent_at=now, key=self._key))

    def arrived(self, now: float, sent: Probe) -> None:
        """Take a marker in that came back."""
        flight = self._flights.get(sent.train)
        if flight is None or train_frames.departure(flight.subject.what) != (sent.dpid, sent.port):
            return
        flight.arrivals.setdefault(sent.number, now)
        self._count_arrived(flight, sent.number)
        if flight.result is None and len(flight.arrivals) == flight.order.count:
            self._end(now, flight)

    def _count_arrived(self, flight: _Flight, frames: int) -> None:
        """Tell the far port's counters how much of a train it has seen."""
        if frames > flight.counted:
            new_bytes = (frames - flight.counted) * FRAME_BYTES * (1 - flight.lost)
            self._monitor.add_own(*flight.subject.ports[-1], rx=new_bytes)
            flight.counted = frames

    def _end(self, now: float, flight: _Flight) -> None:
        """Work out what a train told; where it is a rate, make sure that nobody else used the link."""
        order = flight.order
        if flight.arrivals:
            self._count_arrived(flight, order.count * order.every)
        arrivals = [(index * FRAME_BYTES, at) for index, at in flight.arrivals.items()]
        result: TrainResult = check_rate(arrivals) if order.check else train_rate(arrivals)
        if order.check or result.rate_bps is None or flight.before is None:
            self._learn(now, flight, result)
            return
        flight.result, flight.ended_at = result, now
        place = train_frames.departure(flight.subject.what)
        self._monitor.count(*place, lambda after: self._judge(flight, result, after))

    def _judge(self, flight: _Flight, result: TrainResult, after: PortCount) -> None:
        """Take a train's rate in, unless others used the link much meanwhile; a little is corrected for."""
        if self._flights.get(flight.number) is not flight:
            return
        now, what = self._clock(), flight.subject.what
        rate_bps = result.rate_bps or 0.0
        others = None if flight.before is None else after.others_since(flight.before)
        sent_bps, received_bps = others or (0.0, 0.0)
        crossing_bps = max(sent_bps, received_bps) if isinstance(what, Host) else sent_bps
        if crossing_bps > max(CROSSING_SHARE * rate_bps, IDLE_LEAST_BPS):
            self._land(flight)
            self.counts["train_spoiled"] += 1
            flight.subject.plan.spoiled(now, f"others sent {crossing_bps / 1e6:.2f} Mbit/s beside the train")
            return
        if isinstance(what, Host):
            result = replace(result, rate_bps=without_cross(rate_bps, received_bps))
        self._learn(now, flight, result)

    def _learn(self, now: float, flight: _Flight, result: TrainResult) -> None:
        self._land(flight)
        LOG.debug("train over %s: %s %s", flight.subject.name, flight.order, result)
        plan = flight.subject.plan
        alarms = plan.alarms
        plan.learn(now, flight.order, result, lost=flight.lost)
        self.counts["check_alarms"] += plan.alarms - alarms

    def _land(self, flight: _Flight) -> None:
        self._flights.pop(flight.number, None)
        flight.subject.flight = None

    def _stream(self, what: Host | Hop) -> Stream | None:
        if isinstance(what, Host):
            return self._prober.host_stream(what.ip)
        return self._prober.hop_stream(what)

    def _loss(self, what: Host | Hop, now: float) -> float:
        stream = self._stream(what)
        loss = None if stream is None else stream.loss.loss(now).value
        return loss if loss is not None and loss < 0.5 else 0.0


def _urgency(item: tuple[_Subject, Order]) -> tuple[int, float]:
    """Order what is due: full trains that a check called for, checks, other full trains."""
    subject, order = item
    plan = subject.plan
    if order.check:
        return 1, plan.check_at
    return (0 if plan.suspected_bps is not None else 2), plan.full_at
