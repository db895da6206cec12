"""Train for real, at small scale, what the simulation times: the workers' own trainer without a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.adapters.models import FolderModels
from orchestrator.finetune.calls import weight_unit, worker_training
from orchestrator.finetune.messages import Aggregate
from orchestrator.finetune.outer import OuterOptimiser, OuterSettings
from orchestrator.finetune.parameters import WeightedSum
from orchestrator.ports import Model
from scenarios.schema import Training
from workers.device import DeviceProfile, Pacer
from workers.finetune.trainer import Trainer
from workers.wire.frames import Frame

_JOB = "small-scale"
_UNPACED = DeviceProfile(
    device="cpu",
    cpu_count=1,
    memory_bytes=1,
    compute_flops=1.0,
    layer_overhead_s=0.0,
    power=None,
    emulated=False,
    pacing=False,
    torch="",
    pid=0,
)

Parameters = Mapping[str, NDArray[Any]]


class RealTraining:
    """A LossModel that trains: each node's round is done by a worker's trainer, on its own data."""

    def __init__(
        self,
        models: FolderModels,
        model: Model,
        *,
        partitions: Mapping[str, NDArray[Any]],
        held_out: NDArray[np.int32],
        training: Training,
        epochs: int,
        seed: int,
    ) -> None:
        """`epochs` are the job's: schedules of the learning rate end with them."""
        self._models, self._model = models, model
        self._partitions, self._held_out = partitions, held_out
        self._training, self._seed = training, seed
        self._numbers = {node: number for number, node in enumerate(partitions)}
        self._versions: dict[int, Parameters] = {0: models.parameters(model)}
        self._deltas: dict[tuple[str, int], Parameters] = {}
        self._trainer = Trainer(Pacer(_UNPACED))
        self._outer = OuterOptimiser(
            OuterSettings(kind=training.outer_optimiser, momentum=training.outer_momentum)
        )
        self._sent = 0
        self.source = (
            f"real training of {model.name} ({model.parameter_bytes // 4} parameters), "
            f"a round of {training.local_steps} x {training.batch_size} x {training.sequence_length} tokens, "
            f"{training.schedule} rate, outer {training.outer_optimiser}"
        )
        settings = worker_training(training, epochs=epochs)
        fields = {"job": _JOB, "version": 0, "config": model.config, "training": settings}
        self._ask("train.load", fields, self._versions[0])

    def train(self, node: str, epoch: int, version: int) -> float:
        """Run the node's round; its update is kept for the aggregation.

        One trainer does it for all nodes. It refuses parameters older than what it holds, and a node that is
        late trains from older ones than others did: so it gets them under a number that grows.
        """
        self._sent += 1
        self._ask("train.data", {"job": _JOB}, {"tokens": self._partitions[node]})
        sequence = np.random.SeedSequence([self._seed, self._numbers[node], epoch])
        fields = {
            "job": _JOB,
            "epoch": epoch,
            "version": self._sent,
            "seed": int(sequence.generate_state(1)[0]),
        }
        answer = self._ask("train.run", fields, self._versions[version])
        self._deltas[node, epoch] = answer.tensors
        return float(answer.fields["loss"])

    def aggregate(self, order: Aggregate) -> None:
        """Make the step that the live orchestrator makes."""
        base = self._versions[order.base_version]
        total = WeightedSum(base, unit=weight_unit(self._training))
        for item in order.contributions:
            delta = self._deltas[item.node, order.epoch]
            total.add(((name, delta[name]) for name in base), weight_unit(self._training))
        rate = order.outer_learning_rate
        self._versions[order.new_version] = self._outer.step(base, total, learning_rate=rate)
        self._deltas = {key: delta for key, delta in self._deltas.items() if key[1] > order.epoch}

    def loss(self, version: int) -> float:
        """Evaluate `version` on the held-out tokens."""
        parameters = self._versions[version]
        sequence = self._training.sequence_length
        return self._models.loss(self._model, parameters, self._held_out, sequence=sequence)

    def _ask(self, kind: str, fields: dict[str, Any], tensors: Parameters) -> Any:
        return self._trainer.handle(Frame(kind, fields=fields, tensors=tensors))
