"""Our arm: a real fine-tuning job on 12 real agents, whose trainer answers at once.

`python -m benchmarks.round_overhead.ours WORKERS {plain,tls} [--quick]`, driven as `peers/commands.py` says.
The server is this process: worker pool, links, engine, aggregation, event log and store as in the product.
A round is everything from the network's picture (which this arm holds back until told) to the next one:
choosing, sending, receiving, checking, adding up, the new version, the records.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
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
from orchestrator.ports import Model, Ports
from workers import agent, fields
from workers.config import WorkerConfig
from workers.device import DeviceProfile, Pacer
from workers.errors import WorkersError
from workers.models.architecture import Architecture, architecture
from workers.models.loader import digest
from workers.wire.frames import Frame
from workers.wire.link import Reply

_ADDRESS = "127.0.0.1"
_ATTACH_TIMEOUT_S = 60.0
_ROUND_TIMEOUT_S = 100.0
"""Less than what drives this arm waits, so that it is told why."""
_LOOK_S = 5.0
_EPOCHS = 10_000
_WARM_UP_EPOCHS = 3
_SMALL_PARAMETERS = model.size_bytes(quick=True) // 4


class NoTraining:
    """A worker's trainer that takes everything and answers an update that it has ready."""

    def __init__(self, updates: Mapping[bool, Mapping[str, Any]]) -> None:
        """`updates`: of the small model (False) and the large (True)."""
        self._updates = updates
        self._version = -1
        self._large = False

    def handle(self, frame: Frame) -> Reply:
        """Serve `train.*` as docs/wire_protocol.md says, but train nothing."""
        if frame.kind in ("train.load", "train.update"):
            self._version = fields.integer(frame.fields, "version")
            self._large = sum(tensor.size for tensor in frame.tensors.values()) > _SMALL_PARAMETERS
            held = {name: torch.from_numpy(tensor) for name, tensor in frame.tensors.items()}
            return Reply({"version": self._version, "digest": digest(held)})
        if frame.kind == "train.data":
            return Reply({"tokens": len(frame.tensors["tokens"])})
        if frame.kind == "train.run":
            if frame.tensors:
                self._version = fields.integer(frame.fields, "version")
            return Reply(self._report(frame), self._updates[self._large])
        return Reply()

    def close(self) -> None:
        """Nothing runs."""

    def _report(self, frame: Frame) -> dict[str, Any]:
        report = {"epoch": frame.fields["epoch"], "version": self._version, "samples": 32, "tokens": 2048}
        return {**report, "train_s": 0.0, "real_s": 0.0, "late_s": 0.0, "loss": 1.0}


class Models:
    """The models of the benchmark, `small` and `large`; evaluating costs nothing here."""

    def describe(self, name: str) -> Architecture:
        """Describe the model; every name is good."""
        return architecture(model.config(quick=name == "small"))

    def check_data(self, data: str) -> None:
        """Every text is good."""

    def resolve(self, name: str, *, progress: Callable[[float, str], None]) -> Model:
        """Give the model."""
        quick = name == "small"
        return Model(
            name=name, folder=Path(), config=model.config(quick=quick), tokenizer_json="",
            parameter_bytes=model.size_bytes(quick=quick), digest="", layers=1, context_tokens=64,
        )  # fmt: skip

    def parameters(self, wanted: Model) -> model.Arrays:
        """Draw version 0."""
        return model.arrays(quick=wanted.name == "small", seed=0, scale=0.02)

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


class NoCheckpoints:
    """Keeps nothing: peers keep nothing either, and a disk is not what is measured."""

    def save(self, _checkpoint: object) -> int:
        """Write no byte."""
        return 0

    def load(self, _job: str) -> tuple[None, tuple[str, ...]]:
        """Nothing was kept."""
        return None, ()

    def discard(self, _job: str) -> None:
        """Nothing was kept."""

    def keep_only(self, _jobs: object) -> None:
        """Nothing was kept."""

    def count_attempt(self, _job: str, _version: int) -> int:
        """Nothing is resumed."""
        return 1


class Gate:
    """A northbound that gives its picture of the network, which ends a round, when the next is to begin.

    `why_ended` says why no round will come any more, None as long as one will.
    """

    def __init__(self, why_ended: Callable[[], str | None]) -> None:
        self._why_ended = why_ended
        self._arrived: queue.Queue[None] = queue.Queue()
        self._go: queue.Queue[None] = queue.Queue()
        self.closed = False

    def network(self) -> Network:
        """Wait for the word, if the gate is closed."""
        if self.closed:
            self._arrived.put(None)
            self._go.get()
        return Network(taken_at_s=0.0)

    def wait(self) -> None:
        """Wait for the end of the round in progress.

        Raises:
            RuntimeError: it does not come.
        """
        deadline_s = time.monotonic() + _ROUND_TIMEOUT_S
        while True:
            try:
                self._arrived.get(timeout=_LOOK_S)
                return
            except queue.Empty:
                pass
            if (reason := self._why_ended()) is not None:
                raise RuntimeError(f"the job has ended: {reason}")
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the round did not end within {_ROUND_TIMEOUT_S:g} s")

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
    code = 1
    with tempfile.TemporaryDirectory() as folder:
        workers: list[int] = []
        try:
            _serve(options, Path(folder), answer, workers)
            code = 0
        except Exception:  # noqa: BLE001 - whatever it was is told, and the process must end with its threads
            traceback.print_exc()
        for worker in workers:  # before the folder goes that holds their certificates
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
    os._exit(code)  # the pool's and the job's threads are not waited for


