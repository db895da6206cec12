"""Run fine-tuning jobs with real training on an emulated testbed, and collect what they took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks.stragglers.arms import Arm
from benchmarks.stragglers.replay import seen
from demo import measuring
from demo.session import ORCHESTRATOR, Session
from orchestrator.client import Client
from scenarios.schema import Scenario
from topologies import specs, testbed

Progress = Callable[[str], None]
_METRIC_READS = 5
_EPOCH_FIGURES = (
    "epoch",
    "started_at_s",
    "seconds",
    "loss",
    "active",
    "contributed",
    "eliminated",
    "node_round_s",
    "node_train_s",
)
_ENDED = ("completed", "failed", "cancelled", "interrupted")


class EmulationFailed(RuntimeError):
    """A job on the testbed did not complete."""


@dataclass(slots=True, kw_only=True)
class Testbed:
    """A testbed that is up and whose paths are measured."""

    __test__ = False

    scenario: Scenario
    spec: specs.NetworkSpec
    api: Client
    client: testbed.Client
    profile: dict[str, Any]
    metrics_s: float


@contextmanager
def testbed_up(scenario: Scenario, progress: Progress) -> Iterator[Testbed]:
    """Have the scenario's testbed up, measured, and taken down in the end."""
    prefix = scenario.network.prefix
    progress(f"{scenario.name}: starting {scenario.topology.hosts} hosts")
    status = testbed.up(scenario, tied=True, progress=lambda _text: None)
    try:
        northbound = Client(status.urls["northbound"], server="controller")
        session = Session(
            scenario=scenario,
            spec=specs.network_spec(scenario),
            console=Console(quiet=True),
            api=Client(status.urls["api"]),
            northbound=northbound,
            testbed=testbed.Client(prefix),
            addresses={host["name"]: host["ip"] for host in status.hosts},
        )
        progress(f"{scenario.name}: measuring every path")
        measuring.wait_until_measured(session)
        yield Testbed(
            scenario=scenario,
            spec=session.spec,
            api=session.api,
            client=session.testbed,
            profile={
                "datapath": status.datapath,
                "congestion_control": status.congestion_control,
                "devices": "emulated by pacing",
                "links": f"emulated, Pekel 2025 Table I setup {scenario.links.setup}",
            },
            metrics_s=_metrics_s(northbound, session.addresses[ORCHESTRATOR]),
        )
    finally:
        testbed.down(prefix, progress=lambda _text: None)


def run_job(bed: Testbed, arm: Arm, *, model: str, progress: Progress) -> dict[str, Any]:
    """Run the scenario's job with a policy; returns its figures as a row, with how late the emulation was.

    Raises:
        EmulationFailed: it did not complete.
    """
    scenario = bed.scenario
    body = scenario.finetune.model_dump(mode="json", exclude={"policies"})
    body |= {"model": model, "seed": scenario.seed, **arm.request()}
    job = bed.api.post("/api/v1/jobs", body)["id"]
    for kind, event in bed.api.events(f"/api/v1/jobs/{job}/events"):
        if kind == "state" and event["state"] in _ENDED:
            break
    done = bed.api.get(f"/api/v1/jobs/{job}")
    if done["state"] != "completed":
        raise EmulationFailed(f"{scenario.name}, {arm.name}: {job} is {done['state']}: {done['reason']}")
    emulation = bed.client.emulation()
    summary = done["summary"]
    progress(f"{scenario.name}: {arm.name} took {summary['completion_s']:.1f} s")
    return {
        "where": "emulation",
        "setup": scenario.links.setup,
        "nodes": scenario.topology.hosts,
        "seed": scenario.seed,
        "policy": arm.policy,
        "arm": arm.name,
        "partition": "equal",
        "congestion_control": bed.profile["congestion_control"],
        "rate_floor_bps": scenario.links.rate_floor_bps,
        "completion_s": summary["completion_s"],
        "settle_s": summary["settle_s"],
        "loss": [summary["start_loss"], *(epoch["loss"] for epoch in done["epochs"])],
        "loss_source": "real training on the testbed",
        "energy_j": summary.get("energy_total", {}).get("total_j"),
        "tokens_per_node": summary["tokens_per_node"],
        "epochs": [_epoch(epoch) for epoch in done["epochs"]],
        "links_kept_up": emulation["kept_up"],
        "device_lateness": _lateness(done["epochs"]),
        "seen": seen(bed.api.items(f"/api/v1/jobs/{job}/decisions")),
    }


def _epoch(epoch: Mapping[str, Any]) -> dict[str, Any]:
    names = (
        "epoch",
        "seconds",
        "loss",
        "active",
        "contributed",
        "eliminated",
        "node_round_s",
        "node_train_s",
    )
    return {name: epoch[name] for name in names}


def _lateness(epochs: list[dict[str, Any]]) -> float | None:
    """Return by how much real work outlasted the emulated devices' at p90, as a share of theirs."""
    shares = sorted(
        late / (took - late)
        for epoch in epochs
        for node, took in epoch["node_train_s"].items()
        if took is not None and (late := epoch["node_late_s"][node] or 0.0) < took
    )
    return shares[int(0.9 * (len(shares) - 1))] if shares else None


def _metrics_s(northbound: Client, source: str) -> float:
    """Time what the orchestrator does to read the network once."""
    took = []
    for _ in range(_METRIC_READS):
        began = time.perf_counter()
        northbound.get("/northbound/v1/paths", src=source)
        took.append(time.perf_counter() - began)
    return median(took)
