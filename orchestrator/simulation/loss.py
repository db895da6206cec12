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
class Past:
    """What made a version: rounds, their training and its noise, both weighted by the learning rate."""

    rounds: int = 0
    training: float = 0.0
    weight: float = 0.0
    noisy: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The form of the fitted loss: floor + (start - floor) (1 + x / scale)^-power + noise v.

    x is the training so far: of each round the mean samples of a contributor, relative to the usual, times
    the learning rate, which falls in a line to nothing over `rounds`. With averaged updates a round makes
    the progress of one node, whatever their number; the more contribute, the less noisy it is: v is the mean
    of 1 / contributors over the rounds, weighted by the learning rate, of which each round keeps the share
    `memory`. At the start there is no noise.
    """

    start: float
    floor: float
    scale: float
    power: float
    noise: float
    memory: float
    rounds: int

    def __post_init__(self) -> None:
        falls = self.start > self.floor >= 0 and self.scale > 0 and self.power > 0 and self.rounds > 0
        if not (falls and self.noise >= 0 and 0 <= self.memory <= 1):
            raise InvalidValue(
                "loss curve: start > floor >= 0, scale, power, rounds > 0, noise >= 0, memory in [0, 1]; "
                f"is {self}"
            )

    def after(self, past: Past, *, contributors: int, samples: float = 1.0) -> Past:
        """Return `past` and one more round, of mean `samples` of its contributors, relative to the usual."""
        rate = max(1 - (past.rounds + 0.5) / self.rounds, 0.0)
        kept = self.memory * past.weight
        weight = kept + rate
        return Past(
            rounds=past.rounds + 1,
            training=past.training + rate * samples,
            weight=weight,
            noisy=(kept * past.noisy + rate / contributors) / weight if weight > 0 else past.noisy,
        )

    def loss(self, past: Past) -> float:
        """Return the loss of a version."""
        left = float((1 + past.training / self.scale) ** -self.power)
        return self.floor + (self.start - self.floor) * left + self.noise * past.noisy


class FittedLoss:
    """A LossModel that follows a `Curve`; samples are counted relative to `samples_per_round`."""

    def __init__(self, curve: Curve, *, samples_per_round: float) -> None:
        self._curve = curve
        self._unit = samples_per_round
        self._versions = {0: Past()}
        self.source = "curve fitted on real training"

    def train(self, node: str, epoch: int, version: int) -> float | None:
        """Return the loss of `version`: on equal partitions, what every node sees."""
        return self.loss(version)

    def aggregate(self, order: Aggregate) -> None:
        """Note a round."""
        count = len(order.contributions)
        samples = sum(item.weight for item in order.contributions) / count / self._unit
        past = self._versions[order.base_version]
        self._versions[order.new_version] = self._curve.after(past, contributors=count, samples=samples)

    def loss(self, version: int) -> float:
        """Return the loss of `version`."""
        return self._curve.loss(self._versions[version])
