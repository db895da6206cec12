"""What is compared: policies, and for elimination the scores and weights that it can use."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from benchmarks.stragglers.fitted import FITTED_WEIGHTS, LEAST_EFFICIENCY
from orchestrator.core.scoring import CRITERIA, Weights
from orchestrator.core.selection import EliminationOptions, PolicyOptions
from orchestrator.finetune.messages import JobSpec

_PATIENT_S = 1e9
_KEEPING = EliminationOptions(least_efficiency=LEAST_EFFICIENCY)
_AS_PRINTED = EliminationOptions(wait="all", rejoin_limit=0)
"""Pekel 2025 waits for every update; a node that was eliminated stays so in its figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """A policy with its score and weights, as in rows and tables."""

    name: str
    policy: str
    score: str = "euclidean"
    weights: Weights = field(default_factory=Weights)
    time_criterion: str = "round_s"
    eliminate: EliminationOptions = field(default_factory=EliminationOptions)

    def request(self) -> dict[str, Any]:
        """Return what the API's job request takes of this."""
        return {
            "policy": self.policy,
            "score": self.score,
            "weights": {name: getattr(self.weights, name) for name in CRITERIA},
            "time_criterion": self.time_criterion,
            "eliminate": asdict(self.eliminate),
        }

    def spec(self, nodes: tuple[str, ...], epochs: int) -> JobSpec:
        """Return the simulated job; its timeouts let the slowest node finish."""
        return JobSpec(
            job=self.name,
            nodes=nodes,
            epochs=epochs,
            policy=self.policy,
            score=self.score,
            weights=self.weights,
            time_criterion=self.time_criterion,
            round_timeout_s=_PATIENT_S,
            load_timeout_s=_PATIENT_S,
            sync_timeout_s=_PATIENT_S,
            options=PolicyOptions(eliminate=self.eliminate),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what the arm is, for the result's profile."""
        return {"name": self.name, **self.request()}


def eliminating(name: str, weights: Weights, *, score: str = "euclidean", printed: bool = False) -> Arm:
    """Return an arm that eliminates; `printed` to the letter: waits for all, T is training time."""
    return Arm(
        name=name,
        policy="eliminate",
        score=score,
        weights=weights,
        time_criterion="train_s" if printed else "round_s",
        eliminate=_AS_PRINTED if printed else _KEEPING,
    )


ALL = Arm(name="all", policy="all")
PRINTED = eliminating("eliminate, printed", Weights.equal(), score="printed", printed=True)
PROJECTION = eliminating("eliminate, projection", Weights.equal(), score="projection")
EUCLIDEAN = eliminating("eliminate, euclidean", Weights.equal())
FITTED = eliminating("eliminate, fitted", FITTED_WEIGHTS)
FITTED_WAITING = Arm(
    name="eliminate, fitted, waits for all",
    policy="eliminate",
    weights=FITTED_WEIGHTS,
    eliminate=replace(_KEEPING, wait="all"),
)
TO_THE_LAST = Arm(
    name="eliminate, fitted, to the last",
    policy="eliminate",
    weights=FITTED_WEIGHTS,
    eliminate=EliminationOptions(),
)
"""As many as Eq. 1 says, down to the last nodes: what it costs in loss."""
RANDOM = Arm(name="random", policy="random", eliminate=_KEEPING)
DEADLINE = Arm(name="deadline", policy="deadline")
OORT = Arm(name="oort", policy="oort")
PLAN = Arm(name="plan", policy="plan")

BEST_SET = Arm(name="best set in hindsight", policy="all")
"""A bound for `plan`, not an arm: who takes part is chosen knowing how long everybody takes."""

ARMS = (
    ALL,
    PRINTED,
    PROJECTION,
    EUCLIDEAN,
    FITTED_WAITING,
    TO_THE_LAST,
    FITTED,
    RANDOM,
    DEADLINE,
    OORT,
    PLAN,
)
POLICIES = (ALL, FITTED, RANDOM, DEADLINE, OORT, PLAN)
"""One arm for each policy."""
