"""Serve the tuned model split over nodes, and degrade a link of its route while it generates."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from demo.session import Session
from orchestrator.client import ApiError
from orchestrator.errors import OrchestratorError
from scenarios.schema import Inference

TIE_MARGIN = 1e-4
"""A token may differ from the unsplit model's where the two best logits are closer than this (nats)."""
DEPLOY_TIMEOUT_S = 120.0
SEEN_TIMEOUT_S = 30.0
MOVES = ("redistribute", "resplit")


class ServingFailed(OrchestratorError):
    """The split deployment did not serve."""


@dataclass(slots=True, kw_only=True)
class Observed:
    """What was seen while text was generated; times are seconds since the request."""

    requested_at: float
    """Unix time of the request."""
    tokens: list[dict[str, Any]] = field(default_factory=list)
    text: str = ""
    degraded_at_s: float | None = None
    link: dict[str, Any] = field(default_factory=dict)


def request(wanted: Inference, model: str) -> dict[str, Any]:
    """Return what the API's deployment request takes of a scenario."""
    shared = {"min_nodes", "context_tokens", "thresholds", "cost", "monitor_interval_s"}
    return {"model": model, **wanted.model_dump(mode="json", include=shared)}


def deploy(session: Session, model: str) -> dict[str, Any]:
    """Deploy `model` as the scenario says and wait until it serves; return the deployment."""
    made = session.api.post("/api/v1/deployments", request(session.scenario.inference, model))
    path = f"/api/v1/deployments/{made['id']}"
    with session.console.status(f"{made['id']}: placing, sending shards, opening the ring"):
        settled = session.api.wait(
            path, lambda answer: answer["state"] in ("serving", "failed"), timeout_s=DEPLOY_TIMEOUT_S
        )
    if settled["state"] == "failed":
        raise ServingFailed(f"{made['id']} failed: {settled['reason']}")
    session.console.print(f"{made['id']} serves: {describe(settled['placement'])}", markup=False)
    return settled


def describe(placement: dict[str, Any]) -> str:
    """Say in one line where head and layers are."""
    stages = ", ".join(
        f"{stage['node']} layers {stage['first_layer']}–{stage['end_layer'] - 1}"
        for stage in placement["stages"]
    )
    return f"head on {placement['head']}; {stages}"


def generate_and_degrade(session: Session, deployment: dict[str, Any]) -> Observed:
    """Stream a completion; after some tokens degrade the access link of a stage's node, and watch."""
    wanted = session.scenario.inference
    body = {
        "model": deployment["id"],
        "prompt": wanted.prompt,
        "max_tokens": wanted.max_tokens,
        "stream": True,
    }
    seen = Observed(requested_at=time.time())
    began = time.monotonic()
    watcher: threading.Thread | None = None
    for chunk in session.api.stream("/v1/completions", body):
        if "error" in chunk:
            raise ServingFailed(f"{deployment['id']}: {chunk['error']['message']}")
        if "utopia" not in chunk:
            continue
        seen.tokens.append({**chunk["utopia"], "at_s": time.monotonic() - began})
        seen.text += chunk["choices"][0]["text"]
        if len(seen.tokens) == wanted.degrade.after_tokens:
            _degrade(session, deployment["placement"], seen, began)
            watcher = threading.Thread(target=_watch, args=(session, seen, began), name="watch-link")
            watcher.start()
        _tell(session, seen)
    if watcher is not None:
        watcher.join()
    session.console.print()
    return seen


def _degrade(session: Session, placement: dict[str, Any], seen: Observed, began: float) -> None:
    node = next(stage["node"] for stage in placement["stages"] if stage["node"] != placement["head"])
    link = next(link for link in session.spec.links if node in (link.a, link.b))
    now_s = link.a_to_b.delay_s
    seen.link = {
        "link": link.name,
        "node": node,
        "before_s": now_s,
        "after_s": now_s + session.scenario.inference.degrade.delay_s,
        "controller": _controllers_link(session, node),
    }
    session.testbed.degrade(link.name, delay_s=seen.link["after_s"])
    seen.degraded_at_s = time.monotonic() - began
    session.console.print(
        f"\n[bold red]degraded[/bold red] {link.name}: delay {now_s * 1e3:.0f} to "
        f"{seen.link['after_s'] * 1e3:.0f} ms (utopia degrade {link.name} --delay {seen.link['after_s']:.3f})"
    )


