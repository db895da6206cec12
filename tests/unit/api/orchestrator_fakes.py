"""Doubles of the orchestrator's ports; tests/contract/test_ports.py holds them to what the real ones do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from orchestrator.core.model import Network
from orchestrator.errors import NotFound, WorkerLost
from orchestrator.ports import Answer, Entry, NodeEvent, NodeRecord, NorthboundStatus, Record
from workers.wire.frames import Header, TensorSpec


class ManualClock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s

    def unix_s(self) -> float:
        return 1_700_000_000.0 + self.now_s


class MemoryStore:
    """Records in memory."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._entries: list[Entry] = []

    def add(self, record):
        self._records[record.id] = record

    def update(self, record_id, *, state=None, ended_at=None, reason=None, summary=None):
        named = {"state": state, "ended_at": ended_at, "reason": reason, "summary": summary}
        changes = {key: value for key, value in named.items() if value is not None}
        self._records[record_id] = replace(self.get(record_id), **changes)

    def get(self, record_id):
        if record_id not in self._records:
            raise NotFound(f"there is no record {record_id!r}")
        return self._records[record_id]

    def records(self, *, kind=None, limit, offset):
        found = [record for record in self._records.values() if kind in (None, record.kind)]
        found.sort(key=lambda record: (-record.created_at, record.id))
        return found[offset : offset + limit], len(found)

    def append(self, record_id, *, at, type, body):
        entry = Entry(sequence=len(self._entries) + 1, record=record_id, at=at, type=type, body=body)
        self._entries.append(entry)
        return entry

    def entries(self, record_id, *, type=None, after=0, limit, offset=0):
        found = [
            entry
            for entry in self._entries
            if entry.record == record_id and entry.sequence > after and type in (None, entry.type)
        ]
        return found[offset : offset + limit], len(found)

    def count_records(self, kind):
        states = [record.state for record in self._records.values() if record.kind == kind]
        return {state: states.count(state) for state in states}

    def count_entries(self, type):
        return sum(entry.type == type for entry in self._entries)

    def unfinished(self, kind):
        found = self.records(kind=kind, limit=len(self._records), offset=0)[0]
        return [record for record in found if record.ended_at is None]

    def ready(self):
        return None


class MemoryCheckpoints:
    """The newest checkpoint of each job, in memory."""

    def __init__(self) -> None:
        self.kept = {}
        self.saved = []
        self.attempts = {}
        self.fault = None
        self.newest = None

    def save(self, checkpoint):
        if self.fault is not None:
            raise self.fault
        self.saved.append(checkpoint.version)
        self.newest = checkpoint
        self.kept[checkpoint.job] = checkpoint
        return 1

    def load(self, job):
        return self.kept.get(job), ()

    def discard(self, job):
        self.kept.pop(job, None)

    def keep_only(self, jobs):
        self.kept = {job: kept for job, kept in self.kept.items() if job in jobs}

    def count_attempt(self, job, version):
        self.attempts[job, version] = self.attempts.get((job, version), 0) + 1
        return self.attempts[job, version]


class FakePool:
    """Nodes that a test lets join and leave; `answers` serves their requests by kind."""

    def __init__(self) -> None:
        self.records: dict[str, NodeRecord] = {}
        self.answers: dict[str, Callable[[str, dict, dict], Answer]] = {}
        self.asked: list[tuple[str, str, dict]] = []
        self._listeners: list[Callable[[NodeEvent], None]] = []
        self._notified: list[tuple[str, Callable[[str, dict], None]]] = []

    def create_token(self, node, *, trusted):
        self.records[node] = NodeRecord(
            node=node, trusted=bool(trusted), enrolled=False, alive=False, reason="has not enrolled yet"
        )
        return f"secret-of-{node}.{'0' * 64}"

    def join(self, node, **values):
        known = self.records.get(node)
        trusted = known.trusted if known else True
        self.records[node] = NodeRecord(
            **{
                "node": node,
                "trusted": trusted,
                "enrolled": True,
                "alive": True,
                "reason": None,
                "address": f"198.18.1.{len(self.records) + 1}",
                "port": 7001,
                "heartbeat_age_s": 0.1,
                "profile": {"compute_flops": 1e9, "layer_overhead_s": 0.001, "memory_bytes": 10**6},
                **values,
            }
        )
        self._tell("node_joined", node, "attached")

    def leave(self, node, reason="its connection ended"):
        self.records[node] = replace(self.records[node], alive=False, reason=reason)
        self._tell("node_lost", node, reason)

    def revoke(self, node):
        known = self.node(node)
        self.leave(node, "revoked by the operator")
        self.records[node] = replace(
            known, alive=False, enrolled=False, revoked=True, reason="revoked by the operator"
        )

    def nodes(self):
        return tuple(self.records[name] for name in sorted(self.records))

    def node(self, name):
        if name not in self.records:
            raise NotFound(f"node {name!r} is not known")
        return self.records[name]

    def request(self, node, channel, kind, fields, tensors=None, *, timeout_s, into=None):
        if node not in self.records or not self.records[node].alive:
            raise WorkerLost(f"node {node} is not attached")
        self.asked.append((node, kind, fields))
        got = self.answers[kind](node, fields, dict(tensors or {}))
        return got if into is None else poured(got, into)

    def notify(self, kind, node, fields):
        for wanted, listener in tuple(self._notified):
            if wanted == kind:
                listener(node, fields)

    def subscribe(self, listener):
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def on_notification(self, kind, listener):
        item = (kind, listener)
        self._notified.append(item)
        return lambda: self._notified.remove(item)

    def ready(self):
        return None

    def _tell(self, kind, node, reason):
        for listener in tuple(self._listeners):
            listener(NodeEvent(kind=kind, node=node, reason=reason, at=0.0))


