"""The versions of a job's parameters that somebody may still need, and the sum that becomes the next.

The parameters of a version are never changed once made, so that requests in flight can keep sending them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orchestrator.finetune.calls import weight_unit
from orchestrator.finetune.memory import give_back
from orchestrator.finetune.messages import Aggregate
from orchestrator.finetune.outer import OuterOptimiser, OuterSettings
from orchestrator.finetune.parameters import Parameters, SumMemory, WeightedSum
from scenarios.schema import Training
from workers.finetune.schedule import Schedule
from workers.wire.frames import Tensor


class Versions:
    """Owned by the job's thread."""

    def __init__(self, training: Training, *, epochs: int) -> None:
        self._training = training
        self._known: dict[int, Parameters] = {}
        self._sums: dict[int, WeightedSum] = {}
        self._memory = SumMemory()
        self._outer = OuterOptimiser(
            OuterSettings(
                kind=training.outer_optimiser,
                momentum=training.outer_momentum,
                beta2=training.outer_beta2,
                epsilon=training.outer_epsilon,
            )
        )
        self._schedule = Schedule(
            kind=training.schedule,
            total_steps=epochs,
            warmup_steps=round(training.warmup_ratio * epochs),
            final_ratio=training.final_learning_rate_ratio,
        )

    def begin(self, version: int, parameters: Parameters, outer: Mapping[str, Tensor] | None = None) -> None:
        """Begin with a version; `outer` is the outer optimiser's state where the job goes on."""
        self._known[version] = parameters
        if outer is not None:
            self._outer.restore(outer, parameters)

    def __getitem__(self, version: int) -> Parameters:
        """Give the parameters of a version."""
        return self._known[version]

    @property
    def newest(self) -> Parameters:
        """Give the parameters of the newest version."""
        return self._known[max(self._known)]

    def add(self, epoch: int, update: Iterable[tuple[str, Tensor]], weight: float) -> None:
        """Add a checked update to the sum of an epoch."""
        if epoch not in self._sums:
            give_back()  # a round takes the most memory from here on
            self._sums[epoch] = WeightedSum(
                self.newest, unit=weight_unit(self._training), memory=self._memory
            )
        self._sums[epoch].add(update, weight)

    def aggregate(self, instruction: Aggregate) -> None:
        """Make the next version of an epoch's sum, which is spent."""
        total = self._sums.pop(instruction.epoch)
        rate = instruction.outer_learning_rate
        if self._training.synchronisation == "gradient":
            rate *= self._schedule.factor(instruction.epoch)
        base = self._known[instruction.base_version]
        self._known[instruction.new_version] = self._outer.step(base, total, learning_rate=rate)

    def forget_before(self, version: int) -> None:
        """Drop older versions: nobody starts from them, and requests in flight hold on to what they send."""
        for old in [known for known in self._known if known < version]:
            del self._known[old]

    def release(self) -> None:
        """Let go of all parameters and sums: an ended job is known until the next, its memory need not be."""
        self._known.clear()
        self._sums.clear()
        self._memory = SumMemory()
        self._outer.restore({}, {})

    def outer_state(self) -> Mapping[str, Tensor]:
        """Give the outer optimiser's state, for a checkpoint."""
        return self._outer.state()
