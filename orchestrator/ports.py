"""What the drivers and the API need of the world, as protocols; `bootstrap` supplies the real ones."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.core.model import ModelGraph, Network
from workers.models.architecture import Architecture
from workers.models.model_config import ModelConfig
from workers.wire.frames import BodySink

ChannelName = Literal["control", "bulk"]
Tensors = Mapping[str, NDArray[Any]]
Json = dict[str, Any]


class Clock(Protocol):
    """Time: `monotonic` for durations, `unix_s` for records."""

    def monotonic_s(self) -> float: ...

    def unix_s(self) -> float: ...


class Ids(Protocol):
    """Fresh identifiers, `job-3f9a2c71` and the like."""

    def __call__(self, kind: str) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """One node as the worker pool knows it."""

    node: str
    trusted: bool
    enrolled: bool
    alive: bool
    reason: str | None
    """Why it is not alive."""
    address: str | None = None
    port: int | None = None
    heartbeat_age_s: float | None = None
    cpu_utilisation: float | None = None
    rss_bytes: int | None = None
    free_memory_bytes: int | None = None
    """What fine-tuning may take of it now."""
    busy: str | None = None
    shards: tuple[str, ...] = ()
    cache_bytes: Mapping[str, int] = field(default_factory=dict)
    """What keys and values of running requests take of it, by deployment."""
    cache_free_bytes: int | None = None
    """What they could take more."""
    cache_limit_bytes: Mapping[str, int] = field(default_factory=dict)
    """The most that they may take of it, for deployments that have a limit."""
    requests_waiting: Mapping[str, int] = field(default_factory=dict)
    """Requests that wait on this head until there is room for their keys and values, by deployment."""
    requests_put_back: Mapping[str, int] = field(default_factory=dict)
    """How often one was put back so."""
    profile: Json = field(default_factory=dict)
    attached_at: float | None = None
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEvent:
    """A node came or went."""

    kind: Literal["node_joined", "node_lost"]
    node: str
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A worker's reply, with the bytes that the request and the reply took (tensors and headers)."""

    fields: Json
    tensors: dict[str, NDArray[Any]]
    sent_bytes: int
    received_bytes: int


class WorkerPool(Protocol):
    """The nodes: who they are, whether they live, and how to ask them for something."""

    def create_token(self, node: str, *, trusted: bool | None) -> str:
        """Make the one-time enrolment token of `node`; `trusted` None: as it was, not trusted if new."""
        ...

    def revoke(self, node: str) -> None:
        """Cut `node` off and refuse its certificate from now on."""
        ...

    def nodes(self) -> tuple[NodeRecord, ...]:
        """List every node that was ever invited, in order of name."""
        ...

    def node(self, name: str) -> NodeRecord:
        """Give one node; raises NotFound."""
        ...

    def request(
        self,
        node: str,
        channel: ChannelName,
        kind: str,
        fields: Json,
        tensors: Tensors | None = None,
        *,
        timeout_s: float,
        into: BodySink | None = None,
    ) -> Answer:
        """Ask and wait; raises WorkerLost, WorkerTimeout or WorkerRefused.

        With `into` the reply's tensors go there as they come, and the answer has none.
        """
        ...

    def subscribe(self, listener: Callable[[NodeEvent], None]) -> Callable[[], None]:
        """Call `listener` on each node event, from the pool's threads; answers how to stop."""
        ...

    def on_notification(self, kind: str, listener: Callable[[str, Json], None]) -> Callable[[], None]:
        """Call `listener(node, fields)` for each notification of this kind; answers how to stop."""
        ...

    def ready(self) -> str | None:
        """Answer None when workers can attach, else why not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NorthboundStatus:
    """How fresh the controller's picture is."""

    reachable: bool
    age_s: float | None
    reason: str | None
    url: str


class Northbound(Protocol):
    """The controller's measurements, joined with node names."""

    def network(self) -> Network:
        """Give the last known network; values past their age are unknown with the reason."""
        ...

    def topology(self) -> Json:
        """Give the controller's last known topology, as it came."""
        ...

    def status(self) -> NorthboundStatus:
        """Say whether the controller answers and how old its values are."""
        ...


