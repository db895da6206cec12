"""What a job takes of a node's memory at least, and who has not got it: known before anything is sent.

Counted is what the trainer holds at its peak (workers/finetune/trainer.py): parameters, their trained copies,
gradients, the optimiser's state, the update on its way and the logits of a batch. The node's data and what
layers keep between forward and backward are not, so that a node is left out only if it certainly cannot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.ports import NodeRecord
from workers.models.architecture import Architecture
from workers.models.lora import Lora, adapter_shapes

_VALUE_BYTES = 4
_OPTIMISER_COPIES = {"adamw": 2, "sgd": 0}
"""They are given back before the update, another copy, is worked out beside parameters and gradients."""
_UPDATE_COPIES = {"fp32": 1.0, "fp16": 1.5, "int8": 1.25, "topk": 5.0}
"""Of what is trained, while an update is encoded: with `topk` what was left out, before and after, too."""
_LOGIT_COPIES = 2
"""Logits and their gradients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobMemory:
    """Bytes that a node needs at least.

    `held_bytes` as long as the job is loaded; beside them `training_bytes` while it trains (on the
    accelerator, if it has one), then `sending_bytes`.
    """

    held_bytes: int
    training_bytes: int
    sending_bytes: int

    def needed_bytes(self, *, accelerator: bool) -> int:
        """Return what a node needs of its main memory."""
        training_bytes = 0 if accelerator else self.training_bytes
        return self.held_bytes + max(training_bytes, self.sending_bytes)

    def shortage(self, record: NodeRecord) -> str | None:
        """Say what a node lacks; None if it has enough, or has not said how much is free."""
        needed = self.needed_bytes(accelerator=record.profile.get("device") == "cuda")
        free = record.free_memory_bytes
        if free is None or free >= needed:
            return None
        return f"{free / 1e6:,.1f} MB of its memory are free, the job takes at least {needed / 1e6:,.1f} MB"

    def shortages(self, records: Iterable[NodeRecord]) -> dict[str, str]:
        """Return the nodes that have too little, each with what it lacks."""
        found = {record.node: self.shortage(record) for record in records}
        return {node: lack for node, lack in found.items() if lack is not None}


def job_memory(training: Any, model: Architecture) -> JobMemory:
    """Work out what `training` (of a job's request) takes on each node."""
    whole, trained, base = _VALUE_BYTES * model.parameters, _VALUE_BYTES * model.parameters, 0
    if training.lora_rank:
        adapters = Lora(rank=training.lora_rank, alpha=training.lora_alpha)
        shapes = adapter_shapes(model.projections, adapters).values()
        trained, base = _VALUE_BYTES * sum(map(math.prod, shapes)), whole
    steps = training.synchronisation == "local_steps"
    copies = 2 + max(_OPTIMISER_COPIES[training.optimiser] if steps else 0, 1)
    rows = training.batch_size * training.sequence_length
    logits = _LOGIT_COPIES * _VALUE_BYTES * rows * model.vocabulary_size
    return JobMemory(
        held_bytes=base + trained,
        training_bytes=copies * trained + logits,
        sending_bytes=int(_UPDATE_COPIES[training.update_encoding] * trained),
    )
