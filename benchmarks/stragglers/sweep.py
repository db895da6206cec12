"""Simulate every case with every arm on all cores, with the same seeds, so that they compare in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from math import inf
from typing import Any

from benchmarks.stragglers.arms import ALL, BEST_SET, Arm
from benchmarks.stragglers.fitted import CURVE
from benchmarks.stragglers.worlds import world
from orchestrator.core.selection import PlanOptions
from orchestrator.core.selection.progress import least_nodes
from orchestrator.simulation import Measuring, Result, Task, Work, World, simulate
from orchestrator.simulation.loss import FittedLoss, LossModel
from scenarios.schema import Scenario, parse
from topologies.specs import network_spec

EPOCHS = 10
MODEL_BYTES = 500_000_000
DATA_BYTES = 1_000_000_000
PARAMETERS = MODEL_BYTES // 4
BYTES_PER_TOKEN = 4
"""Of text, with a vocabulary of tens of thousands."""
TOKENS_PER_SAMPLE = 128
RATE_FLOOR_BPS = 100e3
FLOPS_PER_POWER = 1e12
"""A power of 30, the mean of Pekel 2025, is 30 TFLOP/s: an edge accelerator."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network and a job to simulate; `rate_floor_bps` clips the drawn bandwidths.

    `error` is the relative standard error of what is measured of delay, bandwidth and compute; None: usual.
    """

    setup: int
    nodes: int
    seed: int
    congestion_control: str = "bbr"
    rate_floor_bps: float = RATE_FLOOR_BPS
    error: float | None = None


def scenario(case: Case) -> Scenario:
    """Return the case's scenario: Pekel 2025, section IV."""
    return parse(
        {
            "name": f"stragglers-{case.setup}-{case.nodes}-{case.seed}",
            "seed": case.seed,
            "topology": {"hosts": case.nodes, "domains": 3},
            "links": {"setup": case.setup, "rate_floor_bps": case.rate_floor_bps},
            "devices": {"flops_per_power": FLOPS_PER_POWER, "layer_overhead_s": 0, "trusted": []},
            "finetune": {"epochs": EPOCHS, "policies": ["all"]},
        },
        source="stragglers",
    )


@lru_cache(maxsize=4)
def world_of(case: Case) -> World:
    """Return the case's network."""
    return world(network_spec(scenario(case)), congestion_control=case.congestion_control)


def work_of(nodes: Sequence[str]) -> Work:
    """Return the paper's job: an epoch is one pass over a node's equal part of the data."""
    part = DATA_BYTES // len(nodes)
    tokens = part // BYTES_PER_TOKEN
    samples = tokens // TOKENS_PER_SAMPLE
    task = Task(data_bytes=part, tokens=tokens, steps=1, samples=samples)
    return Work(
        parameters=PARAMETERS,
        layers=0,
        model_bytes=MODEL_BYTES,
        update_bytes=MODEL_BYTES,
        tasks=dict.fromkeys(nodes, task),
    )


def run(
    case: Case,
    arm: Arm,
    *,
    nodes: tuple[str, ...] | None = None,
    loss: LossModel | None = None,
    work: Work | None = None,
) -> Result:
    """Simulate one job; `nodes` take part, all if None.

    Raises:
        RuntimeError: it did not complete.
    """
    place = world_of(case)
    everybody = tuple(node.name for node in place.nodes)
    work = work or work_of(everybody)
    samples = next(iter(work.tasks.values())).samples
    result = simulate(
        arm.spec(nodes or everybody, EPOCHS),
        world=place,
        work=work,
        loss=loss or FittedLoss(CURVE, samples_per_round=samples),
        seed=case.seed,
        measuring=measuring(case),
    )
    if result.summary is None:
        raise RuntimeError(f"{case}, {arm.name}: {result.failure}")
    return result


def measuring(case: Case) -> Measuring:
    """Return how well the case's network and devices are known."""
    if case.error is None:
        return Measuring()
    return Measuring(delay_error=case.error, rate_error=case.error, compute_error=case.error)


def row_of(case: Case, arm: Arm, result: Result, *, partition: str = "equal") -> Row:
    """Return a simulated job as a row."""
    summary = result.summary
    assert summary is not None
    return {
        "where": "simulation",
        "setup": case.setup,
        "nodes": case.nodes,
        "seed": case.seed,
        "congestion_control": case.congestion_control,
        "rate_floor_bps": case.rate_floor_bps,
        "measurement_error": case.error,
        "arm": arm.name,
        "policy": arm.policy,
        "partition": partition,
        "completion_s": summary.completion_s,
        "settle_s": summary.settle_s,
        "loss": [summary.start_loss, *(report.loss for report in result.epochs)],
        "contributed": [len(report.contributed) for report in result.epochs],
        "energy_j": summary.energy_total.total_j,
        "sent_bytes": sum(use.sent_bytes for use in result.uses.values()),
        "received_bytes": sum(use.received_bytes for use in result.uses.values()),
        "loss_source": result.loss_source,
    }


def run_case(case: Case, arms: Sequence[Arm]) -> list[Row]:
    """Simulate a case with each arm."""
    return [row_of(case, arm, run(case, arm)) for arm in arms]


def run_with_bound(case: Case, arms: Sequence[Arm]) -> list[Row]:
    """Simulate a case with each arm, and with the best set that can be named once all is known."""
    return [*run_case(case, arms), best_set(case)]


def best_set(case: Case) -> Row:
    """Simulate the case with the fastest nodes from the start, as few as `plan` may take.

    Nodes have equal samples, so any set that `plan` may take has a member that is no faster than the slowest
    of these: no fixed set is done before, but for what transfers take from each other.
    """
    everybody = run(case, ALL)
    took = {
        name: sum(report.node_round_s[name] or inf for report in everybody.epochs)
        for name in everybody.epochs[0].node_round_s
    }
    options = PlanOptions()
    keep = least_nodes(case.nodes, noise_nodes=options.noise_nodes, least_efficiency=options.least_efficiency)
    members = tuple(sorted(took, key=lambda name: took[name])[:keep])
    return row_of(case, BEST_SET, run(case, BEST_SET, nodes=members))


def sweep(
    cases: Sequence[Case], arms: Sequence[Arm], *, processes: int, progress: Callable[[int, int], None]
) -> list[Row]:
    """Simulate all cases in `processes` processes; rows come in the order of the cases."""
    rows: list[Row] = []
    with ProcessPoolExecutor(max_workers=processes) as pool:
        found = pool.map(run_with_bound, cases, [arms] * len(cases), chunksize=2)
        for number, made in enumerate(found, start=1):
            rows += made
            progress(number, len(cases))
    return rows


def cases(setups: Sequence[int], nodes: Sequence[int], seeds: Sequence[int], **more: Any) -> Iterator[Case]:
    """Return all combinations, the costly ones first, so that processes end together."""
    for count in sorted(nodes, reverse=True):
        for setup in setups:
            for seed in seeds:
                yield replace(Case(setup=setup, nodes=count, seed=seed), **more)
