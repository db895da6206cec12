"""The head of a deployment: runs generations round the ring, token by token, across route epochs.

Everything here is used by whoever has the compute thread's turn. A generation has at most one single row
under way; those that are ready go together, in as many groups as the ring has stages, so that each stage has
one to work on. Prompts go in pieces, each a long task of the compute thread, and take turns; no more of them
are in the ring than keep it busy. When another epoch is committed, every generation is replayed through the
new ring from its tokens; what still comes out of the old one is not waited for and not used. Likewise when
the caches of all do not fit: the youngest is put back and replayed when others have ended.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from workers.inference import activations, ring_frames
from workers.inference.generation import Generation
from workers.inference.pieces import Piece, PieceWindow
from workers.inference.requests import Requests
from workers.inference.sampling import Choice
from workers.inference.stage import Asked, Place, Rows, Spans, Stage
from workers.inference.telling import Telling
from workers.inference.timing import NS, Way
from workers.models.kv_cache import CacheError, OutOfMemory

logger = logging.getLogger(__name__)

CHUNK_ROWS = 64
"""A prompt goes into the ring in pieces of so many rows: while one is on its way the next is computed, and
between two of them it is others' turn."""
WAITING_INTERVAL_S = 20.0
"""How often it is told who waits for room: less than the orchestrator waits for a token."""


class FollowUp(Protocol):
    """Queues a task for the compute thread."""

    def __call__(self, task: Callable[[], None], *, long: bool = False) -> None:
        """Queue it; never refused."""


