"""The held-out loss of a simulated job: where it comes from, and a curve fitted on real training.

What trains for real at small scale lives outside of this package; it needs torch and answers the same calls.
"""

from __future__ import annotations

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
    """The form of the fitted loss: floor + (start - floor) g + noise / n (1 - g), g = (1 + x / scale)^-power.

    x is the training so far, in rounds: of each the mean samples of a contributor, relative to the usual.
    With averaged updates a round makes the progress of one node, whatever their number; n, those of the
    newest round, make it less noisy.
    """

    start: float
    floor: float
    scale: float
    power: float
    noise: float

    def __post_init__(self) -> None:
        if not (self.start > self.floor >= 0 and self.scale > 0 and self.power > 0 and self.noise >= 0):
            raise InvalidValue(f"loss curve: start > floor >= 0, scale, power > 0, noise >= 0; is {self}")

    def loss(self, progress: float, contributors: int) -> float:
        """Return the loss after `progress` rounds, the last with so many `contributors`."""
        left = float((1 + progress / self.scale) ** -self.power)
        return self.floor + (self.start - self.floor) * left + self.noise / contributors * (1 - left)


class FittedLoss:
    """A LossModel that follows a `Curve`; samples are counted relative to `samples_per_round`."""

    def __init__(self, curve: Curve, *, samples_per_round: float) -> None:
        self._curve = curve
        self._unit = samples_per_round
        self._versions = {0: (0.0, 1)}
        self.source = "curve fitted on real training"

    def train(self, node: str, epoch: int, version: int) -> float | None:
        """Return the loss of `version`: on equal partitions, what every node sees."""
        return self.loss(version)

    def aggregate(self, order: Aggregate) -> None:
        """Note a round."""
        count = len(order.contributions)
        done = sum(item.weight for item in order.contributions) / count / self._unit
        progress, _ = self._versions[order.base_version]
        self._versions[order.new_version] = (progress + done, count)

    def loss(self, version: int) -> float:
        """Return the loss of `version`."""
        return self._curve.loss(*self._versions[version])
