"""What the routes work with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.config import Config
from orchestrator.finetune.request import JobRequest
from orchestrator.inference.asking import Asked
from orchestrator.inference.request import DeploymentRequest
from orchestrator.ports import Clock, EventSink, Json, Northbound, Record, Store, WorkerPool


class Jobs(Protocol):
    """Fine-tuning jobs; see `orchestrator.finetune.driver`."""

    def submit(self, request: JobRequest) -> Record: ...

    def cancel(self, job: str) -> Record: ...


class Completion(Protocol):
    """The answers to one request; see `orchestrator.inference.generations`."""

    @property
    def request(self) -> str: ...

    @property
    def prompt_tokens(self) -> tuple[int, ...]: ...

    def chunks(self) -> Iterator[Json]:
        """Yield `{"choice", "text", "token", ...}` per token, per answer at last one with `finish_reason`."""
        ...

    def cancel(self) -> None: ...


class Deployments(Protocol):
    """Split deployments; see `orchestrator.inference.driver`."""

    def deploy(self, request: DeploymentRequest) -> Record: ...

    def undeploy(self, deployment: str) -> Record: ...

    def live(self) -> Sequence[str]: ...

    def describe(self, deployment: str) -> Json: ...

    def preview(self, deployment: str) -> Json: ...

    def migrate(self, deployment: str) -> None: ...

    def models(self) -> Mapping[str, Sequence[str]]:
        """Give the names that requests may use, each with its deployments."""
        ...

    def complete(self, model: str, asked: Sequence[Asked]) -> Completion: ...

    def chat_prompt(self, model: str, messages: Sequence[Json]) -> str: ...

    def tokens_generated(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything that the API stands on."""

    config: Config
    clock: Clock
    pool: WorkerPool
    northbound: Northbound
    store: Store
    events: EventSink
    jobs: Jobs
    deployments: Deployments
