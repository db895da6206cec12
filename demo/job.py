"""The main job, phase by phase; whatever happens, what was started is taken down again."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import envelope
from benchmarks.envelope import Target
from demo import measuring, report, serving, tuning
from demo.session import Phases, Session
from orchestrator.client import Client
from orchestrator.errors import OrchestratorError
from scenarios.schema import Scenario
from topologies import specs, testbed

ERROR_LIMIT = 0.20
START_LOSS = (2.3, 2.5)
MINUTES_LIMIT = 8.0
DEVICE_LATENESS_LIMIT = 0.1
LOG_WIDTH = 130


class DemoError(OrchestratorError):
    """The demo could not run to its end."""


def run(scenario: Scenario, *, scenario_path: str, json_path: str) -> int:
    """Run the main job; write its figures to `json_path` and the report beside it; return the exit code."""
    if not scenario.devices.trusted:
        raise DemoError(
            f"scenario {scenario_path}: devices.trusted is empty, so no node may hold embedding and head; "
            "name at least one host, such as [h1]"
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    phases = Phases(console)
    with _terminable():
        result = _run_on_testbed(scenario, scenario_path, phases)
    seconds = sum(phase["seconds"] for phase in phases.done)
    result |= {"command": " ".join(["utopia", *sys.argv[1:]]), "phases": phases.done}
    result["targets"] = [target.to_json() for target in targets(result, seconds)]
    path = Path(json_path)
    envelope.write(path, result)
    report.write(path.with_suffix(".html"), result)
    console.print(_target_table(result["targets"]))
    console.print(f"{seconds:.0f} s in all. Figures: {path}; report: {path.with_suffix('.html')}")
    return 0


@contextmanager
def _terminable() -> Iterator[None]:
    """Turn SIGTERM into an ordinary exception, so that the testbed is taken down."""

    def stop(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_on_testbed(scenario: Scenario, scenario_path: str, phases: Phases) -> dict[str, Any]:
    console = phases.console
    try:
        with phases.phase("Controller, network, orchestrator, workers"):
            status = testbed.up(scenario, scenario_path=scenario_path, tied=True, progress=console.print)
    except testbed.AlreadyUp:
        raise DemoError(
            f"testbed {scenario.network.prefix} is already up; stop it first: make mininet-down"
        ) from None
    except testbed.TestbedError as error:
        raise DemoError(str(error)) from error
    try:
        return _phases(_session(scenario, status.to_json(), console), status.to_json(), phases)
    finally:
        with phases.phase("Taking everything down"):
            removed = testbed.down(scenario.network.prefix, progress=lambda _text: None)
            console.print(f"{len(removed)} things removed")


def _session(scenario: Scenario, status: Mapping[str, Any], console: Console) -> Session:
    return Session(
        scenario=scenario,
        spec=specs.network_spec(scenario),
        console=console,
        api=Client(status["urls"]["api"]),
        northbound=Client(status["urls"]["northbound"]),
        testbed=testbed.Client(scenario.network.prefix),
        addresses={host["name"]: host["ip"] for host in status["hosts"]},
    )


def _phases(session: Session, status: Mapping[str, Any], phases: Phases) -> dict[str, Any]:
    with phases.phase("Measuring every path"):
        measured = measuring.wait_until_measured(session)
        session.console.print(measuring.table(measured))
    runs: dict[str, Any] = {}
    for policy in session.scenario.finetune.policies:
        with phases.phase(f"Fine-tuning: {tuning.NAMES[policy]}"):
            runs[policy] = tuning.run(session, policy)
    session.console.print(tuning.table(runs))
    tuned = list(runs.values())[-1]
    with phases.phase("Split inference over a network that changes"):
        deployment = serving.deploy(session, f"job:{tuned['job']}")
        seen = serving.generate_and_degrade(session, deployment)
        inference = serving.figures(session, deployment, seen, tuned["model_folder"])
        session.console.print(_inference_table(inference))
    return {
        "scenario": session.scenario.name,
        "seed": session.scenario.seed,
        "commit": envelope.commit(),
        "finished_at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "machine": envelope.machine(),
        "profile": _profile(session, status) | {"device_lateness": tuning.device_lateness(runs)},
        "network": {"hosts": status["hosts"], "links": status["links"]},
        "measured": measured,
        "finetune": runs,
        "comparison": tuning.comparison(runs),
        "inference": inference,
    }


def _profile(session: Session, status: Mapping[str, Any]) -> dict[str, Any]:
    """Say what was emulated, and how well the emulation kept up."""
    return {
        "links": f"emulated, Pekel 2025 Table I setup {session.scenario.links.setup}",
        "devices": "emulated by pacing" if session.scenario.devices.pacing else "this machine, unpaced",
        "trusted": list(session.scenario.devices.trusted),
        "datapath": status["datapath"],
        "congestion_control": status["congestion_control"],
        "emulation": {
            key: value for key, value in session.testbed.emulation().items() if not isinstance(value, dict)
        },
    }


def targets(result: Mapping[str, Any], seconds: float) -> list[Target]:
    """Compute the demo's targets from its rows."""
    start_loss = next(iter(result["finetune"].values()))["start_loss"]
    inference = result["inference"]
    found = [
        Target(name="delay_error_max", value=_worst(result, "delay"), op="<=", limit=ERROR_LIMIT),
        Target(name="bandwidth_error_max", value=_worst(result, "rate"), op="<=", limit=ERROR_LIMIT),
        Target(name="start_loss_low", value=start_loss, op=">=", limit=START_LOSS[0]),
        Target(name="start_loss_high", value=start_loss, op="<=", limit=START_LOSS[1]),
        Target(name="nodes_in_route", value=_nodes_in_route(inference), op=">=", limit=3),
        Target(name="token_mismatches", value=inference["mismatches"], op="<=", limit=0),
        Target(name="route_changed", value=len(inference["placements"]) > 1, op="==", limit=True),
        Target(name="minutes", value=seconds / 60, op="<=", limit=MINUTES_LIMIT),
        Target(name="links_kept_up", value=result["profile"]["emulation"]["kept_up"], op="==", limit=True),
        Target(
            name="device_lateness_p90",
            value=result["profile"]["device_lateness"]["p90"],
            op="<=",
            limit=DEVICE_LATENESS_LIMIT,
        ),
    ]
    if result["comparison"]:
        reduction = result["comparison"]["completion_reduction_ratio"]
        found.append(Target(name="completion_reduction_ratio", value=reduction, op=">=", limit=0.0))
    return found


