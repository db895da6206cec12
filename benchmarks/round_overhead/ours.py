"""Our arm: a real fine-tuning job on 12 real agents, whose trainer answers at once.

`python -m benchmarks.round_overhead.ours WORKERS {plain,tls} [--quick]`, driven as `peers/commands.py` says.
The server is this process: worker pool, links, engine, aggregation, event log and store as in the product.
A round is everything from the network's picture (which this arm holds back until told) to the next one:
choosing, sending, receiving, checking, adding up, the new version, the records.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import gc
import os
import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.round_overhead import model
from benchmarks.round_overhead.peers import commands
from benchmarks.round_overhead.plain import PlainAuthority, PlainIdentity
from orchestrator.adapters.certificates import Authority
from orchestrator.adapters.store import SqlStore
from orchestrator.adapters.worker_pool import LiveWorkerPool
from orchestrator.clock import SystemClock
from orchestrator.core.model import Network
from orchestrator.events import EventLog
from orchestrator.finetune.driver import FinetuneJobs
from orchestrator.finetune.request import JobRequest
from orchestrator.ports import Model
from workers import agent, fields
from workers.config import WorkerConfig
from workers.device import DeviceProfile, Pacer
from workers.link import Reply
from workers.models.loader import digest
from workers.wire import Frame

_ADDRESS = "127.0.0.1"
_ATTACH_TIMEOUT_S = 60.0
_ROUND_TIMEOUT_S = 120.0
_EPOCHS = 10_000


class NoTraining:
    """A worker's trainer that takes everything and answers an update that it has ready."""

    def __init__(self, update: Mapping[str, Any]) -> None:
        self._update = update
        self._version = -1

    def handle(self, frame: Frame) -> Reply:
        """Serve `train.*` as docs/wire_protocol.md says, but train nothing."""
        if frame.kind in ("train.load", "train.update"):
            self._version = fields.integer(frame.fields, "version")
            held = {name: torch.from_numpy(tensor) for name, tensor in frame.tensors.items()}
            return Reply({"version": self._version, "digest": digest(held)})
        if frame.kind == "train.data":
            return Reply({"tokens": len(frame.tensors["tokens"])})
        if frame.kind == "train.run":
            if frame.tensors:
                self._version = fields.integer(frame.fields, "version")
            return Reply(self._report(frame), self._update)
        return Reply()

    def close(self) -> None:
        """Nothing runs."""

    def _report(self, frame: Frame) -> dict[str, Any]:
        report = {"epoch": frame.fields["epoch"], "version": self._version, "samples": 32, "tokens": 2048}
        return {**report, "train_s": 0.0, "real_s": 0.0, "late_s": 0.0, "loss": 1.0}


class PlainAgent(agent.Agent):
    """An agent that says its name instead of showing a certificate."""

    def _obtain_identity(self) -> Any:
        return PlainIdentity(self._config.node)


class Models:
    """The model of the benchmark; evaluating costs nothing here."""

    def __init__(self, *, quick: bool) -> None:
        self._quick = quick

    def check(self, name: str) -> None:
        """Every name is good."""

    def check_data(self, data: str) -> None:
        """Every text is good."""

    def resolve(self, name: str, *, progress: Callable[[float, str], None]) -> Model:
        """Give the model."""
        return Model(
            name=name, folder=Path(), config=model.config(quick=self._quick), tokenizer_json="",
            parameter_bytes=model.size_bytes(quick=self._quick), digest="", layers=1, context_tokens=64,
        )  # fmt: skip

    def parameters(self, _model: Model) -> model.Arrays:
        """Draw version 0."""
        return model.arrays(quick=self._quick, seed=0, scale=0.02)

    def digest(self, parameters: Mapping[str, Any]) -> str:
        """Compute the digest as workers do."""
        return digest({name: torch.from_numpy(array) for name, array in parameters.items()})

    def tokens(self, _model: Model, **_: object) -> Any:
        """Give a text just long enough to be cut up."""
        return np.arange(20_000, dtype=np.int32) % 256

    def loss(self, *_: object, **__: object) -> float:
        """Evaluate nothing."""
        return 1.0

    def save(self, _model: Model, _parameters: object, *, job: str) -> Path:
        """Save nothing."""
        return Path()