class Head:
    """The generations of one deployment.

    `telling` tells the orchestrator, `follow_up` queues tasks for the compute thread.
    """

    def __init__(
        self,
        deployment: str,
        *,
        telling: Telling,
        follow_up: FollowUp,
        clock: Callable[[], float],
    ) -> None:
        self._deployment = deployment
        self._telling = telling
        self._follow_up = follow_up
        self._clock = clock
        self._current: Stage | None = None
        self._requests = Requests()
        self._ready: deque[Generation] = deque()
        self._dispatching = False
        self._prompts: deque[Generation] = deque()
        self._entering = False
        self._window = PieceWindow(stages=1, piece_rows=CHUNK_ROWS)
        self._waiting_told_s = -math.inf

    @property
    def waiting(self) -> int:
        """How many requests wait for room for their caches."""
        return self._requests.waiting_count

    @property
    def put_back_total(self) -> int:
        """How often a request was put back since its caches did not fit."""
        return self._requests.put_back_total

    def start(self, generation: Generation) -> str | None:
        """Begin to answer a request; returns why not, if so."""
        if refusal := self._requests.refusal(generation.request):
            return refusal
        if self._requests.enter(generation):
            self._schedule(generation)
        else:
            self._try_waiting()
        return None

    def cancel(self, request: str | None) -> None:
        """End a request, if it is running; None: all that are."""
        for generation in self._requests.all():
            if request in (None, generation.request):
                self._end(generation, "cancelled")

    def switch(self, stage: Stage) -> None:
        """Go on with a newly committed epoch."""
        self._current = stage
        self._window = PieceWindow(stages=stage.assignment.ring_nodes, piece_rows=CHUNK_ROWS)
        for generation in self._requests.all():
            generation.in_flight, generation.due_s = False, None
            if not generation.put_back:
                self._schedule(generation)
        self._requests.more_room()
        self._try_waiting()
        self._let_enter()

    def retire(self, epoch: int) -> None:
        """End everything if the committed epoch is this one or older."""
        if self._current and self._current.epoch <= epoch:
            for generation in self._requests.all():
                self._end(generation, "error", "the deployment was retired on its head")
            self._current = None

    def came_round(
        self, stage: Stage, places: Sequence[Place], rows: Rows, spent_ns: Spans, now_s: float
    ) -> None:
        """Take rows [M, H] from the ring's last node, each of another request, and what was spent on them.

        The last that `spent_ns` says of each is how long it waited here.
        """
        waited = {n: found for n, place in enumerate(places) if (found := self._waiting_for(stage, place))}
        if len(waited) < len(places):
            rows = rows[list(waited)]
        for n, generation in waited.items():
            spent, here_ns = generation.spent, spent_ns[n].pop()
            spent.spent_ns, spent.round_s = spent_ns[n], now_s - here_ns * NS - spent.row_sent_s
        generations = list(waited.values())
        if generations and stage.assignment.ends_ring:
            generations, rows = self._step(stage, generations, [places[n] for n in waited], rows, now_s)
        self._go_on(generations, stage, rows)

    def prompt_came_round(self, stage: Stage, piece: Piece) -> None:
        """Take a piece of a prompt, or its last row, from the ring's last node."""
        place, rows = piece.place, piece.rows
        generation = self._requests.get(place.number) if piece.partial else self._waiting_for(stage, place)
        if generation is None or generation.stage is not stage:
            return
        if stage.assignment.ends_ring:
            began_s = self._clock()
            try:
                rows = stage.prefill(place.number, place.position, rows)
            except CacheError as error:
                self._cannot_go_on(generation, error.code, f"on the head: {error}")
                return
            generation.spent.head_compute_s += self._clock() - began_s
        self.passed(stage, place.number, place.sequence, way=piece.way, came_s=piece.came_s)
        if not piece.partial:
            self._go_on([generation], stage, rows[-1:])

    def passed(self, stage: Stage, number: int, sequence: int, *, way: Way, came_s: float) -> None:
        """Learn that a piece of a prompt has passed all layers, and with it those before it."""
        generation = self._requests.get(number)
        if generation is None or generation.stage is not stage or stage is not self._current:
            return
        stage.ring = [(spent.node, spent.paced) for spent in way]
        generation.spent.passed(sequence, came_s, way)
        if self._window.returned(number, sequence, now_s=self._clock()):
            generation.due_s = None
            if self._window.awaits(number):
                self._await(generation, stage)
            self._let_enter()

    def _go_on(self, generations: Sequence[Generation], stage: Stage, rows: Rows) -> None:
        """Take what came round and send on what follows from it, before anything else that waits."""
        self._dispatching = True
        try:
            self._take(generations, stage, rows)
        finally:
            self._dispatch()

    def failed(self, stage: Stage, number: int, code: str, detail: str) -> None:
        """Learn that a node of the ring cannot serve a request."""
        generation = self._requests.get(number)
        if generation and generation.stage is stage:
            self._cannot_go_on(generation, code, detail)

    def tell_overdue(self) -> float | None:
        """Tell of tokens and of overdue passes; return the seconds until the next may be, None if none is."""
        now_s = self._clock()
        if self._telling.is_due():
            self._telling.tell()
        for generation in self._requests.all():
            if generation.due_s is not None and generation.due_s <= now_s:
                self._tell_stalled(generation)
        if self.waiting and now_s - self._waiting_told_s >= WAITING_INTERVAL_S:
            self._waiting_told_s = now_s
            for generation in self._requests.waiting():
                self._telling.tell_of("waiting", generation)
        dues = [generation.due_s for generation in self._requests.all() if generation.due_s is not None]
        if (told_by_s := self._telling.due_s()) is not None:
            dues.append(told_by_s)
        return max(0.0, min(dues) - now_s) if dues else None

    def _tell_stalled(self, generation: Generation) -> None:
        assert generation.stage is not None
        generation.due_s = None
        timeout_s = generation.stage.assignment.request_timeout_s
        detail = f"the ring of epoch {generation.stage.epoch} has not answered for {timeout_s:g} s"
        logger.warning("%s, request %s: %s", self._deployment, generation.request, detail)
        self._telling.tell_of("stalled", generation, epoch=generation.stage.epoch, detail=detail)

    def _waiting_for(self, stage: Stage, place: Place) -> Generation | None:
        """Return whose pass has come round; None if it belongs to no pass under way."""
        generation = self._requests.get(place.number)
        if generation is None or not generation.in_flight or generation.stage is not stage:
            return None
        return generation if place.sequence == generation.sequence else None

    def _schedule(self, generation: Generation) -> None:
        if generation.scheduled:
            return
        generation.scheduled = True
        self._ready.append(generation)
        if not self._dispatching:
            self._dispatching = True
            self._follow_up(self._dispatch)

    def _dispatch(self) -> None:
        """Send one group of single rows on its way; prompts wait for a long task's turn."""
        self._dispatching = False
        stage = self._current
        group: list[Generation] = []
        while self._ready and len(group) < self._group_size(stage):
            generation = self._ready.popleft()
            if stage is not None and generation.goes_as_prompt(stage):
                self._prompts.append(generation)
                continue
            generation.scheduled = False
            if stage is not None and generation.can_go:
                group.append(generation)
        if stage is not None and group:
            self._send_together(group, stage)
        if self._ready and not self._dispatching:
            self._dispatching = True
            self._follow_up(self._dispatch)
        self._let_enter()
        if self._telling.is_due():
            self._telling.tell()

    def _let_enter(self) -> None:
        """Have the next piece of a prompt sent when it is a long task's turn, if one may go."""
        if self._prompts and not self._entering and self._window.takes_more():
            self._entering = True
            self._follow_up(self._enter, long=True)

    def _enter(self) -> None:
        """Send a piece of the prompt whose turn it is."""
        self._entering = False
        stage = self._current
        while self._prompts:
            generation = self._prompts[0]
            if stage is not None and generation.goes_as_prompt(stage):
                if not self._window.takes_more() or not self._link_takes_more(stage):
                    return
                self._prompts.popleft()
                generation.scheduled = False
                self._telling.tell()
                self._send_piece(generation, stage)
                break
            self._prompts.popleft()
            generation.scheduled = False
        self._let_enter()

    def _link_takes_more(self, stage: Stage) -> bool:
        """Tell whether the link takes another piece; if not, it is tried again once it does."""
        return stage.link is None or stage.link.takes_more(lambda: self._follow_up(self._let_enter))

    def _group_size(self, stage: Stage | None) -> int:
        """Return how many sequences go together, so that every stage of the ring has a group."""
        stages = 1 if stage is None else stage.assignment.ring_nodes
        together = math.ceil(self._requests.under_way_count / stages)
        return min(ring_frames.MOST_TOGETHER, max(1, together))

    def _send_piece(self, generation: Generation, stage: Stage) -> None:
        """Send the next piece of what the ring does not have of a sequence: of all, if it is new to it."""
        if generation.stage is not stage:
            self._leave_ring(generation)
            generation.replayed = len(generation.tokens) if generation.stage or generation.made else 0
            generation.stage, generation.cached = stage, 0
            generation.spent.pieces_sent_s.clear()
        began_s = self._clock()
        position = generation.cached
        tokens = generation.tokens[position : position + CHUNK_ROWS]
        generation.entering = len(tokens) < generation.missing
        rows = stage.embed(tokens, range(position, position + len(tokens)))
        if stage.assignment.starts_ring:
            try:
                rows = stage.prefill(generation.number, position, rows)
            except CacheError as error:
                self._cannot_go_on(generation, error.code, f"on the head: {error}")
                return
        sent_s = self._clock()
        generation.spent.head_compute_s += sent_s - began_s
        place = self._next_pass(generation, len(tokens))
        if stage.link is not None:
            self._window.sent(place.number, place.sequence, rows=len(tokens), now_s=began_s)
            generation.spent.pieces_sent_s[place.sequence] = sent_s
            self._await(generation, stage)
            ring_frames.send_prompt(stage, Piece(place, rows, generation.entering))
        if generation.entering:
            generation.scheduled = True
            self._prompts.append(generation)
        elif stage.link is None:
            self._go_on([generation], stage, rows[-1:])
        else:
            generation.in_flight = True

    def _send_together(self, generations: list[Generation], stage: Stage) -> None:
        """Send the next row of each of several sequences."""
        began_s = self._clock()
        places = [self._next_pass(generation, 1) for generation in generations]
        tokens = [generation.tokens[-1] for generation in generations]
        rows = stage.embed(tokens, [place.position for place in places])
        if stage.assignment.starts_ring:
            generations, rows = self._step(stage, generations, places, rows, began_s)
            places = [place for place in places if self._requests.get(place.number)]
        if stage.link is None or not generations:
            self._take(generations, stage, rows)
            return
        sent_s = self._clock()
        due_s = sent_s + stage.assignment.request_timeout_s
        for generation in generations:
            generation.in_flight, generation.due_s = True, due_s
            generation.spent.row_sent_s = sent_s
        stage.together = self._group_size(stage)
        ring_frames.send_rows(stage, places, rows)

    def _next_pass(self, generation: Generation, count: int) -> Place:
        position = generation.cached
        generation.cached += count
        generation.sequence += 1
        return Place(generation.number, position, generation.sequence)

    def _await(self, generation: Generation, stage: Stage) -> None:
        """Expect something of a generation to come round in time."""
        generation.due_s = self._clock() + stage.assignment.request_timeout_s

    def _step(
        self, stage: Stage, generations: list[Generation], places: Sequence[Place], rows: Rows, began_s: float
    ) -> tuple[list[Generation], Rows]:
        """Run rows [M, H] through the head's own layers; returns whose can go on, and their rows."""
        failures = stage.step(places, rows)
        took_s = self._clock() - began_s
        for generation in generations:
            generation.spent.head_compute_s += took_s
        if not failures:
            return generations, rows
        for number, error in failures.items():
            if self._requests.get(places[number].number) is generations[number]:
                self._cannot_go_on(generations[number], error.code, f"on the head: {error}")
        sound = [
            number
            for number, place in enumerate(places)
            if number not in failures and self._requests.get(place.number)
        ]
        return [generations[number] for number in sound], rows[sound]

    def _cannot_go_on(self, generation: Generation, code: str, detail: str) -> None:
        """End a request that a node cannot serve, or put the youngest back if caches are what is short."""
        if code != OutOfMemory.code or self._requests.is_alone():
            self._end(generation, "error", f"{code}: {detail}")
            return
        youngest = self._requests.youngest()
        logger.info("%s, request %s waits for room: %s", self._deployment, youngest.request, detail)
        self._start_over(youngest)
        self._requests.put_back(youngest)
        if youngest is not generation:
            self._start_over(generation)
            self._schedule(generation)
        self._let_enter()

    def _start_over(self, generation: Generation) -> None:
        """Free a request's caches; what still comes of it is not known by its new number."""
        self._leave_ring(generation)
        self._window.forget(generation.number)
        self._requests.renumber(generation)
        generation.stage, generation.cached = None, 0
        generation.entering, generation.in_flight, generation.due_s = False, False, None

    def _try_waiting(self) -> None:
        """Have one go on that was put back, if there may be room."""
        generation = self._requests.next_waiting()
        if generation is not None:
            self._schedule(generation)

    def _take(self, generations: Sequence[Generation], stage: Stage, rows: Rows) -> None:
        """Choose the next token of each sequence after its last row, rows [M, H]."""
        if not generations:
            return
        for generation in generations:
            generation.in_flight, generation.due_s = False, None
        asked = [
            Asked(sampling=one.sampling, tokens=one.tokens, prompt_tokens=one.prompt_tokens)
            for one in generations
        ]
        began_s = self._clock()
        choices = stage.choose(rows, asked)
        took_s = self._clock() - began_s
        for generation, choice in zip(generations, choices, strict=True):
            generation.spent.head_compute_s += took_s
            self._take_token(generation, stage, choice)

    def _take_token(self, generation: Generation, stage: Stage, choice: Choice) -> None:
        if not math.isfinite(choice.margin):
            self._end(generation, "error", activations.not_finite(stage.assignment.wire))
            return
        generation.tokens.append(choice.token)
        finish, text = self._finish_reason(generation, stage, choice.token), None
        if finish or generation.stops:
            self._telling.make_texts()  # in the order of the tokens
            text, stopped = generation.text_after(choice.token, last=finish is not None)
            finish = "stop" if stopped else finish
        self._telling.note(generation, stage, choice, text=text)
        self._requests.made_token(generation)
        self._try_waiting()
        if finish:
            self._end(generation, finish)
        else:
            self._schedule(generation)

    def _finish_reason(self, generation: Generation, stage: Stage, token: int) -> str | None:
        if token in stage.assignment.config.end_tokens:
            return "stop"
        return "length" if generation.made >= generation.max_tokens else None

    def _end(self, generation: Generation, reason: str, detail: str = "") -> None:
        self._telling.tell()
        generation.ended = True
        self._requests.leave(generation)
        self._window.forget(generation.number)
        self._leave_ring(generation)
        made = generation.made
        self._telling.tell_of("done", generation, finish_reason=reason, detail=detail, tokens=made)
        self._requests.ended(generation)
        self._try_waiting()
        self._let_enter()

    def _leave_ring(self, generation: Generation) -> None:
        """Free the caches of the ring that the generation used, unless that epoch is gone already."""
        stage = generation.stage
        if stage is None or stage.closed:
            return
        stage.forget(generation.number)
        if stage.link:
            stage.link.send("release", ring_frames.address(stage, generation.number))
