"""Fine-tune once per policy, same seeds, and compare."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from demo.session import Session
from orchestrator.errors import OrchestratorError

NAMES = {"all": "all resources", "eliminate": "node elimination", "random": "random elimination"}
_ENDED = ("completed", "failed", "cancelled", "interrupted")


class TuningFailed(OrchestratorError):
    """A fine-tuning job did not complete."""


def run(session: Session, policy: str) -> dict[str, Any]:
    """Run the scenario's job with `policy`, telling each epoch as it ends; return its figures."""
    tuning = session.scenario.finetune
    body = tuning.model_dump(mode="json", exclude={"policies"})
    body |= {"policy": policy, "model": session.scenario.model, "seed": session.scenario.seed}
    job = session.api.post("/api/v1/jobs", body)["id"]
    session.console.print(f"{job}: {NAMES[policy]}, {tuning.epochs} epochs")
    _follow(session, job)
    done = session.api.get(f"/api/v1/jobs/{job}")
    if done["state"] != "completed":
        raise TuningFailed(f"{job} ({NAMES[policy]}) is {done['state']}: {done['reason']}")
    return _figures(policy, done, session.api.items(f"/api/v1/jobs/{job}/decisions"))


def _follow(session: Session, job: str) -> None:
    told: set[int] = set()
    doing = ""
    console = session.console
    with console.status("sending model and data to every node") as status:
        for kind, event in session.api.events(f"/api/v1/jobs/{job}/events"):
            if kind == "state":
                status.update(f"{event['state']}: {event['reason']}")
                if event["state"] in _ENDED:
                    return
            elif kind == "progress":
                status.update(f"{event['text']}: {event['share']:.0%}")
                if event["text"] != doing:
                    doing = event["text"]
                    console.print(f"  {doing}")
            elif kind == "epoch" and event["loss"] is not None and event["epoch"] not in told:
                told.add(event["epoch"])
                console.print(
                    f"  epoch {event['epoch'] + 1}: loss {event['loss']:.4f}, {event['seconds']:.1f} s, "
                    f"{len(event['active'])} nodes: {' '.join(event['active'])}"
                )
            elif kind == "decision" and event["kind"] == "eliminate":
                _tell_decision(console, event)


def _tell_decision(console: Console, decision: dict[str, Any]) -> None:
    ranked = sorted(decision["scores"], key=lambda score: score["rank"])
    if ranked:
        scores = " ".join(f"{score['node']} {score['score']:.2f}" for score in ranked)
        console.print(f"    scores: {scores}", style="dim", markup=False)
    console.print(f"    {decision['verdict']}: {decision['reason']}", markup=False)


def _figures(policy: str, job: dict[str, Any], decisions: list[dict[str, Any]]) -> dict[str, Any]:
    summary = job["summary"]
    by_epoch = {
        decision["inputs"]["epoch"]: decision for decision in decisions if decision["kind"] == "eliminate"
    }
    began = min(epoch["started_at_s"] for epoch in job["epochs"])
    return {
        "name": NAMES[policy],
        "job": job["id"],
        "start_loss": summary["start_loss"],
        "final_loss": summary["final_loss"],
        "completion_s": summary["completion_s"],
        "settle_s": summary["settle_s"],
        "unsettled": summary["unsettled"],
        "bytes_sent": summary.get("sent_bytes"),
        "bytes_received": summary.get("received_bytes"),
        "model_folder": summary.get("model_folder"),
        "epochs": [_epoch(epoch, by_epoch.get(epoch["epoch"]), began) for epoch in job["epochs"]],
    }


def _epoch(epoch: dict[str, Any], decision: dict[str, Any] | None, began_s: float) -> dict[str, Any]:
    ended_s = epoch["started_at_s"] - began_s + epoch["seconds"]
    return {
        "epoch": epoch["epoch"] + 1,
        "active": epoch["active"],
        "contributed": epoch["contributed"],
        "failed": epoch["failed"],
        "eliminated": epoch["eliminated"],
        "scores": {score["node"]: score["score"] for score in decision["scores"]} if decision else {},
        "reason": decision["reason"] if decision else "",
        "loss": epoch["loss"],
        "seconds": epoch["seconds"],
        "ended_s": ended_s,
        "node_train_s": epoch["node_train_s"],
        "node_round_s": epoch["node_round_s"],
        "node_late_s": epoch["node_late_s"],
    }


def device_lateness(runs: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Say how much longer than the emulated devices the real work took, as a share of the device's time.

    0.1 means that a node's epoch took 10 % longer than its device would have; over all nodes, epochs, runs.
    """
    shares = sorted(
        late / (took - late)
        for figures in runs.values()
        for epoch in figures["epochs"]
        for node, took in epoch["node_train_s"].items()
        if took is not None and (late := epoch["node_late_s"][node] or 0.0) < took
    )
    if not shares:
        return {"p50": None, "p90": None, "max": None}
    return {
        "p50": shares[len(shares) // 2],
        "p90": shares[int(0.9 * (len(shares) - 1))],
        "max": shares[-1],
    }


def comparison(runs: dict[str, dict[str, Any]]) -> dict[str, float] | None:
    """Return what elimination saved against all resources, and what it cost in loss."""
    if "all" not in runs or "eliminate" not in runs:
        return None
    everybody, eliminated = runs["all"], runs["eliminate"]
    return {
        "completion_reduction_ratio": 1 - eliminated["completion_s"] / everybody["completion_s"],
        "loss_difference_ratio": eliminated["final_loss"] / everybody["final_loss"] - 1,
    }


def table(runs: dict[str, dict[str, Any]]) -> Table:
    """Return the policies side by side."""
    made = Table(title="Fine-tuning", title_justify="left", box=None)
    for column in ("policy", "completion s", "all consistent s", "start loss", "final loss"):
        made.add_column(column, justify="left" if column == "policy" else "right")
    for figures in runs.values():
        made.add_row(
            figures["name"],
            f"{figures['completion_s']:.1f}",
            f"{figures['settle_s']:.1f}",
            f"{figures['start_loss']:.4f}",
            f"{figures['final_loss']:.4f}",
        )
    return made