RecordKind = Literal["job", "deployment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One job or deployment, as it is kept."""

    id: str
    kind: RecordKind
    state: str
    created_at: float
    spec: Json
    ended_at: float | None = None
    reason: str | None = None
    summary: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened in a job or deployment; `sequence` orders the entries of all records."""

    sequence: int
    record: str
    at: float
    type: str
    body: Json


class Store(Protocol):
    """The records; they survive the process."""

    def add(self, record: Record) -> None: ...

    def update(
        self,
        record_id: str,
        *,
        state: str | None = None,
        ended_at: float | None = None,
        reason: str | None = None,
        summary: Json | None = None,
    ) -> None:
        """Change the named things of a record; None leaves a thing as it is. Raises NotFound."""
        ...

    def get(self, record_id: str) -> Record:
        """Give one record; raises NotFound."""
        ...

    def records(
        self, *, kind: RecordKind | None = None, limit: int, offset: int
    ) -> tuple[Sequence[Record], int]:
        """List records, newest first, and how many there are in all."""
        ...

    def append(self, record_id: str, *, at: float, type: str, body: Json) -> Entry:
        """Note that something happened; answers it with its sequence number."""
        ...

    def entries(
        self, record_id: str, *, type: str | None = None, after: int = 0, limit: int, offset: int = 0
    ) -> tuple[Sequence[Entry], int]:
        """List what happened, oldest first, past sequence `after`, and how many there are in all."""
        ...

    def count_records(self, kind: RecordKind) -> dict[str, int]:
        """Count the records of a kind by their state."""
        ...

    def count_entries(self, type: str) -> int:
        """Count the entries of a type over all records."""
        ...

    def unfinished(self, kind: RecordKind) -> Sequence[Record]:
        """List what has not ended, newest first."""
        ...

    def ready(self) -> str | None:
        """Answer None when the store can be used, else why not."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A job between two rounds: its `state` as JSON, the parameters, what the outer optimiser remembers."""

    job: str
    version: int
    state: Json
    parameters: Tensors
    outer: Tensors = field(default_factory=dict)


class Checkpoints(Protocol):
    """Where jobs are kept while they run, so that another process can go on with them."""

    def save(self, checkpoint: Checkpoint) -> int:
        """Keep a checkpoint and the one before it; answers its bytes. Raises CheckpointError."""
        ...

    def load(self, job: str) -> tuple[Checkpoint | None, tuple[str, ...]]:
        """Read the newest that is whole, if any, and say what is wrong with newer ones."""
        ...

    def discard(self, job: str) -> None:
        """Forget a job."""
        ...

    def keep_only(self, jobs: Collection[str]) -> None:
        """Forget all other jobs."""
        ...

    def count_attempt(self, job: str, version: int) -> int:
        """Note that a job is resumed from `version`; answers how often it was by now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A Hugging Face folder, read: configuration, tokenizer and where its parameters are."""

    name: str
    folder: Path
    config: Json
    tokenizer_json: str
    parameter_bytes: int
    digest: str
    """SHA-256 over the parameters in order of name: name, then bytes (docs/wire_protocol.md)."""
    layers: int
    context_tokens: int
    compute: str = "fp32"
    """In which precision nodes hold the parameters: fp32, bf16 or fp16."""

    def held_in(self, compute: str) -> Model:
        """Return the same model, to be held in another precision; its digest tells them apart."""
        if compute == self.compute:
            return self
        return replace(self, compute=compute, digest=f"{self.digest}:{compute}")


class ModelStore(Protocol):
    """Models in folders, and the arithmetic on them that needs torch."""

    def describe(self, name: str) -> Architecture:
        """Say what a model is made of, quickly; raises ModelError or NotFound if it cannot be trained."""
        ...

    def check_split(self, name: str) -> ModelConfig:
        """Say what a model to be split has, quickly; raises ModelError or NotFound if it cannot be split."""
        ...

    def check_data(self, data: str) -> None:
        """Refuse a text that cannot be read, quickly; raises InvalidRequest."""
        ...

    def resolve(self, name: str, *, progress: Callable[[float, str], None]) -> Model:
        """Read `embedded` (made on first use), a folder path or `job:<id>`; raises as `check` does.

        `progress` is told the share done, 0 to 1, and what is being done, where it takes long.
        """
        ...

    def graph(self, model: Model, *, wire: str) -> ModelGraph:
        """Describe the model's layers and what they cost, their rows sent in the precision `wire`."""
        ...

    def parameters(self, model: Model) -> dict[str, NDArray[np.float32]]:
        """Read all parameters by their Hugging Face names."""
        ...

    def shard(self, model: Model, *, first_layer: int, end_layer: int, head: bool) -> dict[str, NDArray[Any]]:
        """Read the parameters of layers [first_layer, end_layer) and, for the head, the rest."""
        ...

    def digest(self, parameters: Tensors) -> str:
        """Give the digest of parameters, as workers compute it."""
        ...

    def tokens(self, model: Model, *, data: str, max_bytes: int, seed: int) -> NDArray[np.int32]:
        """Tokenise the fine-tuning text: `found` or a text file's path."""
        ...

    def loss(self, model: Model, parameters: Tensors, tokens: NDArray[np.int32], *, sequence: int) -> float:
        """Give the mean next-token loss in nats over `tokens`."""
        ...

    def save(self, model: Model, parameters: Tensors, *, job: str) -> Path:
        """Write a Hugging Face folder with `parameters`, to be found as `job:<id>`."""
        ...

    def chat_prompt(self, model: Model, messages: Sequence[Json]) -> str:
        """Write a conversation as the model was taught to read it; raises InvalidRequest or ModelError."""
        ...

    def count_tokens(self, model: Model, text: str) -> int:
        """Say how many tokens `text` has."""
        ...


class EventSink(Protocol):
    """Where drivers tell what happened: kept, and streamed to whoever watches."""

    def publish(self, record_id: str, type: str, body: Json) -> None: ...

    def follow(self, record_id: str, *, after: int) -> Iterator[Entry | None]:
        """Yield what happened past `after`, then what happens; None now and then while nothing does."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What every driver needs of the world, in one hand."""

    pool: WorkerPool
    northbound: Northbound
    store: Store
    models: ModelStore
    events: EventSink
    clock: Clock
    ids: Ids
