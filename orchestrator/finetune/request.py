"""What a fine-tuning job is asked with: the scenario's section for one policy, and what the API adds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from scenarios.schema import Finetune


class _Base(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["all", "eliminate", "random", "deadline", "oort", "plan"] = Field(
        default="eliminate", description="which nodes train"
    )
    model: str = Field(
        default="embedded",
        min_length=1,
        max_length=4096,
        description="`embedded`, a Hugging Face folder, or `job:<id>` for what a job has tuned",
    )
    nodes: tuple[Annotated[str, Field(min_length=1, max_length=63)], ...] | None = Field(
        default=None, description="the nodes that take part; all that are alive if left out"
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] | None = Field(
        default=None,
        description="seed of partitions, samplers and the random policy; the process's own if left out",
    )
    rejoin: bool = Field(default=True, description="let a node that comes back take part again")

    @model_validator(mode="after")
    def _nodes_once_each(self) -> Self:
        if self.nodes is not None and len(set(self.nodes)) != len(self.nodes):
            twice = sorted({node for node in self.nodes if self.nodes.count(node) > 1})
            raise ValueError(f"nodes names {', '.join(twice)} more than once; name each node once")
        return self


_SHARED = {
    name: (info.annotation, info) for name, info in Finetune.model_fields.items() if name != "policies"
}
JobRequest = create_model("JobRequest", __base__=_Base, __doc__="One fine-tuning job.", **_SHARED)  # type: ignore[call-overload]
