"""Stages that compute nothing and tell when a row left one stage and reached the next.

The clock is the machine's monotonic one, which all its processes share; the time travels in the row itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from workers.inference.sampling import Choice
from workers.inference.shard import ShardHost
from workers.inference.stage import Asked, Failures, Place, Rows, Stage


class TimingStage(Stage):
    """Takes rows as a stage does and gives them on at once, stamped."""

    def embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Rows:
        """Return rows of zeros."""
        return np.zeros((len(tokens), self.assignment.config.hidden_size), dtype=np.float32)

    def prefill(self, request: str, position: int, rows: Rows) -> Rows:
        """Give a prompt's rows on."""
        self._stamp(rows)
        return rows

    def step(self, places: Sequence[Place], rows: Rows) -> Failures:
        """Note how long the row was under way, and when it leaves."""
        self._stamp(rows)
        return {}

    def choose(self, rows: Rows, asked: Sequence[Asked]) -> list[Choice]:
        """Return no tokens but, as the margin, both hops of the round: microseconds out + 1e6 x back."""
        arrived_ns = time.monotonic_ns()
        left_ns, out_ns = (int(stamp) for stamp in _stamps(rows)[:2])
        return [Choice(token=1, margin=out_ns // 1000 + 1_000_000 * ((arrived_ns - left_ns) // 1000))]

    def _stamp(self, rows: Rows) -> None:
        arrived_ns = time.monotonic_ns()
        stamps = _stamps(rows)
        if not self.assignment.head:
            stamps[1] = arrived_ns - stamps[0]
        stamps[0] = time.monotonic_ns()


class TimingShardHost(ShardHost):
    """A shard host of such stages."""

    def _make_stage(self, assignment: Any, parameters: Any, link: Any, deployment: Any) -> Stage:
        return TimingStage(
            assignment, parameters, link=link, pacer=self._pacer, deployment=deployment, ending=self._ending
        )


def hops_us(margin: float) -> tuple[float, float]:
    """Return the two hops, in microseconds, that `TimingStage.best` told: there and back."""
    back, there = divmod(int(margin), 1_000_000)
    return float(there), float(back)


def _stamps(rows: Rows) -> Any:
    """Return the last row as whole numbers: when it was given away, and the nanoseconds of the hop before."""
    return rows[-1].view(np.int64)
