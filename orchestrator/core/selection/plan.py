"""Choose before the first round whom to train with, from what is measured; revise it after each round.

Each node's round is forecast (transfer of model and update at what TCP gets out of its path, compute, the
data once) and the set that reaches the target loss soonest is taken (`planning`). After each round the
forecasts are corrected by what was seen; a node that was forecast wrongly is replaced if that saves enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

import numpy as np

from orchestrator.core.decisions import Alternative
from orchestrator.core.jsonable import Json
from orchestrator.core.selection.forecast import Forecast, fill, forecasts
from orchestrator.core.selection.interface import (
    Choice,
    OpenRound,
    RoundPlan,
    RoundStart,
    RoundView,
    Selection,
    Situation,
    Start,
)
from orchestrator.core.selection.planning import PlanOptions, Pool, cost_of, costs


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Train with the set that is forecast to reach the target loss soonest."""

    options: PlanOptions = field(default_factory=PlanOptions)
    name: str = "plan"

    def select(self, start: Start) -> Selection:
        """Choose whom to begin with; all, if nothing is known of anybody's round."""
        known = forecasts(start.nodes, start.situation)
        if all(one.seconds is None for one in known.values()):
            reason = next((one.note for one in known.values()), "there is no node")
            return Selection(nodes=start.nodes, reason=f"no round can be forecast ({reason}): all begin")
        found = self._best(start.nodes, known, start.situation, start.situation.epochs, loaded=frozenset())
        return Selection(
            nodes=found.nodes,
            reason=f"{len(found.nodes)} of {len(start.nodes)}: {found.describe()}",
            alternatives=found.alternatives,
            inputs=_inputs(known),
        )

    def plan_round(self, start: RoundStart) -> RoundPlan:
        """Have all members train; who takes much longer than forecast is not waited for for ever."""
        known = forecasts(start.candidates, start.situation)
        forecast_s = {
            node: one.seconds + (0.0 if node in start.loaded else one.data_s)
            for node, one in known.items()
            if one.seconds is not None
        }
        if not forecast_s:
            return RoundPlan(participants=start.candidates, reason="no forecast: all are waited for")
        slowest_s = max(forecast_s.values())
        patience_s = self.options.patience * slowest_s
        quorum = max(1, ceil(self.options.quorum * len(start.candidates)))
        reason = f"{slowest_s:.1f} s are forecast; after {patience_s:.1f} s {quorum} answers are enough"
        return RoundPlan(
            participants=start.candidates,
            quorum=quorum,
            patience_s=patience_s,
            forecast_s=forecast_s,
            reason=reason,
        )

    def may_close(self, view: OpenRound) -> str | None:
        """Close unless everybody takes that much longer: then the forecast is wrong, not a node."""
        seen = [s / view.forecast_s[n] for n, s in view.answered.items() if view.forecast_s.get(n)]
        longer = max(1.0, median(seen)) if seen else 1.0
        forecast_s = max((view.forecast_s[n] for n in view.awaited if n in view.forecast_s), default=0.0)
        if view.elapsed_s < self.options.patience * longer * forecast_s:
            return None
        names = ", ".join(sorted(view.awaited))
        return (
            f"{names}: {view.elapsed_s:.1f} s, {forecast_s:.1f} s were forecast (the others: x{longer:.2f})"
        )

    def choose(self, view: RoundView) -> Choice:
        """Change the set if that saves enough of the time that is left."""
        members = [score.node for score in view.scores]
        others = [*view.standby, *view.unselected]
        now = frozenset(members)
        pool = [*members, *(node for node in others if node not in now)]
        rounds = view.situation.epochs - view.epoch - 1
        known = forecasts(pool, view.situation)
        if not pool or rounds < 1 or all(one.seconds is None for one in known.values()):
            return Choice(eliminated=(), reason=f"all {len(members)} stay: nothing can be forecast")
        loaded = frozenset({*members, *view.standby})
        found = self._best(pool, known, view.situation, rounds, loaded=loaded)
        arrays = _pool(pool, known, view.situation, loaded)
        now_s, efficiency = cost_of(np.array([node in now for node in pool]), arrays, rounds, self.options)
        enough = efficiency >= min(self.options.least_efficiency, found.efficiency)
        if enough and found.seconds >= (1 - self.options.gain) * now_s:
            saved = max(0.0, now_s - found.seconds)
            return Choice(
                eliminated=(),
                reason=f"all {len(members)} stay: the best other set would save {saved:.1f} of {now_s:.1f} s",
            )
        chosen = frozenset(found.nodes)
        out = tuple(node for node in members if node not in chosen)
        back = tuple(node for node in found.nodes if node not in now)
        change = "; ".join(
            text
            for text in (f"out {', '.join(out)}" * bool(out), f"in {', '.join(back)}" * bool(back))
            if text
        )
        return Choice(
            eliminated=out,
            readmitted=back,
            reason=f"{change or 'nobody changes'}: {found.describe()}; as it was {now_s:.1f} s",
            alternatives=found.alternatives,
        )

    def _best(
        self,
        nodes: Sequence[str],
        known: dict[str, Forecast],
        situation: Situation,
        rounds: int,
        *,
        loaded: frozenset[str],
    ) -> _Found:
        table = costs(_pool(nodes, known, situation, loaded), rounds, self.options)
        size = table.best(self.options.least_efficiency)
        chosen = {int(index) for index in table.order[:size]}
        return _Found(
            nodes=tuple(node for index, node in enumerate(nodes) if index in chosen),
            seconds=float(table.seconds[size - 1]),
            round_s=float(table.round_s[size - 1]),
            efficiency=float(table.efficiency[size - 1]),
            slowest=nodes[int(table.order[size - 1])],
            alternatives=tuple(
                Alternative(
                    name=f"the fastest {count}",
                    cost=float(table.seconds[count - 1]),
                    terms={
                        "round_s": float(table.round_s[count - 1]),
                        "efficiency": float(table.efficiency[count - 1]),
                    },
                    chosen=count == size,
                    reason=None
                    if table.efficiency[count - 1] >= self.options.least_efficiency
                    else f"its efficiency is below {self.options.least_efficiency:g}",
                )
                for count in _sizes(size, len(nodes))
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The best set, in the order of the job's nodes."""

    nodes: tuple[str, ...]
    seconds: float
    round_s: float
    efficiency: float
    slowest: str
    alternatives: tuple[Alternative, ...]

    def describe(self) -> str:
        return (
            f"a round of {self.round_s:.1f} s (slowest {self.slowest}), {100 * self.efficiency:.0f} % of the "
            f"progress of all, {self.seconds:.1f} s to the same loss"
        )


def _pool(
    nodes: Sequence[str], known: dict[str, Forecast], situation: Situation, loaded: frozenset[str]
) -> Pool:
    work = situation.workload
    seconds = fill(known)
    bits = 8.0 * max(work.model_bytes or 0, work.update_bytes or 0)
    each = [work.samples.get(node) for node in nodes]
    told = [value for value in each if value]
    usual = sum(told) / len(told) if told else 1.0
    return Pool(
        round_s=np.array([seconds[node] for node in nodes]),
        load_s=np.array([0.0 if node in loaded else known[node].data_s for node in nodes]),
        samples=np.array([value or usual for value in each]),
        shared_s=bits / work.orchestrator_bps if work.orchestrator_bps else 0.0,
        makeup=np.array([work.makeup[node] for node in nodes])
        if all(node in work.makeup for node in nodes)
        else None,
    )


def _sizes(chosen: int, count: int) -> list[int]:
    """Choose a few sizes to show: the chosen one, its neighbours and the ends."""
    return sorted({size for size in (1, chosen - 1, chosen, chosen + 1, count) if 1 <= size <= count})


def _inputs(known: dict[str, Forecast]) -> dict[str, Json]:
    return {
        "forecasts": {
            node: {"seconds": one.seconds, "data_s": one.data_s, "note": one.note}
            for node, one in known.items()
        }
    }
