"""A node's part in split inference: holds shards of models and serves them, epoch by epoch.

Serves `shard.*`, `generate`, `cancel` and `probe.layer` of the orchestrator, and the frames of other
nodes (docs/wire_protocol.md). Loading is done in the thread that asks; everything that computes is done
in the one compute thread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from workers import fields
from workers.assignment import Assignment
from workers.compute import ComputeThread
from workers.device import Pacer
from workers.errors import LinkError, ModelError, RequestRefused, WireError
from workers.head import Generation, Head
from workers.kv_cache import CacheError, MemoryBudget, SequenceReserve, cache_bytes
from workers.layer_store import HEAD, LayerStore, Parameters
from workers.link import Reply
from workers.models.config import F32_BYTES, parse_config
from workers.models.loader import digest
from workers.models.tokenizer import TextStream
from workers.peers import Dial, PeerLink, PeerLinks
from workers.probe import probe_layer
from workers.stage import Stage
from workers.wire import Frame

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 60.0
_LONGEST_PROMPT = 8 << 20
_LONGEST_DETAIL = 2_000


class Deployment:
    """The epochs of one deployment that this node holds. Its maps are guarded by the host's lock."""

    def __init__(self, name: str, reserve: SequenceReserve, head: Head) -> None:
        self.name = name
        self.stages: dict[int, Stage] = {}
        self.committed: int | None = None
        self.reserve = reserve
        self.head = head


