"""The controller's own figures for Prometheus; names as Faucet's Gauge has them where they mean the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ryu_apps.discovery import Network, dpid_text
from ryu_apps.effort import Effort
from ryu_apps.monitor import Monitor
from ryu_apps.steering import State, Steering
from ryu_apps.views import Views

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Collect all figures at the moment they are asked for."""

    def __init__(
        self,
        *,
        network: Network,
        monitor: Monitor,
        views: Views,
        effort: Effort,
        steering: Steering,
        counts: Callable[[], dict[str, float]],
    ) -> None:
        self._network = network
        self._monitor = monitor
        self._views = views
        self._effort = effort
        self._steering = steering
        self._counts = counts
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """Return the exposition format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric (the interface of prometheus_client's collectors)."""
        yield from self._port_metrics()
        yield from self._link_metrics()
        yield from self._effort_metrics()
        yield self._pin_metric()
        for name, value in sorted(self._counts().items()):
            yield CounterMetricFamily(f"utopia_{name}", "Count since the controller started", value=value)

    def _port_metrics(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        labels = ["dp_id", "dp_name", "port", "port_description"]
        for (dpid, number), totals in self._monitor.totals().items():
            switch = self._network.switches.get(dpid)
            port = None if switch is None else switch.ports.get(number)
            if switch is None or port is None:
                continue
            for name, value in totals.items():
                family = families.setdefault(name, GaugeMetricFamily(name, "Port counter", labels=labels))
                family.add_metric([f"0x{dpid:x}", switch.name, str(number), port.name], value)
        yield from families.values()
        up = GaugeMetricFamily("dp_status", "1 if the switch is connected", labels=["dp_id", "dp_name"])
        for switch in self._network.switches.values():
            up.add_metric([f"0x{switch.dpid:x}", switch.name or dpid_text(switch.dpid)], 1)
        yield up

    def _link_metrics(self) -> Iterator[Metric]:
        """Yield every measured value of every link, and the bounds of its interval where it has one."""
        families: dict[str, GaugeMetricFamily] = {}
        for link in self._views.links()["links"]:
            for name, value in _figures(link):
                help_text = "Measured, smoothed; absent while unknown"
                family = families.setdefault(
                    name, GaugeMetricFamily(f"utopia_link_{name}", help_text, labels=["link"])
                )
                family.add_metric([link["id"]], value)
        yield from families.values()

    def _effort_metrics(self) -> Iterator[Metric]:
        """Yield what measuring costs, over the last seconds."""
        for name, value in self._effort.as_json().items():
            if isinstance(value, float):
                yield GaugeMetricFamily(f"utopia_effort_{name}", "Over the last seconds", value=value)

    def _pin_metric(self) -> Metric:
        """Return how many directions of pins stand how."""
        family = GaugeMetricFamily("utopia_pin_directions", "Pinned directions by state", labels=["state"])
        stand = Counter(
            self._steering.state(self._steering.direction(flow))[0]
            for pin in self._steering.pins
            for flow in pin.flows
        )
        for state in State:
            family.add_metric([state.value], stand[state])
        return family


def _figures(link: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name, measurement in link.items():
        if isinstance(measurement, dict) and measurement.get("value") is not None:
            yield name, measurement["value"]
            for bound in ("low", "high"):
                if measurement[bound] is not None:
                    yield f"{name}_{bound}", measurement[bound]
