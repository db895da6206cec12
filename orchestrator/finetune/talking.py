"""Carry out the engine's requests to nodes, each in a thread of a pool; what comes of them become events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from orchestrator.errors import WorkerError, WorkerLost
from orchestrator.finetune import messages as m
from orchestrator.finetune.calls import NodeCalls, Received
from orchestrator.finetune.parameters import Parameters

log = logging.getLogger(__name__)


class Put(Protocol):
    """Give the engine an event that happened now."""

    def __call__(self, kind: type[m.Event], **values: Any) -> None: ...


class Talking:
    """Holds each update that came until it is taken; thread-safe."""

    def __init__(self, *, job: str, calls: NodeCalls, executor: ThreadPoolExecutor, put: Put) -> None:
        self._job = job
        self._calls = calls
        self._executor = executor
        self._put = put
        self._held: dict[tuple[str, int], Received] = {}
        self._held_lock = threading.Lock()

    def load(self, instruction: m.LoadNode, parameters: Parameters) -> None:
        """Send a node the model and, if asked, its data."""
        node, version = instruction.node, instruction.version

        def act() -> None:
            self._calls.load(node, version, parameters, data=instruction.data)
            self._put(m.NodeLoaded, node=node, version=version)

        self._ask(node, "load", act)

    def round(self, instruction: m.StartRound, parameters: Parameters) -> None:
        """Have a node train an epoch."""
        self._ask(instruction.node, "round", lambda: self._train(instruction, parameters))

    def sync(self, instruction: m.SyncNode, parameters: Parameters) -> None:
        """Send a node newer parameters."""
        node, version = instruction.node, instruction.version

        def act() -> None:
            self._calls.sync(node, version, parameters)
            self._put(m.NodeSynced, node=node, version=version)

        self._ask(node, "sync", act)

    def take(self, node: str, epoch: int) -> Received | None:
        """Give the update of a node in an epoch, once."""
        with self._held_lock:
            return self._held.pop((node, epoch), None)

    def give_up(self) -> None:
        """Let go of the updates that are held."""
        with self._held_lock:
            held, self._held = self._held, {}
        for update in held.values():
            update.close()

    def _ask(self, node: str, request: str, act: Callable[[], None]) -> None:
        """Have `act` talk to the node in a thread of its own; what goes wrong becomes an event."""

        def talk() -> None:
            try:
                act()
            except WorkerLost as error:
                self._put(m.NodeLost, node=node, reason=str(error))
            except WorkerError as error:
                self._put(m.RequestFailed, node=node, request=request, reason=str(error))
            except Exception as error:
                log.exception("job %s: %s of node %s failed", self._job, request, node)
                reason = f"{type(error).__name__}: {error}"
                self._put(m.RequestFailed, node=node, request=request, reason=reason)

        self._executor.submit(talk)

    def _train(self, instruction: m.StartRound, parameters: Parameters) -> None:
        node, epoch = instruction.node, instruction.epoch
        answer = self._calls.round(node, epoch, instruction.version, parameters)
        if answer.update is None:
            self._put(
                m.UpdateArrived,
                node=node,
                epoch=epoch,
                valid=False,
                reason=answer.fault,
                round_s=answer.round_s,
            )
            return
        with self._held_lock:
            earlier = self._held.pop((node, epoch), None)
            self._held[node, epoch] = answer.update
        if earlier is not None:  # the node was asked twice; what is held on to keeps its room
            earlier.close()
        report = answer.report
        self._put(
            m.UpdateArrived,
            node=node,
            epoch=epoch,
            train_s=float(report["train_s"]),
            round_s=answer.round_s,
            real_s=float(report["real_s"]),
            late_s=float(report["late_s"]),
            samples=int(report["samples"]),
            loss=float(report["loss"]),
        )
