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
    """The form of the fitted loss: floor + (start - floor) g + noise v (1 - g), g = (1 + x / scale)^-power.

    x is the training so far, in rounds: of each the mean samples of a contributor, relative to the usual.
    With averaged updates a round makes the progress of one node, whatever their number. The more contribute,
    the less noisy it is: v is 1 / contributors, of which each round keeps the share `memory` from before.
    """

    start: float
    floor: float
    scale: float
    power: float
    noise: float
    memory: float

    def __post_init__(self) -> None:
        falls = self.start > self.floor >= 0 and self.scale > 0 and self.power > 0
        if not (falls and self.noise >= 0 and 0 <= self.memory < 1):
            raise InvalidValue(
                f"loss curve: start > floor >= 0, scale, power > 0, noise >= 0, memory in [0, 1); is {self}"
            )

    def noisier(self, before: float | None, contributors: int) -> float:
        """Return v after a round of `contributors`; `before` it, None if it is the first."""
        newest = 1 / contributors
        return newest if before is None else self.memory * before + (1 - self.memory) * newest

    def loss(self, progress: float, noisy: float) -> float:
        """Return the loss after `progress` rounds; `noisy` is v."""
        left = float((1 + progress / self.scale) ** -self.power)
        return self.floor + (self.start - self.floor) * left + self.noise * noisy * (1 - left)


class FittedLoss:
    """A LossModel that follows a `Curve`; samples are counted relative to `samples_per_round`."""

    def __init__(self, curve: Curve, *, samples_per_round: float) -> None:
        self._curve = curve
        self._unit = samples_per_round
        self._versions: dict[int, tuple[float, float | None]] = {0: (0.0, None)}
        self.source = "curve fitted on real training"

    def train(self, node: str, epoch: int, version: int) -> float | None:
        """Return the loss of `version`: on equal partitions, what every node sees."""
        return self.loss(version)

    def aggregate(self, order: Aggregate) -> None:
        """Note a round."""
        count = len(order.contributions)
        done = sum(item.weight for item in order.contributions) / count / self._unit
        progress, noisy = self._versions[order.base_version]
        self._versions[order.new_version] = (progress + done, self._curve.noisier(noisy, count))

    def loss(self, version: int) -> float:
        """Return the loss of `version`."""
        progress, noisy = self._versions[version]
        return self._curve.loss(progress, noisy or 0.0)
