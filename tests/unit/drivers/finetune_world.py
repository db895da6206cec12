"""Fine-tuning jobs on doubles: a tiny model, nodes that answer, and what a process leaves."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
from orchestrator_fakes import FakeNorthbound, FakePool, MemoryCheckpoints, MemoryStore

from orchestrator.clock import SystemClock
from orchestrator.errors import InvalidRequest, NotFound, WorkerRefused
from orchestrator.events import EventLog
from orchestrator.finetune.driver import FinetuneJobs
from orchestrator.finetune.request import JobRequest
from orchestrator.ports import Answer, Model, Ports
from workers.models.architecture import Architecture

NODES = ("h1", "h2", "h3", "h4")


TINY = Architecture(
    family="llama", document={}, vocabulary_size=256, layers=1, context_tokens=64, shapes={"w": (2,)},
    projections={},
)  # fmt: skip


class TinyModels:
    """A model of two numbers whose loss is their distance from 10."""

    def __init__(self):
        self.saved = {}

    def describe(self, name):
        if name != "tiny":
            raise NotFound(f"model {name!r} is no folder here")
        return TINY

    def check_data(self, data):
        if data != "found":
            raise InvalidRequest(f"data {data!r} is no file here", field="data")

    def resolve(self, name, *, progress):
        return Model(
            name=name, folder=Path("/x"), config={}, tokenizer_json="", parameter_bytes=8, digest="d",
            layers=1, context_tokens=64,
        )  # fmt: skip

    def parameters(self, _model):
        return {"w": np.zeros(2, dtype=np.float32)}

    def digest(self, parameters):
        return hashlib.sha256(np.ascontiguousarray(parameters["w"], dtype=np.float32).tobytes()).hexdigest()

    def tokens(self, _model, *, data, max_bytes, seed):
        return np.arange(4000, dtype=np.int32) % 256

    def loss(self, _model, parameters, tokens, *, sequence):
        return float(np.abs(10 - parameters["w"]).mean())

    def save(self, _model, parameters, *, job):
        self.saved[job] = parameters
        return Path("/models") / job


class Workers:
    """What the nodes answer; `deltas` and `samples` by node, `spoil` changes an answer."""

    def __init__(self, pool, models):
        self.models = models
        self.deltas = dict.fromkeys(NODES, 1.0)
        self.samples = dict.fromkeys(NODES, 8)
        self.spoil = {}
        self.held = {}
        self.data_digests = {}
        self.lock = threading.Lock()
        for kind in ("load", "data", "run", "update", "holding", "end"):
            pool.answers[f"train.{kind}"] = getattr(self, kind)

    def load(self, node, fields, tensors):
        return self._take(node, fields, tensors)

    def update(self, node, fields, tensors):
        return self._take(node, fields, tensors)

    def data(self, node, _fields, tensors):
        self.data_digests[node] = hashlib.sha256(tensors["tokens"].tobytes()).hexdigest()
        return self._answer({"tokens": len(tensors["tokens"])})

    def holding(self, node, fields, _tensors):
        if node not in self.data_digests or node not in self.held:
            raise WorkerRefused(f"job {fields['job']} is not loaded here", code="no-such-job")
        version, parameters = self.held[node]
        digest = self.models.digest({"w": parameters})
        return self._answer({"version": version, "digest": digest, "data_digest": self.data_digests[node]})

    def end(self, *_):
        return self._answer({})

    def run(self, node, fields, tensors):
        if tensors:
            self._take(node, fields, tensors)
        report = {
            "epoch": fields["epoch"],
            "version": fields["version"],
            "train_s": 0.5,
            "real_s": 0.1,
            "late_s": 0.0,
            "samples": self.samples[node],
            "tokens": 100,
            "loss": 1.0,
        }
        delta = {"w": np.full(2, self.deltas[node], dtype=np.float32)}
        if node in self.spoil:
            self.spoil[node](report, delta)
        return self._answer(report, delta)

    def _take(self, node, fields, tensors):
        with self.lock:
            self.held[node] = (fields["version"], tensors["w"].copy())
        return self._answer({"version": fields["version"], "digest": self.models.digest(tensors)})

    @staticmethod
    def _answer(fields, tensors=None):
        return Answer(fields=fields, tensors=tensors or {}, sent_bytes=100, received_bytes=10)


class World:
    def __init__(self):
        self.pool = FakePool()
        self.models = TinyModels()
        self.workers = Workers(self.pool, self.models)
        self.store = MemoryStore()
        self.events = EventLog(store=self.store, clock=SystemClock())
        self.checkpoints = MemoryCheckpoints()
        self._numbers = iter(range(1, 100))
        self.jobs = self.start_process()
        for node in NODES:
            self.pool.join(node)

    def start_process(self):
        """Make the jobs of a process that has just started, on the records that there are."""
        ports = Ports(
            pool=self.pool,
            northbound=FakeNorthbound(),
            store=self.store,
            models=self.models,
            events=self.events,
            clock=SystemClock(),
            ids=lambda kind: f"{kind}-{next(self._numbers)}",
        )
        return FinetuneJobs(ports, seed=1, checkpoints=self.checkpoints)

    def run(self, **values):
        return self.finish(self.submit(**values).id)

    def submit(self, **values):
        training = {"sequence_length": 16}
        request = {"model": "tiny", "policy": "all", "epochs": 2, "training": training, **values}
        return self.jobs.submit(JobRequest(**request))

    def finish(self, job, timeout_s=10.0):
        stop = threading.Timer(timeout_s, self.events.close)
        stop.start()
        for _ in self.events.follow(job, quiet_s=0.05):
            if self.store.get(job).ended_at is not None:
                break
        stop.cancel()
        record = self.store.get(job)
        assert record.ended_at is not None, f"{job} is still {record.state}"
        return record

    def entries(self, job, type):
        return [entry.body for entry in self.store.entries(job, type=type, limit=999)[0]]