def poured(answer, sink):
    """Give the answer's tensors to the sink, as a link does; answers it without them."""
    arrays = {name: np.ascontiguousarray(array) for name, array in answer.tensors.items()}
    specs = tuple(
        TensorSpec(name=name, dtype=array.dtype, shape=array.shape) for name, array in arrays.items()
    )
    body = b"".join(array.tobytes() for array in arrays.values())
    header = Header(kind="reply", fields=answer.fields, tensors=specs, id=None, reply_to=1)
    for piece in sink(header) if specs else ():
        piece[:], body = body[: len(piece)], body[len(piece) :]
    return replace(answer, tensors={})


class FakeNorthbound:
    """A network that a test sets."""

    def __init__(self, network: Network | None = None) -> None:
        self.value = network or Network(taken_at_s=0.0)

    def network(self):
        return self.value

    def topology(self):
        return {"switches": [], "hosts": [], "links": []}

    def status(self):
        return NorthboundStatus(reachable=True, age_s=0.5, reason=None, url="http://127.0.0.1:1")


class FakeJobs:
    """Accepts jobs and does nothing."""

    def __init__(self, store) -> None:
        self.store = store
        self.cancelled: list[str] = []

    def submit(self, request):
        number = self.store.records(kind="job", limit=1, offset=0)[1] + 1
        record = Record(
            id=f"job-{number}", kind="job", state="accepted", created_at=float(number),
            spec=request.model_dump(mode="json"),
        )  # fmt: skip
        self.store.add(record)
        return record

    def cancel(self, job):
        self.cancelled.append(job)
        return self.store.get(job)


class FakeGeneration:
    """A completion that says what it is told to."""

    def __init__(self, chunks) -> None:
        self.request = "cmpl-1"
        self.prompt_tokens = (3,) * (1 + max((chunk.get("choice", 0) for chunk in chunks), default=0))
        self.cancelled = False
        self._chunks = chunks

    def chunks(self) -> Iterator[dict]:
        yield from self._chunks

    def cancel(self):
        self.cancelled = True


class FakeDeployments:
    """Deployments without nodes."""

    def __init__(self, store) -> None:
        self.store = store
        self.names: list[str] = []
        self.generation: FakeGeneration | None = None
        self.asked: list = []
        self.migrated: list[str] = []

    def deploy(self, request):
        record = Record(
            id="dep-1", kind="deployment", state="accepted", created_at=1.0,
            spec=request.model_dump(mode="json"),
        )  # fmt: skip
        self.store.add(record)
        self.names.append(record.id)
        return record

    def undeploy(self, deployment):
        self.names.remove(deployment)
        return self.store.get(deployment)

    def live(self):
        return list(self.names)

    def describe(self, deployment):
        return {"state": "serving", "route_epoch": 1}

    def preview(self, deployment):
        return {"placement": None}

    def migrate(self, deployment):
        self.migrated.append(deployment)

    def models(self):
        return {name: [name] for name in self.names}

    def complete(self, model, asked):
        self.asked = list(asked)
        return self.generation

    def chat_prompt(self, deployment, messages):
        return "".join(f"<{message['role']}>{message['content']}" for message in messages)

    def tokens_generated(self):
        return 7
