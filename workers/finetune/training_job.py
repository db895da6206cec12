"""A fine-tuning job on a node: what it is to do in an epoch, and what it holds."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from workers import fields
from workers.finetune import updates
from workers.finetune.schedule import SCHEDULES, Schedule
from workers.finetune.updates import Update
from workers.models.architecture import Architecture, Shapes
from workers.models.lora import Lora, adapter_shapes

Parameters = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a node does in one epoch."""

    local_steps: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    optimiser: str
    synchronisation: str
    schedule: Schedule
    encoding: str
    topk_ratio: float
    lora: Lora | None

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> Plan:
        """Check the `training` map of `train.load`."""
        return cls(
            local_steps=fields.integer(section, "local_steps", least=1, most=100_000),
            batch_size=fields.integer(section, "batch_size", least=1, most=4_096),
            sequence_length=fields.integer(section, "sequence_length", least=8, most=65_536),
            learning_rate=fields.number(section, "learning_rate", most=10.0),
            optimiser=fields.choice(section, "optimiser", ("adamw", "sgd")),
            synchronisation=fields.choice(section, "synchronisation", ("local_steps", "gradient")),
            schedule=Schedule(
                kind=fields.choice(section, "schedule", SCHEDULES),
                total_steps=fields.integer(section, "total_steps", least=1),
                warmup_steps=fields.integer(section, "warmup_steps"),
                final_ratio=fields.number(section, "final_learning_rate_ratio", above=-1e-9, most=1.0),
            ),
            encoding=fields.choice(section, "update_encoding", updates.ENCODINGS),
            topk_ratio=fields.number(section, "topk_ratio", most=1.0),
            lora=_lora(section),
        )

    @property
    def samples(self) -> int:
        """Sequences of one epoch."""
        return self.local_steps * self.batch_size

    @property
    def tokens(self) -> int:
        """Tokens of one epoch."""
        return self.samples * self.sequence_length

    def shapes(self, config: Architecture) -> tuple[Shapes, Shapes]:
        """Return the shapes of what is trained of a model, and of what stays as it is under it."""
        if self.lora is None:
            return config.shapes, {}
        return adapter_shapes(config.projections, self.lora), config.shapes


class Job:
    """One fine-tuning job on this node. Commands of a job are served one at a time, under `lock`."""

    def __init__(
        self, config: Architecture, plan: Plan, version: int, parameters: Parameters, base: Parameters
    ) -> None:
        """`parameters` are trained; `base` are those under adapters, none without them."""
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.config = config
        self.plan = plan
        self.held = (version, parameters)
        self.base = base
        self.data: torch.Tensor | None = None
        self.data_digest: str | None = None
        """SHA-256 of the tokens that came; the node's own are not in it."""
        self.residual: Update = {}
        """What top-k has not sent yet; a node that is loaded anew begins without."""

    @property
    def version(self) -> int:
        """Version of the parameters held."""
        return self.held[0]

    @property
    def parameters(self) -> Parameters:
        """The parameters held; replaced as a whole, never changed."""
        return self.held[1]

    def again(self) -> Job:
        """Return the same job, not ended and with nothing running."""
        job = Job(self.config, self.plan, *self.held, self.base)
        job.data, job.data_digest = self.data, self.data_digest
        job.residual = self.residual
        return job


def _lora(section: Mapping[str, Any]) -> Lora | None:
    rank = fields.integer(section, "lora_rank", most=1024)
    alpha = fields.number(section, "lora_alpha", most=10_000)
    return Lora(rank=rank, alpha=alpha) if rank else None
