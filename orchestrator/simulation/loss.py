"""The held-out loss of a simulated job: where it comes from, and a curve fitted on real training.

What trains for real at small scale lives outside of this package; it needs torch and answers the same calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.core.errors import InvalidValue
from orchestrator.finetune.messages import Aggregate


class LossModel(Protocol):
    """Knows what training does to the loss."""

    @property
    def source(self) -> str:
        """Say where the figures come from, for results."""

    def train(self, node: str, epoch: int, version: int) -> float | None:
        """Have `node` train `epoch` from `version`; returns its training loss, None if it is not known."""

    def aggregate(self, order: Aggregate) -> None:
        """Make the new version of `order` from its base version and contributions."""

    def loss(self, version: int) -> float:
        """Return the held-out loss of `version`, in nats per token; version 0 is the start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The form of the fitted loss: floor + (start - floor) * (1 + x / scale) ** -power.

    x is the training so far: the sum over rounds of (mean samples of a contributor) * contributors ** gain.
    With averaged updates a round's progress is that of one node; more contributors only make it less noisy,
    so `gain` is small.
    """

    start: float
    floor: float
    scale: float
    power: float
    gain: float

    def __post_init__(self) -> None:
        if not (self.start > self.floor >= 0 and self.scale > 0 and self.power > 0):
            raise InvalidValue(f"loss curve: needs start > floor >= 0, scale and power above 0: {self}")

    def loss(self, progress: float) -> float:
        """Return the loss after `progress`."""
        return self.floor + (self.start - self.floor) * float((1 + progress / self.scale) ** -self.power)

    def progress(self, samples: Sequence[float]) -> float:
        """Return what one round with these contributors' samples adds."""
        return sum(samples) / len(samples) * float(len(samples) ** self.gain)


class FittedLoss:
    """A LossModel that follows a `Curve`; samples are counted relative to `samples_per_round`."""

    def __init__(self, curve: Curve, *, samples_per_round: float) -> None:
        self._curve = curve
        self._unit = samples_per_round
        self._progress = {0: 0.0}
        self.source = f"curve fitted on real training: {curve}"

    def train(self, node: str, epoch: int, version: int) -> float | None:
        """Return the loss of `version`: on equal partitions, what every node sees."""
        return self.loss(version)

    def aggregate(self, order: Aggregate) -> None:
        """Note a round."""
        done = self._curve.progress([item.weight / self._unit for item in order.contributions])
        self._progress[order.new_version] = self._progress[order.base_version] + done

    def loss(self, version: int) -> float:
        """Return the loss of `version`."""
        return self._curve.loss(self._progress[version])
