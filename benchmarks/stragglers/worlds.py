"""Turn a scenario into what the simulation takes: links, nodes and the work."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.simulation import Link, Node, World
from topologies.specs import ORCHESTRATOR, HostSpec, NetworkSpec


def world(spec: NetworkSpec, *, congestion_control: str) -> World:
    """Describe the network of `spec`, with the shortest paths that the controller uses by default."""
    links = tuple(
        Link(
            name=name,
            rate_bps=impairment.rate_bps,
            delay_s=impairment.delay_s,
            loss_ratio=impairment.loss_ratio,
        )
        for link in spec.links
        for name, impairment in link.directions()
    )
    return World(links=links, nodes=tuple(_nodes(spec)), congestion_control=congestion_control)


def _nodes(spec: NetworkSpec) -> Iterator[Node]:
    for host in spec.hosts:
        hops = _hops(host)
        assert host.device is not None
        yield Node(
            name=host.name,
            down=tuple(f"{a}-{b}" for a, b in hops),
            up=tuple(f"{b}-{a}" for a, b in reversed(hops)),
            compute_flops=host.device.compute_flops,
            layer_overhead_s=host.device.layer_overhead_s,
            power=host.device.power,
        )


def _hops(host: HostSpec) -> tuple[tuple[str, str], ...]:
    """The shortest way: every gateway is linked to c1, where the orchestrator is."""
    return ((ORCHESTRATOR, "c1"), ("c1", host.switch), (host.switch, host.name))
