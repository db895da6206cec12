"""How long each node's next round should take: predicted from measurements, corrected by what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median_low

from orchestrator.core.selection.interface import Outcome, Situation
from orchestrator.core.workload import Prediction, predict

_NEWEST = 0.5
"""Share of the newest round in a node's correction."""
_BOUND = 20.0
"""No correction is larger or smaller than this: one odd round must not brand a node for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`seconds` of the node's next round, None if nothing is known; `data_s` once, if not loaded yet."""

    seconds: float | None
    data_s: float
    note: str


def forecasts(names: Iterable[str], situation: Situation) -> dict[str, Forecast]:
    """Forecast the next round of each of `names`.

    A node that was seen is corrected by its own ratio of observed to predicted, one that was not by the
    median ratio of all that were seen.
    """
    ratios = seen_ratios(situation)
    latest = _latest(situation)
    common = median_low([ratio for name, ratio in ratios.items() if name in latest] or [1.0])
    return {name: _forecast(name, situation, ratios.get(name), common, latest) for name in names}


def seen_ratios(situation: Situation) -> dict[str, float]:
    """Return observed over predicted, by node: the newer half, the rest from before."""
    ratios: dict[str, float] = {}
    for record in situation.history:
        for name, outcome in record.outcomes.items():
            ratio = _ratio(outcome)
            if ratio is not None:
                before = ratios.get(name, ratio)
                ratios[name] = max(ratio, before) if not outcome.answered else _mix(before, ratio)
    return ratios


def fill(known: Mapping[str, Forecast]) -> dict[str, float]:
    """Return the seconds of each; unknown counts as the worst known, and as 1 where nothing is known."""
    worst = max((one.seconds for one in known.values() if one.seconds is not None), default=1.0)
    return {name: worst if one.seconds is None else one.seconds for name, one in known.items()}


def _mix(before: float, ratio: float) -> float:
    return (1 - _NEWEST) * before + _NEWEST * ratio


def _ratio(outcome: Outcome) -> float | None:
    """Return how much longer it took than predicted; of a late answer, at least."""
    if not outcome.predicted_s or (outcome.reason is not None and not outcome.answered):
        return None
    ratio = outcome.seconds / outcome.predicted_s
    if not outcome.answered and ratio < 1:
        return None
    return min(max(ratio, 1 / _BOUND), _BOUND)


def _latest(situation: Situation) -> dict[str, float]:
    return {
        name: outcome.seconds
        for record in situation.history
        for name, outcome in record.outcomes.items()
        if outcome.answered
    }


def _forecast(
    name: str, situation: Situation, ratio: float | None, common: float, latest: Mapping[str, float]
) -> Forecast:
    found, note = predict(name, situation.states.get(name), situation.network, situation.workload)
    if found is None:
        seen_s = latest.get(name)
        return Forecast(seconds=seen_s, data_s=0.0, note=note if seen_s is None else "as it took last")
    factor = common if ratio is None else ratio
    return Forecast(
        seconds=factor * found.round_s, data_s=factor * found.data_s, note=_explain(found, factor)
    )


def _explain(found: Prediction, factor: float) -> str:
    parts = f"{found.down_s:.1f} s down, {found.compute_s:.1f} s training, {found.up_s:.1f} s up"
    return parts if abs(factor - 1) < 0.005 else f"{parts}, times {factor:.2f} as seen"
