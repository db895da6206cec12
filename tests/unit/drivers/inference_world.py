"""Split deployments on doubles: a small model, four nodes that answer, and what they were asked."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from orchestrator_fakes import FakeNorthbound, FakePool, MemoryStore

from orchestrator.clock import SystemClock
from orchestrator.core.model import Measurement, PathMetrics, network
from orchestrator.core.partition import transformer_graph
from orchestrator.errors import (
    WorkerRefused,
)
from orchestrator.events import EventLog
from orchestrator.inference.asking import Asked
from orchestrator.inference.driver import SplitDeployments
from orchestrator.inference.request import DeploymentRequest
from orchestrator.ports import Answer, Model, Ports
from workers.models.config import parse_config

NODES = ("h1", "h2", "h3", "h4")


CONFIG = parse_config({
    "model_type": "llama", "vocab_size": 5, "hidden_size": 2, "intermediate_size": 4, "num_hidden_layers": 4,
    "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 2, "max_position_embeddings": 64,
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "eos_token_id": 4,
})  # fmt: skip


class FourLayers:
    """A model of four layers of 400 bytes, whose head takes 40."""

    def __init__(self):
        self.checked = CONFIG

    def check_split(self, _name):
        return self.checked

    def resolve(self, name, *, progress=None):
        return Model(
            name=name, folder=Path("/x"), config={"hidden_size": 4}, tokenizer_json="{}",
            parameter_bytes=1640, digest="d1", layers=4, context_tokens=64,
        )  # fmt: skip

    def graph(self, model, *, wire):
        return transformer_graph(
            name=model.name, digest="d1", layer_parameters=(100,) * 4, head_parameters=10,
            vocabulary=5, hidden=2, kv_width=2,
        )  # fmt: skip

    def shard(self, _model, *, first_layer, end_layer, head):
        layers = {f"layer.{n}": np.zeros(100, dtype=np.float32) for n in range(first_layer, end_layer)}
        return layers | ({"head": np.zeros(10, dtype=np.float32)} if head else {})


def measured(value):
    return Measurement(value=value, samples=9, age_s=0.1, source="probe")


def path(src, dst):
    return PathMetrics(
        src=src, dst=dst, delay_s=measured(0.01), loss_ratio=measured(0.0),
        capacity_bps=measured(1e8), available_bps=measured(1e8),
    )  # fmt: skip


class World:
    def __init__(self):
        self.pool = FakePool()
        self.store = MemoryStore()
        self.events = EventLog(store=self.store, clock=SystemClock())
        self.prepared = []
        self.refusals = {}
        self.lock = threading.Lock()
        everyone = ("orch", *NODES)
        numbers = iter(range(1, 1000))
        for kind in ("commit", "abort", "retire"):
            self.pool.answers[f"shard.{kind}"] = lambda _node, fields, _t: self.answer(
                {"epoch": fields["epoch"]}
            )
        self.pool.answers["shard.prepare"] = self.prepare
        self.pool.answers["probe.layer"] = lambda *_: self.answer(
            {"decode_s": 0.001, "prefill_s_per_token": 0.0005}
        )
        self.pool.answers["generate"] = self.generate
        self.pool.answers["cancel"] = lambda *_: self.answer({})
        self.models = FourLayers()
        self.network = network(0.0, [path(a, b) for a in everyone for b in everyone if a != b])
        self.ids = lambda kind: f"{kind}-{next(numbers)}"
        self.deployments = self.start_process()
        for node in NODES:
            self.pool.join(node, trusted=node == "h1", profile={
                "compute_flops": 1e9, "layer_overhead_s": 0.0, "memory_bytes": 1500,
            })  # fmt: skip

    def start_process(self):
        return SplitDeployments(
            Ports(
                pool=self.pool,
                northbound=FakeNorthbound(self.network),
                store=self.store,
                models=self.models,
                events=self.events,
                clock=SystemClock(),
                ids=self.ids,
            )
        )

    def prepare(self, node, fields, tensors):
        with self.lock:
            self.prepared.append((node, fields, sorted(tensors)))
        if node in self.refusals:
            raise self.refusals[node]
        return self.answer({"ready": True, "digest": "x", "memory_bytes": 500})

    def generate(self, _node, fields, _tensors):
        if len(fields["prompt"]) > 20:
            raise WorkerRefused("node h1 refused generate: exceeds the context", code="context-exceeded")
        return self.answer({"prompt_tokens": len(fields["prompt"])})

    @staticmethod
    def answer(fields):
        return Answer(fields=fields, tensors={}, sent_bytes=0, received_bytes=0)

    def deploy(self, **values):
        request = {"model": "m", "min_nodes": 3, "context_tokens": 16, "monitor_interval_s": 0.1, **values}
        record = self.deployments.deploy(DeploymentRequest(**request))
        return self.wait(record.id, ("serving", "failed"))

    def wait(self, deployment, states, epoch=1, timeout_s=10.0):
        stop = threading.Timer(timeout_s, self.events.close)
        stop.start()
        try:
            for entry in self.events.follow(deployment, quiet_s=0.05):
                if entry is None or entry.type != "state" or entry.body["state"] not in states:
                    continue
                if entry.body["state"] in ("failed", "retired") or (entry.body["route_epoch"] or 0) >= epoch:
                    return deployment, entry.body
        finally:
            stop.cancel()
        raise AssertionError(f"{deployment} is {self.store.get(deployment).state}")

    def complete(self, deployment, *prompts, prompt="abc"):
        asked = [Asked(prompt=each, max_tokens=2) for each in prompts or (prompt,)]
        return self.deployments.complete(deployment, asked)

    def token(self, deployment, request, index=0, **more):
        told = {
            "request": request, "index": index, "token": 7, "text": "a",
            "epoch": 1, "elapsed_s": 0.01, "replayed": 0, "margin": 1.0, **more,
        }  # fmt: skip
        self.pool.notify("tokens", "h1", {"deployment": deployment, "tokens": [told]})
