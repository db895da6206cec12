"""Transfers as flows through links of limited rate: who gets how much, and who is done when.

A link is contended when its flows, each as fast as it could be alone, want more than it has. Flows that
cross no contended link run at their own bound and touch nobody, which is the usual case and costs O(log F)
per flow; the others share max-min fairly and are solved together, in numpy.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import inf

import numpy as np

from orchestrator.simulation.fairness import max_min_rates

_TOLERANCE = 1e-9


class FlowNetwork:
    """Links and the flows on them. A flow is named by the number that `start` gives; numbers are reused.

    `coalesce_s`: shares are worked out anew at most so often; what starts meanwhile on a contended link
    waits, what ends leaves its share unused. 0 is exact; studies of very many flows trade exactness for time.
    """

    def __init__(self, capacities_bps: Sequence[float], *, coalesce_s: float = 0.0) -> None:
        self._filler = len(capacities_bps)
        self._capacity = np.array([*capacities_bps, inf])
        self._wanted = np.zeros(len(self._capacity))
        self._contended = np.zeros(len(self._capacity), dtype=bool)
        self._coalesce_s = coalesce_s
        self._path = np.full((0, 1), self._filler, dtype=np.intp)
        self._bound = np.zeros(0)
        self._left = np.zeros(0)
        self._rate = np.zeros(0)
        self._since = np.zeros(0)
        self._active = np.zeros(0, dtype=bool)
        self._shared = np.zeros(0, dtype=bool)
        self._token = np.zeros(0, dtype=np.int64)
        self._unused: list[int] = []
        self._done: list[tuple[float, int, int]] = []
        self._group = _Queue([], [], [])
        self._share_at_s = inf

    def start(self, links: Sequence[int], *, bits: float, bound_bps: float, now_s: float) -> int:
        """Begin a flow of `bits` over `links`, never faster than `bound_bps`; returns its number."""
        flow = self._new_number(len(links))
        bound = min(bound_bps, *(float(self._capacity[link]) for link in links))
        self._path[flow] = self._filler
        self._path[flow, : len(links)] = links
        self._bound[flow], self._left[flow], self._since[flow] = bound, bits, now_s
        self._active[flow], self._rate[flow] = True, 0.0
        self._want(flow, bound, now_s)
        self._shared[flow] = self._contended[self._path[flow]].any()
        if self._shared[flow]:
            self._share_soon(now_s)
        else:
            self._run_alone(flow, now_s)
        return flow

    def stop(self, flow: int, now_s: float) -> None:
        """End a flow before its time."""
        self._token[flow] += 1
        self._active[flow] = False
        if self._shared[flow]:
            self._share_soon(now_s)
        self._want(flow, -float(self._bound[flow]), now_s)
        self._unused.append(flow)

    @property
    def next_s(self) -> float:
        """Return when `advance` is to be called next; infinite if nothing flows."""
        while self._done and not self._is_current(*self._done[0][1:]):
            heapq.heappop(self._done)
        while self._group and not self._is_current(*self._group.head):
            self._group.drop()
        alone_s = self._done[0][0] if self._done else inf
        return min(alone_s, self._group.next_s, self._share_at_s)

    def advance(self, now_s: float) -> list[int]:
        """End the flows that are done by `now_s`, which `next_s` gave; returns them."""
        ended: list[int] = []
        while self._done and self._done[0][0] <= now_s:
            _, flow, token = heapq.heappop(self._done)
            if self._is_current(flow, token):
                ended.append(flow)
        while self._group.next_s <= now_s:
            flow, token = self._group.head
            self._group.drop()
            if self._is_current(flow, token):
                ended.append(flow)
        for flow in ended:
            self.stop(flow, now_s)
        if self._share_at_s <= now_s:
            self._share(now_s)
        return ended

    def rate_bps(self, flow: int) -> float:
        """Return what a flow gets now."""
        return float(self._rate[flow])

    def _new_number(self, hops: int) -> int:
        if hops > self._path.shape[1]:
            more = np.full((len(self._path), hops - self._path.shape[1]), self._filler, dtype=np.intp)
            self._path = np.concatenate([self._path, more], axis=1)
        if not self._unused:
            self._grow(max(64, len(self._token)))
        return self._unused.pop()

    def _grow(self, count: int) -> None:
        first = len(self._token)
        self._path = np.concatenate(
            [self._path, np.full((count, self._path.shape[1]), self._filler, dtype=np.intp)]
        )
        for name in ("_bound", "_left", "_rate", "_since"):
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(count)]))
        self._active = np.concatenate([self._active, np.zeros(count, dtype=bool)])
        self._shared = np.concatenate([self._shared, np.zeros(count, dtype=bool)])
        self._token = np.concatenate([self._token, np.zeros(count, dtype=np.int64)])
        self._unused += range(first + count - 1, first - 1, -1)

    def _is_current(self, flow: int, token: int) -> bool:
        return int(self._token[flow]) == token

    def _want(self, flow: int, bps: float, now_s: float) -> None:
        """Add a flow's wish to its links; a link that becomes contended, or ceases to be, changes shares."""
        for link in self._path[flow].tolist():
            if link == self._filler:
                continue
            self._wanted[link] += bps
            contended = bool(self._wanted[link] > self._capacity[link] * (1 + _TOLERANCE))
            if contended != self._contended[link]:
                self._contended[link] = contended
                self._share_soon(now_s)

    def _share_soon(self, now_s: float) -> None:
        self._share_at_s = min(self._share_at_s, now_s + self._coalesce_s)

    def _run_alone(self, flow: int, now_s: float) -> None:
        self._rate[flow] = self._bound[flow]
        self._token[flow] += 1
        done_s = now_s + float(self._left[flow]) / float(self._bound[flow])
        heapq.heappush(self._done, (done_s, flow, int(self._token[flow])))

    def _share(self, now_s: float) -> None:
        """Work out anew what the flows on contended links get."""
        self._share_at_s = inf
        before = self._shared.copy()
        sharing = self._active & self._contended[self._path].any(axis=1)
        changed = np.flatnonzero(self._active & (sharing | before))
        self._left[changed] -= self._rate[changed] * (now_s - self._since[changed])
        self._since[changed] = now_s
        self._shared = sharing
        for flow in changed[~sharing[changed]].tolist():
            self._run_alone(flow, now_s)
        flows = np.flatnonzero(sharing)
        paths = np.where(self._contended[self._path[flows]], self._path[flows], self._filler)
        self._rate[flows] = max_min_rates(paths, self._capacity, self._bound[flows])
        done_s = now_s + np.maximum(self._left[flows], 0.0) / self._rate[flows]
        order = np.argsort(done_s, kind="stable")
        self._token[flows] += 1
        queued = flows[order]
        self._group = _Queue(done_s[order].tolist(), queued.tolist(), self._token[queued].tolist())


class _Queue:
    """Flows in the order in which they will be done, each with the token that it had when it was queued."""

    def __init__(self, at_s: list[float], flows: list[int], tokens: list[int]) -> None:
        self._at_s, self._flows, self._tokens = at_s, flows, tokens
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._flows)

    @property
    def head(self) -> tuple[int, int]:
        return self._flows[self._position], self._tokens[self._position]

    @property
    def next_s(self) -> float:
        return self._at_s[self._position] if self else inf

    def drop(self) -> None:
        self._position += 1
