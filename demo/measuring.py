"""Wait until the controller has measured every path; compare with the configured values."""

from __future__ import annotations

import time
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from demo.session import ORCHESTRATOR, Session
from orchestrator.errors import OrchestratorError

LOSS_SAMPLES = 200
TIMEOUT_S = 120.0


class NotMeasured(OrchestratorError):
    """The controller did not measure every path in time."""


def wait_until_measured(session: Session) -> list[dict[str, Any]]:
    """Wait for delay, capacity and enough loss samples of the path to every node; return the rows.

    Raises:
        NotMeasured: some path is still unknown after `TIMEOUT_S`; the text has the controller's reasons.
    """
    nodes = sorted(set(session.addresses) - {ORCHESTRATOR}, key=lambda name: int(name[1:]))
    deadline = time.monotonic() + TIMEOUT_S
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=session.console, transient=True) as progress:
        bar = progress.add_task("paths measured", total=len(nodes))
        while True:
            paths = _paths_from_orchestrator(session)
            missing = {node: _missing(paths.get(session.addresses[node])) for node in nodes}
            missing = {node: reason for node, reason in missing.items() if reason}
            progress.update(
                bar,
                completed=len(nodes) - len(missing),
                description=f"paths measured: {len(nodes) - len(missing)} of {len(nodes)}",
            )
            if not missing:
                links = {link["id"]: link for link in session.northbound.get("/northbound/v1/links")["links"]}
                return [_row(session, node, paths[session.addresses[node]], links) for node in nodes]
            if time.monotonic() > deadline:
                reasons = "; ".join(f"{node}: {reason}" for node, reason in missing.items())
                raise NotMeasured(f"not measured within {TIMEOUT_S:g} s: {reasons}")
            time.sleep(0.5)


def _paths_from_orchestrator(session: Session) -> dict[str, Any]:
    answer = session.northbound.get("/northbound/v1/paths", src=session.addresses[ORCHESTRATOR])
    return {path["dst"]: path for path in answer["paths"]}


def _missing(path: Any) -> str | None:
    if path is None:
        return "the controller has not seen this host"
    for metric in ("delay_s", "loss_ratio", "capacity_bps"):
        if path[metric]["value"] is None:
            return f"{metric}: {path[metric]['reason']}"
    if path["loss_ratio"]["samples"] < LOSS_SAMPLES:
        return f"loss_ratio: {path['loss_ratio']['samples']} of {LOSS_SAMPLES} samples"
    return None


def _row(session: Session, node: str, path: Any, links: dict[str, Any]) -> dict[str, Any]:
    """Compare one path; its capacity is that of the last link, so that link says where it comes from."""
    configured = session.spec.end_to_end(node)
    loss = path["loss_ratio"]
    measured = {
        "delay_s": path["delay_s"]["value"],
        "capacity_bps": path["capacity_bps"]["value"],
        "capacity_source": links[path["links"][-1]]["capacity_bps"]["source"],
        "available_bps": path["available_bps"]["value"],
        "loss_ratio": loss["value"],
        "loss_low": loss["low"],
        "loss_high": loss["high"],
        "loss_samples": loss["samples"],
    }
    return {
        "node": node,
        "ip": session.addresses[node],
        "power": next(host.device.power for host in session.spec.hosts if host.name == node),
        "configured": {
            "rate_bps": configured.rate_bps,
            "delay_s": configured.delay_s,
            "loss_ratio": configured.loss_ratio,
        },
        "measured": measured,
        "error": {
            "delay": abs(measured["delay_s"] / configured.delay_s - 1),
            "rate": abs(measured["capacity_bps"] / configured.rate_bps - 1),
        },
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Return measured next to configured, a line per node."""
    made = Table(title="Orchestrator to node: configured / measured", title_justify="left", box=None)
    for column in ("node", "delay ms", "error", "Mbit/s", "error", "loss %", "95 % interval"):
        made.add_column(column, justify="right")
    for row in rows:
        configured, measured, error = row["configured"], row["measured"], row["error"]
        made.add_row(
            row["node"],
            f"{configured['delay_s'] * 1e3:.1f} / {measured['delay_s'] * 1e3:.1f}",
            f"{error['delay']:.1%}",
            f"{configured['rate_bps'] / 1e6:.2f} / {measured['capacity_bps'] / 1e6:.2f}",
            f"{error['rate']:.1%}",
            f"{configured['loss_ratio'] * 100:.2f} / {measured['loss_ratio'] * 100:.2f}",
            _interval(measured),
        )
    return made


def _interval(measured: dict[str, Any]) -> str:
    if measured["loss_low"] is None:
        return "–"
    return f"{measured['loss_low'] * 100:.2f} to {measured['loss_high'] * 100:.2f}"
