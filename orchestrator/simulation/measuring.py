"""What a controller would say of the simulated paths: true values with errors drawn from a seed."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import replace
from math import sqrt
from typing import Protocol

import numpy as np

from orchestrator.core.model import Measurement, Network, NodeState, PathMetrics
from orchestrator.core.transfer import PathShape
from orchestrator.simulation.world import Measuring, Node

_Z95 = 1.959964
_SOURCE = "simulated measurement"
_LEAST = 0.1
"""Of the true value: however wrong a measurement is, it is above 0."""


class Observer(Protocol):
    """Says what is known of the network and the nodes whenever the engine asks."""

    def measure(self, now_s: float, delays_s: Mapping[tuple[str, str], float]) -> Network:
        """Return the measured paths; `delays_s` are the true one-way delays."""

    def states(self, gone: Set[str]) -> tuple[NodeState, ...]:
        """Return what is known of the nodes' devices; those `gone` are not alive."""


def node_states(nodes: tuple[Node, ...], gone: Set[str]) -> tuple[NodeState, ...]:
    """Return the devices of `nodes` as they are; those `gone` are not alive."""
    return tuple(
        NodeState(
            name=node.name,
            alive=node.name not in gone,
            emulated=True,
            power=node.power,
            compute_flops=node.compute_flops,
            layer_overhead_s=node.layer_overhead_s,
        )
        for node in nodes
    )


class Controller:
    """Measures nodes' paths anew each time it is asked; the n-th answer depends on the seed and n only."""

    def __init__(
        self,
        nodes: tuple[Node, ...],
        shapes: dict[tuple[str, str], PathShape],
        measuring: Measuring,
        seed: int,
    ) -> None:
        errors = measuring.compute_error * np.random.default_rng([seed, 0x6370]).standard_normal(len(nodes))
        self._nodes = tuple(
            replace(node, compute_flops=node.compute_flops * max(1 + float(error), _LEAST))
            for node, error in zip(nodes, errors, strict=True)
        )
        self._shapes = shapes
        self._measuring = measuring
        self._seed = seed
        self._asked = 0

    def measure(self, now_s: float, delays_s: Mapping[tuple[str, str], float]) -> Network:
        """Return the paths in both directions of every node; `delays_s` are the true one-way delays."""
        draw = np.random.default_rng([self._seed, 0x6D65, self._asked])
        self._asked += 1
        count = len(self._shapes)
        delay_error = 1 + self._measuring.delay_error * draw.standard_normal(count)
        rate_error = 1 + self._measuring.rate_error * draw.standard_normal(count)
        losses = np.array([shape.loss_ratio for shape in self._shapes.values()])
        lost = draw.binomial(self._measuring.loss_packets, losses)
        paths = {
            pair: self._path(
                pair,
                delay_s=delays_s[pair] * max(float(delay_error[i]), _LEAST),
                rate_bps=shape.rate_bps * max(float(rate_error[i]), _LEAST),
                lost=int(lost[i]),
            )
            for i, (pair, shape) in enumerate(self._shapes.items())
        }
        return Network(taken_at_s=now_s, paths=paths)

    def states(self, gone: Set[str]) -> tuple[NodeState, ...]:
        """Return what is stated of the nodes' devices; those `gone` are not alive."""
        return node_states(self._nodes, gone)

    def _path(self, pair: tuple[str, str], *, delay_s: float, rate_bps: float, lost: int) -> PathMetrics:
        packets = self._measuring.loss_packets
        low, high = wilson_interval(lost, packets)
        capacity = _known(rate_bps)
        return PathMetrics(
            src=pair[0],
            dst=pair[1],
            delay_s=_known(delay_s),
            loss_ratio=_known(lost / packets, low=low, high=high, samples=packets),
            capacity_bps=capacity,
            available_bps=capacity,
        )


def wilson_interval(lost: int, packets: int) -> tuple[float, float]:
    """Return the 95 % interval of a loss ratio (Wilson, 1927)."""
    ratio, z2 = lost / packets, _Z95 * _Z95
    centre = ratio + z2 / (2 * packets)
    half = _Z95 * sqrt(ratio * (1 - ratio) / packets + z2 / (4 * packets * packets))
    scale = 1 + z2 / packets
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def _known(
    value: float, *, low: float | None = None, high: float | None = None, samples: int = 1
) -> Measurement:
    return Measurement(value=value, raw=value, low=low, high=high, samples=samples, age_s=0.0, source=_SOURCE)
