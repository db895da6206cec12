"""A node's part in split inference: holds shards of models and serves them, epoch by epoch.

Serves `shard.*`, `generate`, `cancel` and `probe.layer` of the orchestrator, and the frames of other
nodes (docs/wire_protocol.md). Loading is done in the thread that asks; everything that computes is done
by whoever has the compute thread's turn.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workers import fields
from workers.device import Pacer
from workers.errors import LinkError, ModelError, RequestRefused, WireError
from workers.inference import ring_frames, timing
from workers.inference.assignment import Assignment
from workers.inference.compute import ComputeThread
from workers.inference.deployments import Deployment, Deployments, held_bytes
from workers.inference.generation import Generation
from workers.inference.head import Head
from workers.inference.layer_store import Parameters
from workers.inference.peers import Dial, PeerLink, PeerLinks
from workers.inference.pieces import Piece
from workers.inference.probe import probe_layer
from workers.inference.stage import Failures, Place, Stage, add_spent, take_arrived
from workers.inference.telling import Telling
from workers.inference.timing import Spent, Way
from workers.models.config import parse_config
from workers.models.kv_cache import CacheError, MemoryBudget, OutOfMemory
from workers.models.precision import COMPUTE
from workers.wire.frames import Frame
from workers.wire.link import Reply

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 30.0
PROBE_TIMEOUT_S = 60.0


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
        self._paced = pacer.profile.pacing
        self._notify = notify
        self._clock = clock
        self._ending = threading.Event()
        self._budget = MemoryBudget(memory_bytes)
        self._links = PeerLinks(dial)
        self._deployments = Deployments(
            self._budget, self._links, make_head=self._make_head, make_stage=self._make_stage
        )
        self._compute = ComputeThread(f"compute {node}", on_idle=self._tell_overdue)
        self._routes = ring_frames.Routes()
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

    def on_peer_frame(self, peer_name: str, frame: Frame, *, more: bool = False) -> None:
        """Check an `activation`, `activations`, `passed` or `release` of another node, and run or queue it.

        Single rows are run in this thread where nothing else is to be done, which takes as long as a token
        takes; nothing else is waited for. Where `more` frames wait behind it, they are queued, so that they
        can go together with what those bring. What belongs to an epoch that is not held (any more) is
        dropped.

        Raises:
            WireError: the sender broke the protocol; its connection is to be closed.
        """
        try:
            if frame.kind == "activations":
                self._take_rows(peer_name, frame, more=more)
                return
            stage = self._addressed(peer_name, frame)
            if stage is None:
                logger.debug("%s of %s for no epoch that is held: %s", frame.kind, peer_name, frame.fields)
            elif frame.kind == "activation":
                self._take_prompt(stage, frame)
            elif frame.kind == "release":
                number, failure = fields.integer(frame.fields, "number"), ring_frames.failure(frame.fields)
                self._compute.submit(lambda: self._release(stage, number, failure))
            elif frame.kind == "passed":
                self._take_passed(stage, frame)
            else:
                raise WireError(f"{frame.kind!r} of {peer_name} is not taken here")
        except RequestRefused as error:
            raise WireError(f"{frame.kind} of {peer_name}: {error}") from error

    def holdings(self) -> list[str]:
        """Describe what is held, for the heartbeat: `deployment/epoch:first-end`, and `+head`."""
        return [
            f"{one.deployment}/{one.epoch}:{one.first_layer}-{one.end_layer}{'+head' if one.head else ''}"
            for one in self._deployments.assignments()
        ]

    def caches(self) -> dict[str, Any]:
        """Say what caches take, by deployment, and what they could take more, for the heartbeat."""
        deployments = self._deployments.all()
        idle_bytes = sum(one.reserve.idle_bytes for one in deployments)
        free_bytes = self._budget.limit_bytes - self._budget.used_bytes
        return {
            "used_bytes": {one.name: one.reserve.used_bytes for one in deployments},
            "free_bytes": max(0, free_bytes + idle_bytes),
            "limit_bytes": {
                one.name: one.reserve.limit_bytes
                for one in deployments
                if one.reserve.limit_bytes is not None
            },
            "waiting": {one.name: one.head.waiting for one in deployments if one.head.put_back_total},
            "put_back": {one.name: one.head.put_back_total for one in deployments if one.head.put_back_total},
        }

    def close(self) -> None:
        """End everything; running generations end without a word."""
        self._ending.set()
        self._compute.close()
        self._links.close()

    def _make_head(self, deployment: str) -> Head:
        telling = Telling(
            deployment, node=self._node, paced=self._paced, notify=self._notify, clock=self._clock
        )
        return Head(deployment, telling=telling, follow_up=self._compute.follow_up, clock=self._clock)

    def _make_stage(
        self, assignment: Assignment, parameters: Parameters, link: PeerLink | None, deployment: Deployment
    ) -> Stage:
        return Stage(
            assignment,
            parameters,
            link=link,
            pacer=self._pacer,
            deployment=deployment,
            ending=self._ending,
        )

    # Commands

    def _prepare(self, frame: Frame) -> Reply:
        assignment = Assignment.parse(frame.fields, node=self._node)
        sent = fields.parameters(frame.tensors, compute=assignment.compute)
        shard_digest = self._deployments.prepare(assignment, sent)
        size_bytes = held_bytes(assignment)
        logger.info(
            "%s epoch %d: layers [%d, %d) ready, %d bytes",
            assignment.deployment,
            assignment.epoch,
            assignment.first_layer,
            assignment.end_layer,
            size_bytes,
        )
        return Reply({"ready": True, "digest": shard_digest, "memory_bytes": size_bytes})

    def _holding(self, message: Mapping[str, Any]) -> Reply:
        layers, head = self._deployments.store.held(fields.text(message, "model"))
        return Reply({"layers": layers, "head": head})

    def _commit(self, message: Mapping[str, Any]) -> Reply:
        name, epoch = fields.text(message, "deployment"), fields.integer(message, "epoch")
        deployment, stage, changed = self._deployments.commit(name, epoch)
        if changed and stage.assignment.head:
            self._compute.call(lambda: deployment.head.switch(stage), COMMAND_TIMEOUT_S)
        return Reply({"epoch": epoch})

    def _abort(self, message: Mapping[str, Any]) -> Reply:
        epoch = fields.integer(message, "epoch")
        deployment = self._found(message)
        if deployment:
            self._drop(deployment, self._deployments.take_out_uncommitted(deployment, epoch))
        return Reply()

    def _retire(self, message: Mapping[str, Any]) -> Reply:
        epoch = fields.integer(message, "epoch")
        deployment = self._found(message)
        if deployment:
            stages = self._deployments.take_out_until(deployment, epoch)
            self._compute.call(lambda: deployment.head.retire(epoch), COMMAND_TIMEOUT_S)
            self._drop(deployment, stages)
        return Reply()

    def _found(self, message: Mapping[str, Any]) -> Deployment | None:
        """Return the deployment named, None if it is not held: what is to go may be gone already."""
        name = fields.text(message, "deployment")
        return next((one for one in self._deployments.all() if one.name == name), None)

    def _drop(self, deployment: Deployment, stages: list[Stage]) -> None:
        for stage in stages:
            self._compute.call(stage.close, COMMAND_TIMEOUT_S)
        self._deployments.drop(deployment, stages)

    def _generate(self, message: Mapping[str, Any]) -> Reply:
        deployment = self._deployments.find(fields.text(message, "deployment"))
        stage = self._deployments.committed_stage(deployment)
        if stage is None or stage.tokenizer is None:
            raise RequestRefused(
                "not-head", f"this node is not the head of {deployment.name} in a committed epoch"
            )
        generation = Generation.parse(message, stage, now_s=self._clock())
        prompt_tokens = generation.prompt_tokens
        refusal = self._compute.call(lambda: deployment.head.start(generation), COMMAND_TIMEOUT_S)
        if refusal:
            raise RequestRefused("busy", refusal)
        return Reply({"prompt_tokens": prompt_tokens})

    def _cancel(self, message: Mapping[str, Any]) -> Reply:
        request = fields.text(message, "request") if "request" in message else None
        deployment = self._deployments.find(fields.text(message, "deployment"))
        self._compute.call(lambda: deployment.head.cancel(request), COMMAND_TIMEOUT_S)
        return Reply()

    def _probe(self, message: Mapping[str, Any]) -> Reply:
        config = parse_config(fields.section(message, "config"))
        compute = fields.choice({"compute": "fp32", **message}, "compute", COMPUTE)
        found = self._compute.call(
            lambda: probe_layer(config, self._pacer, self._budget, compute=compute, ending=self._ending),
            PROBE_TIMEOUT_S,
        )
        return Reply(found)

    # Frames of other nodes: checked in the reader's thread, served by whoever has the turn

    def _addressed(self, peer_name: str, frame: Frame) -> Stage | None:
        """Return the stage a peer's frame is for, None if it is not held."""
        name, epoch = fields.text(frame.fields, "deployment"), fields.integer(frame.fields, "epoch")
        stage = self._deployments.stage(name, epoch)
        if stage and stage.assignment.previous != peer_name:
            raise WireError(
                f"{frame.kind} of {peer_name} for {name} epoch {epoch}, whose rows come from "
                f"{stage.assignment.previous}"
            )
        return stage

    def _take_prompt(self, stage: Stage, frame: Frame) -> None:
        """Take a piece of a prompt, or what the ring gives of it to a head that has no layers for it."""
        piece = ring_frames.piece(stage, frame, came_s=self._clock())
        if stage.assignment.head and not stage.assignment.ends_ring:
            self._compute.submit(lambda: self._pass_on(stage, piece))
            return
        stage.pieces.add(piece)
        self._compute.submit(lambda: self._run_piece(stage), long=True)

    def _take_rows(self, peer_name: str, frame: Frame, *, more: bool) -> None:
        """Take one row of each of several sequences."""
        came_s = self._clock()
        route = self._routes.find(peer_name, frame)
        if route is None:
            stage = self._addressed(peer_name, frame)
            if stage is None:
                logger.debug("rows of %s for no epoch that is held: %s", peer_name, frame.fields)
                return
            together = fields.integer(frame.fields, "together", least=1, most=ring_frames.MOST_TOGETHER)
            self._routes.learn(peer_name, frame, stage, together)
        else:
            stage, together = route
        stage.arrived.append(ring_frames.arrived(stage, frame, came_s=came_s))
        stage.together = together
        bring = self._compute.submit if more else self._compute.offer
        bring(lambda: self._step(stage))

    def _run_piece(self, stage: Stage) -> None:
        """Run the piece that has waited longest; one that was to run may have been dropped meanwhile."""
        piece = stage.pieces.take()
        if piece is not None:
            self._pass_on(stage, piece)

    def _pass_on(self, stage: Stage, piece: Piece) -> None:
        """Run rows of one sequence, a prompt's, and send them on.

        After the last layer the head needs the prompt's last row alone, and to know of the others.
        """
        if stage.closed:
            return
        place = piece.place
        self._leave_older(stage, [place])
        if stage.link is None or stage.assignment.head:
            stage.deployment.head.prompt_came_round(stage, piece)
            return
        began_s = self._clock()
        try:
            rows = stage.prefill(place.number, place.position, piece.rows)
        except CacheError as error:
            self._tell_failure(stage, place, error)
            return
        spent = Spent(self._node, self._paced, self._clock() - began_s, began_s - piece.came_s)
        way = (*piece.way, spent)
        if not stage.assignment.has_last_layer:
            ring_frames.send_prompt(stage, piece._replace(rows=rows, way=way))
        elif piece.partial:
            ring_frames.send_passed(stage, place, way)
        else:
            last = place._replace(position=place.position + len(rows) - 1)
            ring_frames.send_prompt(stage, Piece(last, rows[-1:], partial=False, way=way))

    def _take_passed(self, stage: Stage, frame: Frame) -> None:
        number, sequence = (fields.integer(frame.fields, name) for name in ("number", "sequence"))
        way, came_s = timing.way_of(frame.fields), self._clock()
        self._compute.submit(lambda: self._passed(stage, number, sequence, way, came_s))

    def _passed(self, stage: Stage, number: int, sequence: int, way: Way, came_s: float) -> None:
        if not stage.closed and stage.assignment.head:
            stage.deployment.head.passed(stage, number, sequence, way=way, came_s=came_s)

    def _step(self, stage: Stage) -> None:
        """Run single rows that have arrived for a stage, as many as go together, and send them on.

        Each frame that brings rows brings such a task, so that those of the last one find none left.
        """
        began_s = self._clock()
        taken = None if stage.closed else take_arrived(stage, began_s)
        if taken is None:
            return
        places, rows, spent_ns = taken
        self._leave_older(stage, places)
        if stage.link is None or stage.assignment.head:
            stage.deployment.head.came_round(stage, places, rows, spent_ns, began_s)
            return
        failures = stage.step(places, rows)
        add_spent(spent_ns, self._clock() - began_s)
        if failures:
            places, sound = self._without(stage, places, failures)
            rows, spent_ns = rows[sound], [spent_ns[index] for index in sound]
        if places:
            ring_frames.send_rows(stage, places, rows, spent_ns)

    def _without(
        self, stage: Stage, places: list[Place], failures: Failures
    ) -> tuple[list[Place], list[int]]:
        """Tell what cannot go on; return the places of the rest, and which they are."""
        for index, error in failures.items():
            self._tell_failure(stage, places[index], error)
        sound = [index for index in range(len(places)) if index not in failures]
        return [places[index] for index in sound], sound

    def _leave_older(self, stage: Stage, places: Sequence[Place]) -> None:
        if len(stage.deployment.stages) > 1:
            for older in self._deployments.older_stages(stage):
                for place in places:
                    older.forget(place.number)  # the request has gone on to this epoch

    def _tell_failure(self, stage: Stage, place: Place, error: CacheError) -> None:
        assert stage.link is not None
        level = logging.DEBUG if isinstance(error, OutOfMemory) else logging.WARNING  # the head says so
        logger.log(level, "%s, request number %d: %s", stage.assignment.deployment, place.number, error)
        failure = {"code": error.code, "detail": f"{self._node}: {error}"}
        stage.link.send("release", {**ring_frames.address(stage, place.number), "error": failure})

    def _release(self, stage: Stage, number: int, failure: Mapping[str, str] | None) -> None:
        if stage.closed:
            return
        if stage.link is None or stage.assignment.head:
            if failure:
                stage.deployment.head.failed(stage, number, failure["code"], failure["detail"])
            return
        stage.forget(number)
        where = ring_frames.address(stage, number)
        stage.link.send("release", {**where, "error": failure} if failure else where)

    def _tell_overdue(self) -> float | None:
        waits = [deployment.head.tell_overdue() for deployment in self._deployments.all()]
        return min((wait_s for wait_s in waits if wait_s is not None), default=None)