def _worst(result: Mapping[str, Any], metric: str) -> float:
    return max(row["error"][metric] for row in result["measured"])


def _nodes_in_route(inference: Mapping[str, Any]) -> int:
    first = inference["placements"][0]
    return len({first["head"], *(stage["node"] for stage in first["stages"])})


def _inference_table(inference: Mapping[str, Any]) -> Table:
    made = Table(title="Split inference", title_justify="left", box=None, show_header=False)
    made.add_column("what")
    made.add_column("figure", overflow="fold")
    link = inference["degrade"]
    controller = link.get("controller", {})
    made.add_row(
        "tokens, differing from the unsplit model", f"{inference['tokens']}, {inference['mismatches']}"
    )
    for placement in inference["placements"]:
        made.add_row(f"route epoch {placement['epoch']}", serving.describe(placement))
    if "seen_at_s" in controller:
        made.add_row(
            f"controller saw {link['link']}",
            f"{controller['measured_before_s'] * 1e3:.1f} to {controller['measured_after_s'] * 1e3:.1f} ms, "
            f"{controller['seen_at_s'] - inference['degraded_at_s']:.1f} s after the change",
        )
    if inference["committed_at_s"] is not None:
        made.add_row("new route after", f"{inference['committed_at_s'] - inference['degraded_at_s']:.1f} s")
    return made


def _target_table(found: list[dict[str, Any]]) -> Table:
    made = Table(title="Targets", title_justify="left", box=None)
    for column in ("target", "value", "limit", ""):
        made.add_column(column)
    for target in found:
        value = target["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        made.add_row(
            target["name"], shown, f"{target['op']} {target['limit']}", "met" if target["met"] else "MISSED"
        )
    return made
