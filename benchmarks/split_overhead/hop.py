"""Stages that compute nothing and tell when a row left one compute thread and reached the next.

The clock is the machine's monotonic one, which all its processes share; the time travels in the row itself.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.shard import ShardHost
from workers.stage import Stage


class TimingStage(Stage):
    """Takes rows as a stage does and gives them on at once, stamped."""

    def embed(self, tokens: list[int]) -> Tensor:
        """Return rows of zeros."""
        return torch.zeros(len(tokens), self.assignment.config.hidden_size)

    def run(self, request: str, position: int, rows: Tensor) -> Tensor:
        """Note how long the rows were under way, and when they leave."""
        arrived_ns = time.monotonic_ns()
        stamps = _stamps(rows)
        if not self.assignment.head:
            stamps[1] = arrived_ns - stamps[0]
        stamps[0] = time.monotonic_ns()
        return rows

    def best(self, row: Tensor) -> tuple[int, float]:
        """Return nothing but, as the margin, both hops of the round: microseconds out + 1e6 x back."""
        arrived_ns = time.monotonic_ns()
        stamps = _stamps(row[None])
        back_ns, out_ns = arrived_ns - int(stamps[0]), int(stamps[1])
        return 1, float(out_ns // 1000 + 1_000_000 * (back_ns // 1000))


class TimingShardHost(ShardHost):
    """A shard host of such stages."""

    def _make_stage(self, assignment: Any, parameters: Any, link: Any, budget: Any) -> Stage:
        return TimingStage(
            assignment, parameters, link=link, pacer=self._pacer, budget=budget, ending=self._ending
        )


def hops_us(margin: float) -> tuple[float, float]:
    """Return the two hops, in microseconds, that `TimingStage.best` told: there and back."""
    back, there = divmod(int(margin), 1_000_000)
    return float(there), float(back)


def _stamps(rows: Tensor) -> Any:
    """Return the last row as whole numbers: when it was given away, and the nanoseconds of the hop before."""
    return rows.numpy()[-1].view(np.int64)
