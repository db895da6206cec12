"""What the engine knows for its policy: builds the views, asks, and keeps the history of the job's rounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from orchestrator.core.criteria import criteria_of
from orchestrator.core.decisions import NodeScore
from orchestrator.core.errors import InvalidValue
from orchestrator.core.jsonable import Json, to_json
from orchestrator.core.model import Network, NodeState
from orchestrator.core.scoring import score_nodes
from orchestrator.core.selection import (
    Choice,
    OpenRound,
    Outcome,
    RoundPlan,
    RoundRecord,
    RoundStart,
    RoundView,
    Selection,
    Situation,
    Start,
    make_policy,
)
from orchestrator.core.workload import Prediction, Workload, predict
from orchestrator.finetune.messages import JobSpec, MetricsTaken
from orchestrator.finetune.state import Round


class Selecting:
    """Asks one job's policy; owns what is measured, the job's workload and its history."""

    def __init__(self, spec: JobSpec, rng: Random) -> None:
        """Make the policy.

        Raises:
            InvalidPolicy: it is unknown or its condition on nodes and epochs does not hold.
        """
        self._spec = spec
        self.policy = make_policy(
            spec.policy, nodes=len(spec.nodes), epochs=spec.epochs, rng=rng, options=spec.options
        )
        self.workload = Workload()
        self.history: tuple[RoundRecord, ...] = ()
        self.choices: tuple[Choice, ...] = ()
        self._network = Network(taken_at_s=0.0)
        self._states: dict[str, NodeState] = {}

    def measured(self, metrics: MetricsTaken) -> None:
        """Take what is measured now; what had been known of a node and is not any more stays."""
        self._network = metrics.network
        self._states.update({state.name: state for state in metrics.nodes})

    def select(self, nodes: tuple[str, ...]) -> Selection:
        """Ask whom to begin with."""
        return self.policy.select(Start(nodes=nodes, situation=self._situation()))

    def plan_round(self, epoch: int, candidates: tuple[str, ...], loaded: frozenset[str]) -> RoundPlan:
        """Ask who trains `epoch`."""
        start = RoundStart(epoch=epoch, candidates=candidates, loaded=loaded, situation=self._situation())
        return self.policy.plan_round(start)

    def predict(self, names: Iterable[str], loaded: frozenset[str]) -> dict[str, float]:
        """Predict the seconds of a round that begins now, for those of whom enough is known."""
        found = {name: self._prediction(name) for name in names}
        return {
            name: one.round_s + (0.0 if name in loaded else one.data_s)
            for name, one in found.items()
            if one is not None
        }

    def may_close(self, current: Round, now_s: float) -> str | None:
        """Ask whether a round whose quorum has answered may close without the others."""
        elapsed_s = now_s - current.started_at_s
        if self._spec.time_criterion == "train_s":
            return None
        times = {name: current.answered_s.get(name, elapsed_s) for name in current.active}
        missing = {name for name in current.active if name in current.failed}
        return self.policy.may_close(
            OpenRound(
                epoch=current.epoch,
                scores=self._score({name: s for name, s in times.items() if name not in missing}),
                awaited=frozenset(current.waiting),
                elapsed_s=elapsed_s,
                answered=current.answered_s,
                forecast_s=current.plan.forecast_s,
            )
        )

    def scores(self, current: Round, names: Iterable[str]) -> tuple[NodeScore, ...]:
        """Score `names` of a closed round; if some are late, all by the time since they were asked."""
        return self._score({name: self._time_of(current, name) for name in names})

    def choose(
        self,
        current: Round,
        scores: tuple[NodeScore, ...],
        *,
        eliminated: tuple[str, ...],
        standby: tuple[str, ...],
        unselected: tuple[str, ...],
    ) -> Choice:
        """Ask who goes on."""
        times = {score.node: self._time_of(current, score.node) for score in scores}
        times |= {name: self._recovered_s(name) for name in standby}
        view = RoundView(
            epoch=current.epoch,
            scores=scores,
            eliminated=eliminated,
            late=frozenset(current.late),
            lost=tuple(current.failed),
            standby=standby,
            pool=self._score(times) if standby else scores,
            unselected=unselected,
            choices=self.choices,
            situation=self._situation(),
        )
        return self.policy.choose(view)

    def chosen(self, choice: Choice) -> None:
        """Add a choice to the history."""
        self.choices = (*self.choices, choice)

    def closed(self, current: Round) -> None:
        """Add a round that closed to the history."""
        outcomes = {name: _outcome(current, name) for name in current.active}
        seconds = current.closed_at_s - current.started_at_s
        record = RoundRecord(epoch=current.epoch, seconds=seconds, outcomes=outcomes)
        self.history = (*self.history, record)

    def snapshot(self) -> dict[str, Json]:
        """Return the history as JSON, for `restore`."""
        return {"history": to_json(self.history), "choices": to_json(self.choices)}

    def restore(self, document: Mapping[str, Any]) -> None:
        """Go on from what `snapshot` returned.

        Raises:
            InvalidValue: it is something else.
        """
        try:
            self.history = tuple(
                RoundRecord(
                    epoch=int(record["epoch"]),
                    seconds=float(record["seconds"]),
                    outcomes={name: Outcome(**one) for name, one in record["outcomes"].items()},
                )
                for record in document["history"]
            )
            self.choices = tuple(
                Choice(
                    eliminated=tuple(choice["eliminated"]),
                    readmitted=tuple(choice["readmitted"]),
                    reason=str(choice["reason"]),
                )
                for choice in document["choices"]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidValue(f"a job's history cannot be read: {type(error).__name__}: {error}") from error

    def _situation(self) -> Situation:
        return Situation(
            epochs=self._spec.epochs,
            states=self._states,
            network=self._network,
            workload=self.workload,
            history=self.history,
        )

    def _score(self, times: Mapping[str, float | None]) -> tuple[NodeScore, ...]:
        criteria = [
            criteria_of(name, self._states.get(name), self._network, time_s) for name, time_s in times.items()
        ]
        return score_nodes(criteria, self._spec.weights, self._spec.score)

    def _time_of(self, current: Round, name: str) -> float | None:
        update = current.updates.get(name)
        if current.late and self._spec.time_criterion == "round_s":
            return current.answered_s.get(name, current.closed_at_s - current.started_at_s)
        if update is None:
            return None
        return update.train_s if self._spec.time_criterion == "train_s" else update.round_s

    def _recovered_s(self, name: str) -> float | None:
        """Estimate the round of one that stands by: as it took last, times how its prediction changed."""
        last = next((r.outcomes[name] for r in reversed(self.history) if name in r.outcomes), None)
        if last is None or last.predicted_s is None:
            return None
        now = self._prediction(name)
        seen_s = last.seconds if last.answered else max(last.seconds, last.predicted_s)
        return None if now is None else seen_s * now.round_s / last.predicted_s

    def _prediction(self, name: str) -> Prediction | None:
        return predict(name, self._states.get(name), self._network, self.workload)[0]


def _outcome(current: Round, name: str) -> Outcome:
    """Say what became of a node that was asked."""
    update = current.updates.get(name)
    waited_s = current.closed_at_s - current.started_at_s
    return Outcome(
        answered=update is not None,
        seconds=current.answered_s.get(name, waited_s),
        load_s=current.load_s.get(name),
        predicted_s=current.predicted_s.get(name),
        train_s=update.train_s if update is not None else None,
        samples=update.samples if update is not None else 0,
        loss=update.loss if update is not None else None,
        reason=current.failed.get(name),
    )
