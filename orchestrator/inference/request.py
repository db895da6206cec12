"""What a split deployment is asked with; thresholds and cost weights are the core's own values."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.core.cost import CostWeights
from orchestrator.core.triggers import Thresholds

LEAST_CONTEXT_TOKENS = 16


class DeploymentRequest(BaseModel):
    """One model to serve, split over the nodes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        default="embedded",
        min_length=1,
        max_length=4096,
        description="`embedded`, a Hugging Face folder, or `job:<id>` for what a job has tuned",
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] | None = Field(
        default=None,
        description="what /v1 calls it beside its id; deployments of one name are replicas, and a request "
        "goes to the one that would finish it first",
    )
    min_nodes: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=1, description="over how many nodes at least"
    )
    thresholds: Thresholds = Thresholds()
    cost: CostWeights = CostWeights()
    monitor_interval_s: Annotated[float, Field(ge=0.1, le=3600)] = 1.0
    context_tokens: Annotated[int, Field(ge=LEAST_CONTEXT_TOKENS, le=1_000_000)] | None = Field(
        default=None,
        description="prompt and answer together; the model's own maximum, 1024 at most, if left out",
    )
    kv_cache_bytes: Annotated[int, Field(ge=1, le=1 << 50)] | None = Field(
        default=None,
        description="the most that keys and values of running requests may take, over all nodes together, "
        "each of which has its layers' share; at least one sequence of `context_tokens`; without it what "
        "the nodes have left",
    )
    compute: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="how nodes hold the parameters; 16 bits take half the memory and are read twice as fast, "
        "sums and caches are fp32 always",
    )
    wire: Literal["fp32", "fp16", "int8"] = Field(
        default="fp32",
        description="how rows travel between nodes: exactly, in half the bytes, or in a quarter with a scale "
        "for each row",
    )
    request_timeout_s: Annotated[float, Field(gt=0, le=600)] = Field(
        default=10.0, description="how long the head waits for the ring before it reports a stall"
    )