class Gate:
    """A northbound that gives its picture of the network, which ends a round, when the next is to begin."""

    def __init__(self) -> None:
        self._arrived: queue.Queue[None] = queue.Queue()
        self._go: queue.Queue[None] = queue.Queue()

    def network(self) -> Network:
        """Wait for the word."""
        self._arrived.put(None)
        self._go.get()
        return Network(taken_at_s=0.0)

    def wait(self) -> None:
        """Wait for the end of the round in progress."""
        self._arrived.get(timeout=_ROUND_TIMEOUT_S)

    def one_round(self) -> None:
        """Let the next round begin and wait for its end."""
        self._go.put(None)
        self.wait()


def main() -> None:
    """Fork the workers, attach them, start the job, serve rounds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workers", type=int)
    parser.add_argument("link", choices=("plain", "tls"))
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    answer = commands.take_answers_apart()
    with tempfile.TemporaryDirectory() as folder:
        _serve(options, Path(folder), answer)
    os._exit(0)


def _serve(options: argparse.Namespace, folder: Path, answer: Callable[[dict[str, Any]], None]) -> None:
    nodes = tuple(f"h{number + 1}" for number in range(options.workers))
    listening = socket.create_server((_ADDRESS, 0), backlog=256)
    authority: Any = PlainAuthority(nodes)
    tokens = dict.fromkeys(nodes)
    if options.link == "tls":
        authority = Authority(folder, address=_ADDRESS, now=lambda: datetime.datetime.now(datetime.UTC))
        tokens = {node: authority.create_token(node, trusted=True) for node in nodes}
    gc.collect()
    gc.freeze()  # or the first collection in each child copies what is shared
    for node in nodes:
        if os.fork() == 0:
            _be_worker(node, listening, tokens[node], folder, options)
    pool = LiveWorkerPool(authority=authority, clock=SystemClock())
    pool.start(listening)
    _wait_attached(pool, len(nodes))
    gate = Gate()
    jobs = _jobs(pool, gate, folder, quick=options.quick)
    idle_bytes = commands.memory_bytes("VmRSS")
    training = {"sequence_length": 16}
    jobs.submit(
        JobRequest(model="benchmark", policy="all", epochs=_EPOCHS, training=training, data_bytes=80_000)
    )
    gate.wait()
    commands.serve(gate.one_round, lambda document: answer({**document, "server_idle_bytes": idle_bytes}))
    pool.stop()


def _jobs(pool: LiveWorkerPool, gate: Any, folder: Path, *, quick: bool) -> FinetuneJobs:
    clock = SystemClock()
    store = SqlStore(f"sqlite:///{folder / 'records.sqlite3'}")
    return FinetuneJobs(
        pool=pool,
        northbound=gate,
        store=store,
        models=Models(quick=quick),  # type: ignore[arg-type]
        events=EventLog(store=store, clock=clock),
        clock=clock,
        ids=lambda kind: f"{kind}-1",
        seed=1,
    )


def _wait_attached(pool: LiveWorkerPool, count: int) -> None:
    joined = threading.Semaphore(0)
    stop = pool.subscribe(lambda event: joined.release() if event.kind == "node_joined" else None)
    already = sum(record.alive for record in pool.nodes())
    for _ in range(count - already):
        if not joined.acquire(timeout=_ATTACH_TIMEOUT_S):
            raise TimeoutError(f"not all of {count} workers attached within {_ATTACH_TIMEOUT_S:g} s")
    stop()


def _be_worker(
    node: str, listening: socket.socket, token: str | None, folder: Path, options: argparse.Namespace
) -> None:
    port = listening.getsockname()[1]
    listening.close()
    config = WorkerConfig(
        node=node,
        orchestrator=(_ADDRESS, port),
        listen=(_ADDRESS, _free_port()),
        state_dir=folder / node,
        token=token,
        compute_flops=1e9,
        memory_bytes=1 << 30,
        give_up_after_s=10.0,
    )
    profile = DeviceProfile(
        device="cpu", cpu_count=1, memory_bytes=1 << 30, compute_flops=1e9, layer_overhead_s=0.0,
        power=None, emulated=False, pacing=False, torch=torch.__version__, pid=os.getpid(),
    )  # fmt: skip
    update = model.arrays(quick=options.quick, seed=int(node[1:]))

    def make_trainer(_pacer: Pacer) -> NoTraining:
        return NoTraining(update)

    with contextlib.suppress(Exception):  # the server ends, and with it the worker
        kind = PlainAgent if options.link == "plain" else agent.Agent
        kind(config, profile, make_trainer=make_trainer).run()
    os._exit(0)


def _free_port() -> int:
    with socket.create_server((_ADDRESS, 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
