"""What a job's engine says of the job: what it is at, its decisions, its reports."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.core.decisions import NodeScore
from orchestrator.core.energy import energy, total
from orchestrator.core.jsonable import Json, to_json
from orchestrator.core.selection import Choice, Selection
from orchestrator.finetune.messages import (
    Announce,
    Fail,
    Finish,
    Instruction,
    Record,
    ReportEpoch,
    Summary,
)
from orchestrator.finetune.state import JobState, Node, epoch_report
from orchestrator.journal import EngineJournal


class Journal(EngineJournal[Instruction]):
    """Says what becomes of a job."""

    def __init__(self, job: JobState) -> None:
        super().__init__(job.spec.job, lambda decision: Record(decision=decision))
        self._job = job

    def announce(self, state: str, reason: str) -> None:
        """Say what the job is at now."""
        self.add(Announce(state=state, reason=reason))

    def begins(self, now_s: float) -> None:
        """Record that the job begins, and without whom."""
        spec = self._job.spec
        reason = f"{spec.policy} over {len(self._job.nodes)} nodes for {spec.epochs} epochs"
        self.decide(now_s, "job", "start", reason, inputs=self._job_inputs())
        for node, lack in spec.left_out.items():
            self.decide(now_s, "node", "leave out", f"{node}: {lack}", inputs={"node": node})

    def resumes(self, now_s: float, reason: str) -> None:
        """Record that the job goes on from where an earlier process left it."""
        self.announce("loading", f"resumed: {reason}")
        self.decide(now_s, "job", "resume", reason, inputs=self._job_inputs())

    def selection(self, now_s: float, chosen: list[str], selection: Selection) -> None:
        """Record that the job begins with some of the nodes only."""
        self.decide(
            now_s,
            "select",
            f"begin with {', '.join(chosen)}",
            selection.reason,
            inputs=dict(selection.inputs),
            alternatives=selection.alternatives,
        )

    def node(self, node: Node, now_s: float, verdict: str, reason: str) -> None:
        """Record what became of a node."""
        inputs: dict[str, Json] = {
            "node": node.name,
            "epoch": self._job.round.epoch,
            "strikes": node.strikes,
            "out": node.out,
        }
        self.decide(now_s, "node", verdict, reason, inputs=inputs)

    def plan(self, now_s: float) -> None:
        """Record that some of those who could are asked for a round."""
        current = self._job.round
        inputs = {"epoch": current.epoch, "quorum": current.plan.quorum, **current.plan.inputs}
        self.decide(now_s, "round", f"ask {', '.join(current.active)}", current.plan.reason, inputs=inputs)

    def choice(self, now_s: float, scores: tuple[NodeScore, ...], choice: Choice) -> None:
        """Record who goes on after a round, and report the round."""
        spec, current = self._job.spec, self._job.round
        out = choice.eliminated
        back = f"readmit {', '.join(choice.readmitted)}" if choice.readmitted else ""
        verdict = f"eliminate {', '.join(out)}" if out else back or "keep all"
        metrics = current.metrics
        inputs: dict[str, Json] = {
            "epoch": current.epoch,
            "policy": spec.policy,
            "score": spec.score,
            "time_criterion": spec.time_criterion,
            "weights": to_json(spec.weights),
            "measured_at_s": metrics.network.taken_at_s if metrics is not None else None,
            "eliminated": list(out),
            "readmitted": list(choice.readmitted),
            "late": list(current.late),
            "failed": to_json(current.failed),
        }
        self.decide(
            now_s,
            "eliminate",
            verdict,
            choice.reason,
            inputs=inputs,
            scores=scores,
            alternatives=choice.alternatives,
        )
        version = self._job.version
        report = epoch_report(current, version, choice, now_s, self._job.losses.get(version))
        self._job.reports[version] = report
        self.add(ReportEpoch(report=report))

    def loss(self, version: int, loss: float) -> None:
        """Report an epoch again, as its loss is known now."""
        report = self._job.reports.get(version)
        if report is not None:
            self.add(ReportEpoch(report=replace(report, loss=loss)))

    def failed(self, now_s: float, reason: str, *, cancelled: bool = False) -> None:
        """Say that the job has ended without a result."""
        state = "cancelled" if cancelled else "failed"
        self.decide(now_s, "job", state, reason)
        self.announce(state, reason)
        self.add(Fail(reason=reason, cancelled=cancelled))

    def finished(self, now_s: float, completed_at_s: float) -> None:
        """Say that the job has ended, whose final loss is known since `completed_at_s`."""
        job = self._job
        nodes = job.nodes.values()
        settled = {node.name: None for node in nodes if node.has(job.version)}
        job_s = now_s - job.started_at_s
        spent = {
            node.name: energy(
                job.spec.power, compute_s=node.compute_s, transfer_s=node.transfer_s, job_s=job_s
            )
            for node in nodes
        }
        summary = Summary(
            policy=job.spec.policy,
            epochs=job.spec.epochs,
            start_loss=job.losses.get(0),
            final_loss=job.losses[job.version],
            final_version=job.version,
            completion_s=completed_at_s - job.started_at_s,
            settle_s=max(0.0, now_s - completed_at_s),
            settled=tuple(settled),
            unsettled={node.name: node.absence for node in nodes if node.name not in settled},
            energy=spent,
            energy_total=total(spent.values()),
        )
        self.announce("completed", f"final loss {summary.final_loss:.4f} after {summary.completion_s:.1f} s")
        self.add(Finish(summary=summary))

    def _job_inputs(self) -> dict[str, Json]:
        document = to_json(self._job.spec)
        assert isinstance(document, dict)
        return document