def _serve(
    options: argparse.Namespace,
    folder: Path,
    answer: Callable[[dict[str, Any]], None],
    workers: list[int],
) -> None:
    """Serve rounds until the input ends; `workers` gets the processes that were forked."""
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
        workers.append(os.fork())
        if workers[-1] == 0:
            _be_worker(node, listening, tokens[node], folder, options)
    pool = LiveWorkerPool(authority=authority, clock=SystemClock())
    pool.start(listening)
    _wait_attached(pool, nodes)
    store = SqlStore(f"sqlite:///{folder / 'records.sqlite3'}")
    running: list[str] = []
    gate = Gate(lambda: _why_ended(store, running))
    jobs = _jobs(pool, gate, store)
    # A small job first: what code, threads and connections take is there before the model is.
    first = jobs.submit(_request("small", epochs=_WARM_UP_EPOCHS)).id
    _wait_ended(store, first)
    gate.closed = True
    idle_bytes = commands.memory_bytes("VmRSS")
    running.append(jobs.submit(_request("small" if options.quick else "large", epochs=_EPOCHS)).id)
    gate.wait()
    commands.serve(gate.one_round, lambda document: answer({**document, "server_idle_bytes": idle_bytes}))
    pool.stop()


def _request(name: str, *, epochs: int) -> JobRequest:
    training = {"sequence_length": 16}
    return JobRequest(model=name, policy="all", epochs=epochs, training=training, data_bytes=80_000)


def _why_ended(store: SqlStore, running: Sequence[str]) -> str | None:
    """Say how the job in progress ended, None if there is none or it goes on."""
    for record in map(store.get, running):
        if record.ended_at is not None:
            return f"{record.state}, {record.reason or 'without a reason'}"
    return None


def _wait_ended(store: SqlStore, job: str) -> None:
    deadline_s = time.monotonic() + _ROUND_TIMEOUT_S
    while store.get(job).ended_at is None:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the small job did not end within {_ROUND_TIMEOUT_S:g} s")
        time.sleep(0.01)


def _jobs(pool: LiveWorkerPool, gate: Any, store: SqlStore) -> FinetuneJobs:
    clock, numbers = SystemClock(), itertools.count(1)
    ports = Ports(
        pool=pool,
        northbound=gate,
        store=store,
        models=Models(),  # type: ignore[arg-type]
        events=EventLog(store=store, clock=clock),
        clock=clock,
        ids=lambda kind: f"{kind}-{next(numbers)}",
    )
    return FinetuneJobs(ports, seed=1, checkpoints=NoCheckpoints())


def _wait_attached(pool: LiveWorkerPool, nodes: Collection[str]) -> None:
    changed = threading.Event()
    stop = pool.subscribe(lambda _event: changed.set())
    deadline_s = time.monotonic() + _ATTACH_TIMEOUT_S
    while missing := sorted(set(nodes) - {record.node for record in pool.nodes() if record.alive}):
        if not changed.wait(max(0.0, deadline_s - time.monotonic())):
            raise TimeoutError(f"{', '.join(missing)} did not attach within {_ATTACH_TIMEOUT_S:g} s")
        changed.clear()
    stop()


def _be_worker(
    node: str, listening: socket.socket, token: str | None, folder: Path, options: argparse.Namespace
) -> None:
    port = listening.getsockname()[1]
    listening.close()
    config = WorkerConfig(
        node=node,
        orchestrator=(_ADDRESS, port),
        listen=(_ADDRESS, 0),
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
    seed = int(node[1:])
    updates = {False: model.arrays(quick=True, seed=seed)}
    if not options.quick:
        updates[True] = model.arrays(quick=False, seed=seed)

    def make_trainer(_pacer: Pacer, _local_data: Path | None) -> NoTraining:
        return NoTraining(updates)

    try:
        plain = options.link == "plain"  # says its name instead of showing a certificate
        obtain = (lambda: PlainIdentity(node)) if plain else None
        agent.Agent(config, profile, make_trainer=make_trainer, obtain_identity=obtain).run()
    except WorkersError as error:
        print(f"{node}: {error}", file=sys.stderr, flush=True)
    except Exception:  # noqa: BLE001 - a forked process must not go on with its parent's work
        traceback.print_exc()
    os._exit(0)


if __name__ == "__main__":
    main()
