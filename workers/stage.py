"""One route epoch's part of a deployment on this node: its layers and the caches of running sequences.

Shape letters: T rows (tokens) of one sequence, H hidden. Everything here is used by the compute thread
only, except what is constant after construction.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from workers.assignment import Assignment
from workers.device import Pacer, forward_s
from workers.kv_cache import Budget, KvCache
from workers.layer_store import Parameters
from workers.models.llama import build
from workers.models.tokenizer import Tokenizer
from workers.peers import PeerLink
from workers.sampling import Choice, Sampling, choose


class Stage:
    """Runs rows through this node's layers at the pace of its device."""

    def __init__(
        self,
        assignment: Assignment,
        parameters: Parameters,
        *,
        link: PeerLink | None,
        pacer: Pacer,
        budget: Budget,
        ending: threading.Event,
    ) -> None:
        self.assignment = assignment
        self.epoch = assignment.epoch
        self.link = link
        self.closed = False
        self.tokenizer = Tokenizer(assignment.tokenizer_json) if assignment.tokenizer_json else None
        self._pacer = pacer
        self._budget = budget
        self._ending = ending
        self._caches: dict[str, KvCache] = {}
        self._model = build(
            assignment.config,
            parameters,
            first_layer=assignment.first_layer,
            end_layer=assignment.end_layer,
            head=assignment.head,
        )

    def embed(self, tokens: list[int]) -> Tensor:
        """Return the rows [T, H] of tokens; the head only."""
        with torch.inference_mode():
            return self._model.embed(torch.tensor(tokens))

    def run(self, request: str, position: int, rows: Tensor) -> Tensor:
        """Run rows [T, H] of a sequence, the first at `position`, through the layers; return [T, H].

        Rows that were cached from `position` on are forgotten first, so a sequence can be run again.

        Raises:
            CacheError: the rows do not follow what is cached, or their cache does not fit. The cache of
                the sequence is freed then.
        """
        cache = self._cache(request)
        try:
            cache.go_to(position)
            cache.make_room(len(rows))
        except Exception:
            self.forget(request)
            raise
        span = self._pacer.begin()
        try:
            with torch.inference_mode():
                out = self._model.run_layers(rows.unsqueeze(0), position=position, cache=cache)[0]
            span.finish(self._modelled_s(len(rows)), interrupt=self._ending)
        finally:
            span.abandon()
        return out

    def choose(self, row: Tensor, sampling: Sampling, tokens: Sequence[int], *, prompt_tokens: int) -> Choice:
        """Choose the token after a row [H] that has passed all layers; head only."""
        config = self.assignment.config
        span = self._pacer.begin()
        try:
            with torch.inference_mode():
                choice = choose(self._model.logits(row), sampling, tokens, prompt_tokens=prompt_tokens)
            matrix = config.vocabulary_size * config.hidden_size
            span.finish(
                forward_s(self._pacer.profile, parameters=matrix, layers=0, rows=1), interrupt=self._ending
            )
        finally:
            span.abandon()
        return choice

    def forget(self, request: str) -> None:
        """Free the cache of a sequence."""
        cache = self._caches.pop(request, None)
        if cache:
            cache.free()

    def close(self) -> None:
        """Free all caches; what arrives for this epoch afterwards is dropped."""
        self.closed = True
        for request in list(self._caches):
            self.forget(request)

    def _cache(self, request: str) -> KvCache:
        cache = self._caches.get(request)
        if cache is None:
            cache = self._caches[request] = KvCache(
                self.assignment.config,
                first_layer=self.assignment.first_layer,
                end_layer=self.assignment.end_layer,
                limit_tokens=self.assignment.context_tokens,
                budget=self._budget,
            )
        return cache

    def _modelled_s(self, rows: int) -> float:
        layers = self.assignment.layers
        parameters = layers * self.assignment.config.layer_parameters
        return forward_s(self._pacer.profile, parameters=parameters, layers=layers, rows=rows)