def _controllers_link(session: Session, node: str) -> dict[str, Any]:
    """Find the controller's link from the node to its switch, with the delay as measured before."""
    address = session.addresses[node]
    links = session.northbound.get("/northbound/v1/links")["links"]
    link = next(link for link in links if link["src"].get("ip") == address)
    return {"id": link["id"], "measured_before_s": link["delay_s"]["value"]}


def _watch(session: Session, seen: Observed, began: float) -> None:
    """Poll the controller until it measures the degraded delay, and note when."""
    halfway = (seen.link["before_s"] + seen.link["after_s"]) / 2
    deadline = time.monotonic() + SEEN_TIMEOUT_S
    path = f"/northbound/v1/links/{seen.link['controller']['id']}"
    while time.monotonic() < deadline:
        try:
            value = session.northbound.get(path)["delay_s"]["value"]
        except ApiError as error:
            seen.link["controller"]["error"] = str(error)
            return
        if value is not None and value > halfway:
            seen.link["controller"] |= {
                "measured_after_s": value,
                "seen_at_s": time.monotonic() - began,
            }
            return
        time.sleep(0.1)


def _tell(session: Session, seen: Observed) -> None:
    token = seen.tokens[-1]
    if len(seen.tokens) > 1 and token["epoch"] != seen.tokens[-2]["epoch"]:
        session.console.print(
            f"\n[bold green]switched[/bold green] to route epoch {token['epoch']} at token {token['index']}, "
            f"{token['replayed']} tokens replayed"
        )
    text = session.console.is_terminal and seen.text[-1:]
    if text:
        session.console.print(text, end="", markup=False, soft_wrap=True)


def figures(session: Session, deployment: dict[str, Any], seen: Observed, folder: str) -> dict[str, Any]:
    """Gather the deployment's figures, the unsplit reference among them."""
    from workers.models import generate

    wanted = session.scenario.inference
    reference, margins = generate(folder, wanted.prompt, wanted.max_tokens)
    tokens = [token["token"] for token in seen.tokens]
    path = f"/api/v1/deployments/{deployment['id']}"
    decisions = [
        {**decision, "at_s": decision["at"] - seen.requested_at}
        for decision in session.api.items(f"{path}/decisions")
    ]
    decided = [item["at_s"] for item in decisions if item["verdict"] in MOVES and item["at_s"] > 0]
    first_epoch = seen.tokens[0]["epoch"]
    switched = next((token["at_s"] for token in seen.tokens if token["epoch"] != first_epoch), None)
    return {
        "deployment": deployment["id"],
        "prompt": wanted.prompt,
        "text": seen.text,
        "tokens": len(tokens),
        **compare(tokens, reference, margins),
        "placements": session.api.get(path)["placements"],
        "degrade": seen.link,
        "degraded_at_s": seen.degraded_at_s,
        "decided_at_s": decided[0] if decided else None,
        "committed_at_s": switched,
        "token_times": seen.tokens,
        "decisions": decisions,
    }


def compare(tokens: list[int], reference: list[int], margins: list[float]) -> dict[str, int]:
    """Count the tokens that differ from the unsplit model's.

    Where the first difference is a tie (the reference's two best logits closer than `TIE_MARGIN`), the two
    texts are different texts from there on: it counts as one tie and what follows is not compared.
    """
    pairs = list(zip(tokens, reference, margins, strict=False))
    first = next((index for index, (ours, theirs, _) in enumerate(pairs) if ours != theirs), None)
    if first is not None and pairs[first][2] < TIE_MARGIN:
        return {"mismatches": 0, "ties": 1}
    different = sum(ours != theirs for ours, theirs, _ in pairs)
    return {"mismatches": different + abs(len(tokens) - len(reference)), "ties": 0}
