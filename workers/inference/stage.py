"""One route epoch's part of a deployment on this node: its layers and the caches of running sequences.

Shape letters: T rows (tokens) of one sequence, M sequences with one row each, H hidden. Everything here is
used by whoever has the compute thread's turn, except what is constant after construction.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from workers.device import Pacer, forward_s
from workers.inference.assignment import Assignment
from workers.inference.layer_store import Parameters
from workers.inference.peers import PeerLink
from workers.inference.pieces import WaitingPieces
from workers.inference.sampling import GREEDY, Choice, Sampling, choose
from workers.inference.timing import NS
from workers.models import kernels
from workers.models.decoders import decoder_of
from workers.models.kv_cache import CacheError, KvCache
from workers.models.split import build
from workers.models.tokenizer import Tokenizer
from workers.wire.frames import Form

if TYPE_CHECKING:
    from workers.inference.deployments import Deployment

Rows = np.ndarray[Any, np.dtype[np.float32]]
Spans = list[list[int]]
"""Of each row and node: nanoseconds that the row waited there, and that the node computed, in turn."""


class Place(NamedTuple):
    """Whose row it is, where in the sequence it stands, and which pass round the ring carries it.

    `number` is the head's for the request: unique in the deployment as long as its head lives.
    """

    number: int
    position: int
    sequence: int


class Arrived(NamedTuple):
    """Single rows [M, H] that have come, each of another sequence.

    `spent_ns` is what the nodes before told of each.
    """

    places: list[Place]
    rows: Rows
    spent_ns: Spans
    came_s: float


class Asked(NamedTuple):
    """How a sequence's next token is to be chosen; the first `prompt_tokens` of its tokens were given."""

    sampling: Sampling
    tokens: Sequence[int]
    prompt_tokens: int


Failures = dict[int, CacheError]
"""Which of several rows cannot be taken further, by their number."""


class Stage:
    """Runs rows through this node's layers at the pace of its device.

    `deployment` is what it is an epoch of. `arrived` are single rows of some sequences that wait to be run,
    `together` how many of them may be at once, by the head's last word; any thread may append. `pieces` are a
    prompt's that wait. `forms` are the frames that carry single rows on. `ring` are, at the head, the nodes
    that a prompt has passed, and whether their computing is emulated.
    """

    def __init__(
        self,
        assignment: Assignment,
        parameters: Parameters,
        *,
        link: PeerLink | None,
        pacer: Pacer,
        deployment: Deployment,
        ending: threading.Event,
    ) -> None:
        self.assignment = assignment
        self.epoch = assignment.epoch
        self.link = link
        self.deployment = deployment
        self.closed = False
        self.arrived: deque[Arrived] = deque()
        self.ring: Sequence[tuple[str, bool]] = ()
        self.pieces = WaitingPieces()
        self.together = 1
        self.forms: dict[tuple[int, int, int], Form] = {}
        self.tokenizer = Tokenizer(assignment.tokenizer_json) if assignment.tokenizer_json else None
        self._pacer = pacer
        self._ending = ending
        self._caches: dict[int, KvCache] = {}
        self._parameters = assignment.layers * assignment.config.layer_parameters
        self._model = build(
            assignment.config,
            parameters,
            first_layer=assignment.first_layer,
            end_layer=assignment.end_layer,
            head=assignment.head,
        )
        self._decoder = decoder_of(self._model)

    def embed(self, tokens: Sequence[int], positions: Sequence[int]) -> Rows:
        """Return the rows [T, H] of tokens that stand at `positions` of their sequences; the head only."""
        if self._decoder is not None:
            return self._decoder.embed(tokens, positions)
        with torch.inference_mode():
            rows: Rows = self._model.embed(torch.tensor(tokens), torch.tensor(positions)).numpy()
        return rows

    def prefill(self, number: int, position: int, rows: Rows) -> Rows:
        """Run rows [T, H] of a sequence, the first at `position`, through the layers; return [T, H].

        Rows that were cached from `position` on are forgotten first, so a sequence can be run again.

        Raises:
            CacheError: the rows do not follow what is cached, or their cache does not fit. The cache of
                the sequence is freed then.
        """
        cache = self._ready_cache(number, position, len(rows))
        span = self._pacer.begin()
        try:
            out = self._run_layers(cache, position, rows)
            span.finish(self._modelled_s(len(rows)), interrupt=self._ending)
        finally:
            span.abandon()
        return out

    def step(self, places: Sequence[Place], rows: Rows) -> Failures:
        """Run rows [M, H], one of each of different sequences, through the layers; in place.

        What cannot go on is told, and its cache freed; its row means nothing then.
        """
        failures: Failures = {}
        caches: list[KvCache] = []
        for index, (number, position, _) in enumerate(places):
            try:
                caches.append(self._ready_cache(number, position, 1))
            except CacheError as error:
                failures[index] = error
        if caches:
            span = self._pacer.begin()
            try:
                if failures:
                    sound = [index for index in range(len(places)) if index not in failures]
                    taken = rows[sound]
                    self._step([places[index] for index in sound], taken, caches)
                    rows[sound] = taken
                else:
                    self._step(places, rows, caches)
                span.finish(self._modelled_s(len(caches)), interrupt=self._ending)
            finally:
                span.abandon()
        return failures

    def choose(self, rows: Rows, asked: Sequence[Asked]) -> list[Choice]:
        """Choose the tokens after rows [M, H] that have passed all layers; head only."""
        config = self.assignment.config
        span = self._pacer.begin()
        try:
            found = self._chosen(rows, asked)
            matrix = config.vocabulary_size * config.hidden_size
            modelled_s = forward_s(self._pacer.profile, parameters=matrix, layers=0, rows=len(rows))
            span.finish(modelled_s, interrupt=self._ending)
        finally:
            span.abandon()
        return found

    def forget(self, number: int) -> None:
        """Free what is held of a sequence."""
        self.pieces.drop(number)
        cache = self._caches.pop(number, None)
        if cache:
            cache.free()

    def close(self) -> None:
        """Free all caches; what arrives for this epoch afterwards is dropped."""
        self.closed = True
        self.arrived.clear()
        self.pieces.clear()
        for number in list(self._caches):
            self.forget(number)

    def _ready_cache(self, number: int, position: int, count: int) -> KvCache:
        cache = self._cache(number)
        try:
            cache.go_to(position)
            cache.make_room(count)
        except Exception:
            self.forget(number)
            raise
        return cache

    def _step(self, places: Sequence[Place], rows: Rows, caches: Sequence[KvCache]) -> None:
        positions = [position for _, position, _ in places]
        if self._decoder is not None:
            self._decoder.run(rows, positions, caches)
            return
        for index, (position, cache) in enumerate(zip(positions, caches, strict=True)):
            rows[index] = self._run_layers(cache, position, rows[index : index + 1])

    def _run_layers(self, cache: KvCache, position: int, rows: Rows) -> Rows:
        with torch.inference_mode():
            x = torch.from_numpy(rows).unsqueeze(0)
            out: Rows = self._model.run_layers(x, position=position, cache=cache)[0].numpy()
        return out

    def _chosen(self, rows: Rows, asked: Sequence[Asked]) -> list[Choice]:
        if self._decoder is not None and all(one.sampling == GREEDY for one in asked):
            return [Choice(token=token, margin=margin) for token, margin in self._decoder.best(rows)]
        return [_chosen(logits, one) for logits, one in zip(self._logits(rows), asked, strict=True)]

    def _logits(self, rows: Rows) -> Rows:
        if self._decoder is not None:
            return self._decoder.logits(rows)
        with torch.inference_mode():
            logits: Rows = self._model.logits(torch.from_numpy(rows)).numpy()
        return logits

    def _cache(self, number: int) -> KvCache:
        cache = self._caches.get(number)
        if cache is None:
            cache = self._caches[number] = KvCache(
                self.assignment.config,
                first_layer=self.assignment.first_layer,
                end_layer=self.assignment.end_layer,
                limit_tokens=self.assignment.context_tokens,
                budget=self.deployment.reserve,
            )
        return cache

    def _modelled_s(self, rows: int) -> float:
        layers = self.assignment.layers
        return forward_s(self._pacer.profile, parameters=self._parameters, layers=layers, rows=rows)