class ShardHost:
    """All deployments on one node; `handle` and `on_peer_frame` may be called from several threads.

    `dial(node, address, port)` opens a channel to another worker; `notify(kind, fields)` tells the
    orchestrator, and must not wait.
    """

    def __init__(
        self,
        node: str,
        pacer: Pacer,
        memory_bytes: int,
        dial: Dial,
        notify: Callable[[str, Mapping[str, Any]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._node = node
        self._pacer = pacer
        self._notify = notify
        self._clock = clock
        self._budget = MemoryBudget(memory_bytes)
        self._store = LayerStore(self._budget)
        self._links = PeerLinks(dial)
        self._deployments: dict[str, Deployment] = {}
        self._lock = threading.Lock()
        self._preparing = threading.Lock()
        self._ending = threading.Event()
        self._compute = ComputeThread(f"compute {node}", on_idle=self._tell_overdue)
        self._commands: dict[str, Callable[[Mapping[str, Any]], Reply]] = {
            "shard.holding": self._holding,
            "shard.commit": self._commit,
            "shard.abort": self._abort,
            "shard.retire": self._retire,
            "generate": self._generate,
            "cancel": self._cancel,
            "probe.layer": self._probe,
        }

    def handle(self, frame: Frame) -> Reply:
        """Serve one request of the orchestrator.

        Raises:
            RequestRefused: it cannot be served; `code` and `detail` say why. Nothing has changed then.
        """
        command = self._commands.get(frame.kind)
        try:
            if frame.kind == "shard.prepare":
                return self._prepare(frame)
            if command is None:
                raise RequestRefused("not-served", f"a shard host does not know {frame.kind!r}")
            return command(frame.fields)
        except CacheError as error:
            raise RequestRefused(error.code, str(error)) from error
        except ModelError as error:
            raise RequestRefused("bad-model", str(error)) from error
        except LinkError as error:
            raise RequestRefused("unreachable", f"the next node: {error}") from error

    def on_peer_frame(self, peer_name: str, frame: Frame) -> None:
        """Check and queue an `activation` or `release` of another node; never waits.

        What belongs to an epoch that is not held (any more) is dropped.

        Raises:
            WireError: the sender broke the protocol; its connection is to be closed.
        """
        try:
            stage, request = self._addressed(peer_name, frame)
            if stage is None:
                logger.debug(
                    "%s of %s for an epoch that is not held: %s", frame.kind, peer_name, frame.fields
                )
            elif frame.kind == "activation":
                self._take_activation(stage, request, frame)
            elif frame.kind == "release":
                failure = _failure(frame.fields)
                self._compute.submit(lambda: self._release(stage, request, failure))
            else:
                raise WireError(f"{frame.kind!r} of {peer_name} is not taken here")
        except RequestRefused as error:
            raise WireError(f"{frame.kind} of {peer_name}: {error}") from error

    def holdings(self) -> list[str]:
        """Describe what is held, for the heartbeat: `deployment/epoch:first-end` and `+head`."""
        with self._lock:
            held = [
                stage.assignment for entry in self._deployments.values() for stage in entry.stages.values()
            ]
        return [
            f"{one.deployment}/{one.epoch}:{one.first_layer}-{one.end_layer}{'+head' if one.head else ''}"
            for one in held
        ]

    def close(self) -> None:
        """End everything; running generations end without a word."""
        self._ending.set()
        self._compute.close()
        self._links.close()

    # Commands

    def _prepare(self, frame: Frame) -> Reply:
        assignment = Assignment.parse(frame.fields, node=self._node)
        sent = fields.parameters(frame.tensors)
        with ExitStack() as undo:
            link = self._links.acquire(assignment.next) if assignment.next else None
            if link:
                undo.callback(self._links.release, link)
            with self._preparing:  # one at a time: two could count on the same memory
                shard_digest = self._hold(assignment, sent, link, undo)
            undo.pop_all()
        size_bytes = _parameter_bytes(assignment) + _cache_bytes(assignment)
        logger.info(
            "%s epoch %d: layers [%d, %d) ready, %d bytes",
            assignment.deployment,
            assignment.epoch,
            assignment.first_layer,
            assignment.end_layer,
            size_bytes,
        )
        return Reply({"ready": True, "digest": shard_digest, "memory_bytes": size_bytes})

    def _hold(self, assignment: Assignment, sent: Parameters, link: PeerLink | None, undo: ExitStack) -> str:
        """Take parameters and memory for an epoch and enter it; return the shard's digest."""
        deployment = self._deployment_for(assignment)
        units = _units(assignment)
        parameters = self._store.acquire(
            assignment.model, assignment.config, units, sent, reuse=assignment.reuse
        )
        undo.callback(self._store.release, assignment.model, units)
        shard_digest = _verified_digest(assignment, parameters)
        self._set_aside(deployment, [assignment])
        undo.callback(self._set_aside, deployment)
        stage = Stage(
            assignment,
            parameters,
            link=link,
            pacer=self._pacer,
            budget=deployment.reserve,
            ending=self._ending,
        )
        with self._lock:
            self._deployments[assignment.deployment] = deployment
            deployment.stages[assignment.epoch] = stage
        return shard_digest

    def _holding(self, message: Mapping[str, Any]) -> Reply:
        layers, head = self._store.held(fields.text(message, "model"))
        return Reply({"layers": layers, "head": head})

    def _commit(self, message: Mapping[str, Any]) -> Reply:
        epoch = fields.integer(message, "epoch")
        with self._lock:
            deployment = self._deployment(message)
            stage = deployment.stages.get(epoch)
            if deployment.committed is not None and epoch < deployment.committed:
                raise RequestRefused("stale-epoch", f"epoch {deployment.committed} is committed, not {epoch}")
            if stage is None:
                raise RequestRefused("no-such-epoch", f"epoch {epoch} is not prepared here")
            already = deployment.committed == epoch
            deployment.committed = epoch
        if stage.assignment.head and not already:
            self._compute.call(lambda: deployment.head.switch(stage), COMMAND_TIMEOUT_S)
        return Reply({"epoch": epoch})

    def _abort(self, message: Mapping[str, Any]) -> Reply:
        epoch = fields.integer(message, "epoch")
        with self._lock:
            deployment = self._deployments.get(fields.text(message, "deployment"))
            if deployment is None or epoch not in deployment.stages:
                return Reply()
            if deployment.committed is not None and epoch <= deployment.committed:
                raise RequestRefused("committed", f"epoch {epoch} is committed; retire it instead")
            stages = [deployment.stages.pop(epoch)]
        self._drop(deployment, stages)
        return Reply()

    def _retire(self, message: Mapping[str, Any]) -> Reply:
        epoch = fields.integer(message, "epoch")
        with self._lock:
            deployment = self._deployments.get(fields.text(message, "deployment"))
            if deployment is None:
                return Reply()
            stages = [deployment.stages.pop(held) for held in sorted(deployment.stages) if held <= epoch]
            if deployment.committed is not None and deployment.committed <= epoch:
                deployment.committed = None
        self._compute.call(lambda: deployment.head.retire(epoch), COMMAND_TIMEOUT_S)
        self._drop(deployment, stages)
        return Reply()

    def _generate(self, message: Mapping[str, Any]) -> Reply:
        with self._lock:
            deployment = self._deployment(message)
            stage = None if deployment.committed is None else deployment.stages.get(deployment.committed)
        if stage is None or stage.tokenizer is None:
            raise RequestRefused(
                "not-head", f"this node is not the head of {deployment.name} in a committed epoch"
            )
        tokens = _prompt(message, stage)
        generation = Generation(
            request=fields.text(message, "request"),
            tokens=tokens,
            prompt_tokens=len(tokens),
            max_tokens=_max_tokens(message, stage, len(tokens)),
            text=TextStream(stage.tokenizer),
            last_token_s=self._clock(),
        )
        refusal = self._compute.call(lambda: deployment.head.start(generation), COMMAND_TIMEOUT_S)
        if refusal:
            raise RequestRefused("busy", refusal)
        return Reply({"prompt_tokens": generation.prompt_tokens})

    def _cancel(self, message: Mapping[str, Any]) -> Reply:
        request = fields.text(message, "request")
        with self._lock:
            deployment = self._deployment(message)
        self._compute.call(lambda: deployment.head.cancel(request), COMMAND_TIMEOUT_S)
        return Reply()

    def _probe(self, message: Mapping[str, Any]) -> Reply:
        config = parse_config(fields.section(message, "config"))
        return Reply(
            self._compute.call(
                lambda: probe_layer(config, self._pacer, self._budget, ending=self._ending), PROBE_TIMEOUT_S
            )
        )

    # Frames of other nodes, in the compute thread

    def _pass_on(self, stage: Stage, request: str, position: int, sequence: int, rows: torch.Tensor) -> None:
        if stage.closed:
            return
        head = self._left_behind(stage, request)
        if stage.assignment.head:
            if head:
                head.came_round(stage, request, position, sequence, rows)
            return
        assert stage.link is not None
        address = {"deployment": stage.assignment.deployment, "epoch": stage.epoch, "request": request}
        try:
            rows = stage.run(request, position, rows)
        except CacheError as error:
            logger.warning("%s, request %s: %s", stage.assignment.deployment, request, error)
            failure = {"code": error.code, "detail": f"{self._node}: {error}"}
            stage.link.send("release", {**address, "error": failure})
            return
        stage.link.send(
            "activation", {**address, "position": position, "sequence": sequence}, {"x": rows.numpy()}
        )

    def _left_behind(self, stage: Stage, request: str) -> Head | None:
        """Free what older epochs cached of a request that has moved to this one; return the head."""
        with self._lock:
            deployment = self._deployments.get(stage.assignment.deployment)
            older = (
                [one for one in deployment.stages.values() if one.epoch < stage.epoch] if deployment else []
            )
        for one in older:
            one.forget(request)
        return deployment.head if deployment else None

    def _release(self, stage: Stage, request: str, failure: Mapping[str, str] | None) -> None:
        if stage.closed:
            return
        if stage.assignment.head:
            head = self._left_behind(stage, request)
            if failure and head:
                head.failed(stage, request, f"{failure['code']}: {failure['detail']}")
            return
        stage.forget(request)
        assert stage.link is not None
        address = {"deployment": stage.assignment.deployment, "epoch": stage.epoch, "request": request}
        stage.link.send("release", {**address, "error": failure} if failure else address)

    def _tell_overdue(self) -> float | None:
        with self._lock:
            heads = [deployment.head for deployment in self._deployments.values()]
        waits = [wait_s for head in heads if (wait_s := head.tell_overdue()) is not None]
        return min(waits, default=None)

    # Checks and bookkeeping

    def _addressed(self, peer_name: str, frame: Frame) -> tuple[Stage | None, str]:
        """Return the stage a peer's frame is for, None if it is not held, and the request."""
        epoch = fields.integer(frame.fields, "epoch")
        request = fields.text(frame.fields, "request")
        with self._lock:
            deployment = self._deployments.get(fields.text(frame.fields, "deployment"))
            stage = deployment.stages.get(epoch) if deployment else None
        if stage and stage.assignment.previous != peer_name:
            raise WireError(
                f"{frame.kind} of {peer_name} for {stage.assignment.deployment} epoch {epoch}, "
                f"whose rows come from {stage.assignment.previous}"
            )
        return stage, request

    def _take_activation(self, stage: Stage, request: str, frame: Frame) -> None:
        context_tokens, hidden = stage.assignment.context_tokens, stage.assignment.config.hidden_size
        array = frame.tensors.get("x")
        if array is None or array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != hidden:
            raise WireError(f"activation for {stage.assignment.deployment}: x must be f32 [rows, {hidden}]")
        position = fields.integer(frame.fields, "position", most=context_tokens)
        sequence = fields.integer(frame.fields, "sequence")
        if not 1 <= len(array) <= context_tokens - position:
            raise WireError(
                f"activation of {len(array)} rows at {position} is not within a context of {context_tokens}"
            )
        rows = torch.from_numpy(array if array.flags.writeable else array.copy())
        self._compute.submit(lambda: self._pass_on(stage, request, position, sequence, rows))

    def _deployment(self, message: Mapping[str, Any]) -> Deployment:
        name = fields.text(message, "deployment")
        deployment = self._deployments.get(name)
        if deployment is None:
            raise RequestRefused("no-such-deployment", f"deployment {name!r} is not held here")
        return deployment

    def _deployment_for(self, assignment: Assignment) -> Deployment:
        """Return the deployment to prepare an epoch of; a new one is not entered yet."""
        with self._lock:
            deployment = self._deployments.get(assignment.deployment)
        if deployment is None:
            name, follow_up = assignment.deployment, self._compute.follow_up
            head = Head(name, notify=self._notify, follow_up=follow_up, clock=self._clock)
            return Deployment(name, SequenceReserve(self._budget), head)
        if assignment.epoch in deployment.stages:
            raise RequestRefused("already-prepared", f"epoch {assignment.epoch} is prepared; abort it first")
        if deployment.committed is not None and assignment.epoch <= deployment.committed:
            raise RequestRefused(
                "stale-epoch", f"epoch {deployment.committed} is committed; prepare a later one than that"
            )
        return deployment

    def _set_aside(self, deployment: Deployment, more: Sequence[Assignment] = ()) -> None:
        """Keep memory for one sequence of full length in the largest of the deployment's epochs.

        One, because a sequence's caches of an older epoch are freed when it arrives in a newer one.
        """
        with self._lock:
            held = [stage.assignment for stage in deployment.stages.values()]
        needed_bytes = max((_cache_bytes(one) for one in [*held, *more]), default=0)
        deployment.reserve.set_aside(needed_bytes, f"the cache of one sequence of {deployment.name}")

    def _drop(self, deployment: Deployment, stages: list[Stage]) -> None:
        """Free what epochs hold that are no longer in the deployment's map."""
        for stage in stages:
            self._compute.call(stage.close, COMMAND_TIMEOUT_S)
            self._store.release(stage.assignment.model, _units(stage.assignment))
            if stage.link:
                self._links.release(stage.link)
        with self._preparing:
            self._set_aside(deployment)
            with self._lock:
                if not deployment.stages:
                    self._deployments.pop(deployment.name, None)


def _units(assignment: Assignment) -> list[int]:
    layers = list(range(assignment.first_layer, assignment.end_layer))
    return [HEAD, *layers] if assignment.head else layers


def _parameter_bytes(assignment: Assignment) -> int:
    config = assignment.config
    head_parameters = config.head_parameters if assignment.head else 0
    return (head_parameters + assignment.layers * config.layer_parameters) * F32_BYTES


def _cache_bytes(assignment: Assignment) -> int:
    return cache_bytes(assignment.config, layers=assignment.layers, tokens=assignment.context_tokens)


def _verified_digest(assignment: Assignment, parameters: Parameters) -> str:
    """Return the shard's digest; refuse if it is not the one that was announced."""
    found = digest(parameters)
    if assignment.digest is not None and found != assignment.digest:
        raise RequestRefused(
            "digest-mismatch", f"the shard's digest is {found}, announced was {assignment.digest}"
        )
    return found


def _prompt(message: Mapping[str, Any], stage: Stage) -> list[int]:
    tokens = message.get("tokens")
    if tokens is None:
        assert stage.tokenizer is not None
        tokens = stage.tokenizer.encode(fields.text(message, "prompt", longest=_LONGEST_PROMPT))
    vocabulary = stage.assignment.config.vocabulary_size
    if not isinstance(tokens, list) or not tokens:
        raise RequestRefused("bad-field", "the prompt has no tokens")
    if not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
        raise RequestRefused("bad-field", f"the prompt's tokens must be whole numbers below {vocabulary}")
    return list(tokens)


def _max_tokens(message: Mapping[str, Any], stage: Stage, prompt_tokens: int) -> int:
    max_tokens = fields.integer(message, "max_tokens", least=1)
    context_tokens = stage.assignment.context_tokens
    if prompt_tokens + max_tokens > context_tokens:
        raise RequestRefused(
            "context-exceeded",
            f"a prompt of {prompt_tokens} tokens and {max_tokens} new ones exceed the deployment's context "
            f"of {context_tokens}; shorten the prompt or ask for fewer tokens",
        )
    return max_tokens


def _failure(message: Mapping[str, Any]) -> dict[str, str] | None:
    """Return why a node along the ring gave a request up, None for a plain release."""
    if message.get("error") is None:
        return None
    error = fields.section(message, "error")
    return {
        "code": fields.text(error, "code"),
        "detail": fields.text(error, "detail", longest=_LONGEST_DETAIL),
    }
