"""What a job stands on before its first round: the model, the data as they are dealt, and what is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import InvalidRequest
from orchestrator.events import Progress
from orchestrator.finetune.data import Dealing, Split, split
from orchestrator.finetune.parameters import Parameters
from orchestrator.ports import Checkpoint, Model, ModelStore
from workers.models import lora
from workers.models.architecture import architecture
from workers.models.lora import Lora, Projection


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The model and the data of a job; `base` and `projections` are empty where all parameters are trained.

    `data_digest` is the SHA-256 of all tokens; `capacities` are what the data were dealt by.
    """

    model: Model
    split: Split
    data_digest: str
    capacities: Mapping[str, float | None]
    lora: Lora | None
    base: Parameters
    projections: Mapping[str, Projection]

    def whole(self, parameters: Parameters) -> Parameters:
        """Give the parameters of the model that a version is."""
        if self.lora is None:
            return parameters
        return lora.merged(self.base, parameters, self.lora, self.projections)

    def check(self, checkpoint: Checkpoint, request: Any) -> None:
        """Refuse to go on from a checkpoint of another model or other data.

        Raises:
            InvalidRequest: one of them is no longer what the job began with.
        """
        if checkpoint.state["data_digest"] != self.data_digest:
            raise InvalidRequest(
                f"the data {request.data} have changed since the job began, so that held-out and "
                "trained text would mix; start a new job",
                field="data",
            )
        if checkpoint.state["model"] != self.model.digest:
            raise InvalidRequest(
                f"model {request.model} is not the one that the job began with; start a new job",
                field="model",
            )


def prepare(
    request: Any,
    *,
    nodes: tuple[str, ...],
    seed: int,
    models: ModelStore,
    capacities: Mapping[str, float | None],
    progress: Progress,
) -> Prepared:
    """Read the model and deal the data; takes as long as that takes.

    Raises:
        ModelError, InvalidRequest, NotFound: one of them cannot be used.
    """
    training = request.training
    model = models.resolve(request.model, progress=progress)
    if training.sequence_length > model.context_tokens:
        raise InvalidRequest(
            f"sequence_length {training.sequence_length} exceeds the {model.context_tokens} tokens that "
            f"model {request.model} can take; lower it",
            field="training.sequence_length",
        )
    tokens = models.tokens(model, data=request.data, max_bytes=request.data_bytes, seed=seed)
    dealt = split(
        tokens,
        nodes=nodes,
        sequence=training.sequence_length,
        held_out_ratio=request.held_out_ratio,
        seed=seed,
        dealing=Dealing(kind=request.partition, alpha=request.dirichlet_alpha, capacities=capacities),
    )
    adapters = Lora(rank=training.lora_rank, alpha=training.lora_alpha) if training.lora_rank else None
    return Prepared(
        model=model,
        split=dealt,
        data_digest=hashlib.sha256(tokens.tobytes()).hexdigest(),
        capacities=capacities,
        lora=adapters,
        base=models.parameters(model) if adapters is not None else {},
        projections=architecture(model.config).projections if adapters is not None else {},
    )


def first_version(prepared: Prepared, *, models: ModelStore, seed: int) -> Parameters:
    """Give what is trained as it is at the start: all parameters, or adapters that change nothing."""
    if prepared.lora is None:
        return models.parameters(prepared.model)
    return lora.initial(prepared.projections, prepared.lora, seed=seed)