def _chosen(logits: Rows, asked: Asked) -> Choice:
    if asked.sampling == GREEDY:
        token, margin = kernels.best(logits)
        return Choice(token=token, margin=margin)
    with torch.inference_mode():
        scores = torch.from_numpy(logits)
        return choose(scores, asked.sampling, asked.tokens, prompt_tokens=asked.prompt_tokens)


def take_arrived(stage: Stage, now_s: float) -> tuple[list[Place], Rows, Spans] | None:
    """Take as many of a stage's waiting rows as go together, of different sequences; None if none waits.

    What was spent on each ends with how long it waited here.
    """
    if not stage.arrived:
        return None
    places, rows, spent_ns, came_s = stage.arrived.popleft()
    add_spent(spent_ns, now_s - came_s)
    if not stage.arrived or not _go_together(stage, places, spent_ns, stage.arrived[0]):
        return places, rows, spent_ns
    taken, places, spent_ns = [rows], list(places), list(spent_ns)
    while stage.arrived and _go_together(stage, places, spent_ns, stage.arrived[0]):
        more = stage.arrived.popleft()
        add_spent(more.spent_ns, now_s - more.came_s)
        taken.append(more.rows)
        places += more.places
        spent_ns += more.spent_ns
    return places, np.concatenate(taken), spent_ns


def add_spent(spent_ns: Spans, seconds: float) -> None:
    """Add to what is told of rows that they waited for so long, or that computing them took so long."""
    nanoseconds = int(seconds / NS)
    for one in spent_ns:
        one.append(nanoseconds)


def _go_together(stage: Stage, places: Sequence[Place], spent_ns: Spans, more: Arrived) -> bool:
    if len(places) + len(more.places) > stage.together or len(more.spent_ns[0]) + 1 != len(spent_ns[0]):
        return False
    numbers = {place.number for place in places}
    return not any(place.number in numbers for place in more.places)
