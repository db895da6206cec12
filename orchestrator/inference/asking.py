"""What a completion is asked with, as the head of a deployment takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.ports import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One answer to one prompt.

    `prompt` is a text or tokens; `bare` says of a text that it has its special tokens in it already, as chat
    templates write them. Without `max_tokens` the answer may fill the context. `sampling` is that of
    docs/wire_protocol.md, without what has its default; none at all is greedy.
    """

    prompt: str | Sequence[int]
    max_tokens: int | None
    bare: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    stop: Sequence[str] = ()

    def with_seed(self, seed: int) -> Asked:
        """Return the same with another seed."""
        return replace(self, sampling={**self.sampling, "seed": seed})

    def fields(self) -> Json:
        """Return the fields of the `generate` command."""
        fields: Json = {"sampling": dict(self.sampling), "stop": list(self.stop)}
        if isinstance(self.prompt, str):
            fields |= {"prompt": self.prompt, "bare": self.bare}
        else:
            fields["tokens"] = list(self.prompt)
        if self.max_tokens is not None:
            fields["max_tokens"] = self.max_tokens
        return fields
