"""The documents of the northbound API, made from what the parts of the controller know now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ryu_apps.capacities import ConfiguredCapacities
from ryu_apps.discovery import Host, Network, Switch, dpid_text, from_host_id, hop_id, to_host_id
from ryu_apps.errors import NotFoundError
from ryu_apps.flowcounters import FlowCounters
from ryu_apps.forwarding import Forwarding
from ryu_apps.goodputs import Goodputs, Transfer
from ryu_apps.hostcounters import HostCounters, Report
from ryu_apps.monitor import Monitor
from ryu_apps.own_traffic import OwnTraffic
from ryu_apps.packets import mac_text
from ryu_apps.paths import METRICS, Hop, LinkValues, combine
from ryu_apps.prober import Prober
from ryu_apps.rates import CounterRate, available
from ryu_apps.stats import Measurement, unknown
from ryu_apps.streams import Stream
from ryu_apps.tally import Tally
from ryu_apps.trains import Trains

Document = dict[str, Any]


class Views:
    """Read the state of all parts; change only what operators and hosts tell."""

    def __init__(
        self,
        *,
        network: Network,
        prober: Prober,
        monitor: Monitor,
        flow_counters: FlowCounters,
        host_counters: HostCounters,
        trains: Trains,
        forwarding: Forwarding,
        capacities: ConfiguredCapacities,
        goodputs: Goodputs,
        own_traffic: OwnTraffic,
        clock: Callable[[], float],
    ) -> None:
        self._network = network
        self._prober = prober
        self._monitor = monitor
        self._flow_counters = flow_counters
        self._host_counters = host_counters
        self._trains = trains
        self._forwarding = forwarding
        self._capacities = capacities
        self._goodputs = goodputs
        self._own_traffic = own_traffic
        self._clock = clock

    def health(self) -> Document:
        """Return what `GET /healthz` answers."""
        links = sum(1 for _ in self._ends())
        return {
            "status": "ok",
            "switches": len(self._network.switches),
            "links": links,
            "hosts": len(self._network.hosts),
        }

    def topology(self) -> Document:
        """Return switches, hosts and the ids of links."""
        switches = sorted(self._network.switches.values(), key=lambda switch: switch.dpid)
        return {
            "generated_at": self._clock(),
            "switches": [_switch_document(switch) for switch in switches],
            "hosts": [_host_document(self._network.hosts[ip]) for ip in self._host_addresses()],
            "links": [link_id for link_id, _, _ in self._ends()],
        }

    def links(self) -> Document:
        """Return every link with its values."""
        now = self._clock()
        return {"generated_at": now, "links": [self._link(now, *end) for end in self._ends()]}

    def link(self, link_id: str) -> Document:
        """Return one link.

        Raises:
            NotFoundError: no such link is up.
        """
        return self._link(self._clock(), *self._find(link_id))

    def configure(self, link_id: str, capacity_bps: float | None) -> Document:
        """Set or forget the configured capacity of a link that is up; return the link."""
        self._find(link_id)
        self._capacities.put(self._clock(), link_id, capacity_bps)
        return self.link(link_id)

    def report(self, ip: str, report: Report) -> Document:
        """Take in what a known host's interface has carried; return both directions of its link."""
        self.take_report(ip, report)
        now, host = self._clock(), self._network.hosts[ip]
        ends = ((from_host_id(host), False), (to_host_id(host), True))
        return {
            "generated_at": now,
            "links": [self._link(now, link_id, host, to_host) for link_id, to_host in ends],
        }

    def take_report(self, ip: str, report: Report) -> None:
        """Take in what a known host's interface has carried."""
        self._host_counters.report(self._clock(), self._network.hosts[ip], report)

    def _find(self, link_id: str) -> tuple[str, Hop | Host, bool]:
        for end in self._ends():
            if end[0] == link_id:
                return end
        raise NotFoundError(
            f"link {link_id} is not up or not known; GET /northbound/v1/topology lists the links"
        )

    def _host_addresses(self) -> list[str]:
        return sorted(self._network.hosts, key=lambda ip: tuple(map(int, ip.split("."))))

    def _ends(self) -> Iterator[tuple[str, Hop | Host, bool]]:
        """Yield (id, link between switches or host, whether it leads to the host) of every link."""
        for hop in sorted(self._network.hops):
            yield hop_id(hop), hop, False
        for ip in self._host_addresses():
            host = self._network.hosts[ip]
            if host.dpid in self._network.switches:
                yield from_host_id(host), host, False
                yield to_host_id(host), host, True

    def values(self, now: float, link_id: str, what: Hop | Host, to_host: bool) -> LinkValues:
        """Return the measured values of a link."""
        stream, used_rate, estimator = self._sources(what, to_host)
        used = used_rate.rate(now)
        cross = self._own_traffic.cross_traffic(now, what, used_rate, to_host=to_host)
        estimate = self._trains.estimator(estimator).capacity(now)
        capacity = self._capacities.get(now, link_id) or estimate
        if stream is None:
            gone = unknown("no probes are sent over the link", source="probe", unit="s")
            delay = jitter = gone
            loss = unknown("no probes are sent over the link", source="probe", unit="ratio")
        else:
            delay, jitter = stream.delay.delay(now), stream.delay.jitter(now)
            loss = stream.loss.loss(now, lambda window_s: self._counted(now, what, to_host, window_s))
        return LinkValues(
            id=link_id,
            delay_s=delay,
            jitter_s=jitter,
            loss_ratio=loss,
            capacity_bps=capacity,
            used_bps=used,
            available_bps=available(capacity, used),
            available_to_own_bps=available(capacity, cross, by="cross traffic"),
        )

    def _counted(self, now: float, what: Hop | Host, to_host: bool, window_s: float) -> Tally:
        """Return what counters at both ends of a link say."""
        if isinstance(what, Hop):
            return self._flow_counters.tally(now, what, window_s)
        return self._host_counters.tally(now, what.ip, to_host=to_host, window_s=window_s)

    def _sources(self, what: Hop | Host, to_host: bool) -> tuple[Stream | None, CounterRate, str]:
        if isinstance(what, Hop):
            used = self._monitor.received(what.dst, what.dst_port)
            return self._prober.hop_stream(what), used, hop_id(what)
        used = self._monitor.sent(*what.place) if to_host else self._monitor.received(*what.place)
        return self._prober.host_stream(what.ip), used, what.ip

    def estimate(self, now: float, what: Hop | Host) -> Measurement:
        """Return the packet trains' estimate of a link."""
        return self._trains.estimator(hop_id(what) if isinstance(what, Hop) else what.ip).capacity(now)

    def _link(self, now: float, link_id: str, what: Hop | Host, to_host: bool) -> Document:
        values = self.values(now, link_id, what, to_host)
        own = self._own_traffic.rate(now, what, to_host=to_host)
        _, used_rate, _ = self._sources(what, to_host)
        cross = self._own_traffic.cross_traffic(now, what, used_rate, to_host=to_host)
        source, target = _endpoints(what, to_host)
        return {
            "id": link_id,
            "src": source,
            "dst": target,
            "up": True,
            **{metric: getattr(values, metric).as_json() for metric in METRICS},
            "estimated_capacity_bps": self.estimate(now, what).as_json(),
            "own_bps": own.as_json(),
            "cross_traffic_bps": cross.as_json(),
        }

    def all_values(self) -> dict[str, LinkValues]:
        """Return the values of every link, by id."""
        now = self._clock()
        return {end[0]: self.values(now, *end) for end in self._ends()}

    def check_host(self, ip: str) -> None:
        """Raise NotFoundError, naming the hosts there are, for one that is not known."""
        if ip not in self._network.hosts:
            known = ", ".join(self._host_addresses()[:50]) or "none"
            raise NotFoundError(
                f"host {ip} is not known (hosts become known when they send something); known hosts: {known}"
            )

    def pairs(self, src: str | None, dst: str | None) -> list[tuple[str, str]]:
        """Return the pairs of different known hosts that match.

        Raises:
            NotFoundError: a host that was asked for is not known.
        """
        for ip in (src, dst):
            if ip is not None:
                self.check_host(ip)
        hosts = self._host_addresses()
        sources = hosts if src is None else [src]
        targets = hosts if dst is None else [dst]
        return [(one, other) for one in sources for other in targets if one != other]

    def path_maker(self) -> Callable[[str, str], Document | None]:
        """Return a function that makes the document of a pair's path, all from the same values.

        The function answers None for a host that was lost meanwhile.
        """
        now, values, costs = self._clock(), self.all_values(), self._forwarding.chooser.costs()

        def make(src: str, dst: str) -> Document | None:
            if src not in self._network.hosts or dst not in self._network.hosts:
                return None
            links = self._forwarding.links(src, dst, costs)
            known = [link for link in links or () if link in values]
            if links is None or len(known) < len(links):
                known = []
            path = combine([values[link] for link in known], no_path=f"no path leads from {src} to {dst} now")
            return {
                "src": src,
                "dst": dst,
                "links": known,
                "chosen_by": self._forwarding.chosen_by(src, dst, links),
                **{metric: getattr(path, metric).as_json() for metric in METRICS},
                "goodput_bps": self._goodputs.goodput(now, src, dst).as_json(),
            }

        return make

    def report_transfer(self, src: str, dst: str, transfer: Transfer) -> Document:
        """Take in what a transfer achieved; return the goodput of its pair.

        Raises:
            NotFoundError: one of the hosts is not known.
        """
        for ip in (src, dst):
            self.check_host(ip)
        self._goodputs.add(src, dst, transfer)
        goodput = self._goodputs.goodput(self._clock(), src, dst)
        return {"src": src, "dst": dst, "goodput_bps": goodput.as_json()}

    def now(self) -> float:
        """Return the time that documents carry."""
        return self._clock()


def _switch_document(switch: Switch) -> Document:
    ports = sorted(switch.ports.values(), key=lambda port: port.number)
    return {
        "dpid": dpid_text(switch.dpid),
        "name": switch.name,
        "connected_since": switch.connected_since,
        "ports": [{"port": port.number, "name": port.name, "up": port.up} for port in ports],
    }


def _host_document(host: Host) -> Document:
    return {
        "ip": host.ip,
        "mac": mac_text(host.mac),
        "dpid": dpid_text(host.dpid),
        "port": host.port,
        "last_seen": host.last_seen,
    }


def _endpoints(what: Hop | Host, to_host: bool) -> tuple[Document, Document]:
    if isinstance(what, Hop):
        return _switch_end(what.src, what.src_port), _switch_end(what.dst, what.dst_port)
    host = {"type": "host", "ip": what.ip, "mac": mac_text(what.mac)}
    switch = _switch_end(what.dpid, what.port)
    return (switch, host) if to_host else (host, switch)


def _switch_end(dpid: int, port: int) -> Document:
    return {"type": "switch", "dpid": dpid_text(dpid), "port": port}
