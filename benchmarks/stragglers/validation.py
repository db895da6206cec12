"""Hold the simulation against the emulation: the same scenario, the same job, the same policy."""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.stragglers import arms, emulation
from benchmarks.stragglers.arms import Arm
from benchmarks.stragglers.emulation import Progress, Testbed
from benchmarks.stragglers.replay import Replayed
from benchmarks.stragglers.small import cached_models
from benchmarks.stragglers.worlds import world
from orchestrator.adapters.models import FolderModels
from orchestrator.finetune.data import split
from orchestrator.ports import Model
from orchestrator.simulation import Orchestrator, Task, Work, simulate
from orchestrator.simulation.loss import Curve, FittedLoss
from scenarios.schema import Scenario, parse

HOSTS, EPOCHS = 5, 3
_EVALUATIONS = 3
COMPARED = (arms.ALL, arms.RANDOM, arms.FITTED)
"""These decide the same in both worlds if times agree: by nothing, by lot, by the times themselves."""
_UNUSED_CURVE = Curve(start=2.4, floor=1.0, scale=1.0, power=0.5, noise=0.0, memory=0.0, rounds=EPOCHS)


def scenario(setup: int, *, seed: int, prefix: str, port: int) -> Scenario:
    """Return a small scenario of `setup`: transfers of seconds, devices that two cores can emulate."""
    return parse(
        {
            "name": f"validate-{setup}-{seed}",
            "seed": seed,
            "topology": {"hosts": HOSTS, "domains": 2},
            "links": {"setup": setup, "rate_floor_bps": 3e6},
            "devices": {"power_min": 12, "trusted": ["h1"]},
            "network": {
                "prefix": prefix,
                "openflow_port": port,
                "northbound_port": port + 1500,
                "api_port": port + 1501,
            },
            "finetune": {"epochs": EPOCHS, "policies": ["all"]},
        },
        source="validation",
    )


def measure(
    asked: Scenario, progress: Progress, compared: tuple[Arm, ...] = COMPARED
) -> list[dict[str, Any]]:
    """Emulate and simulate the scenario's job with each policy; one row per policy, both results in it."""
    models = cached_models()
    progress(f"{asked.name}: reading the built-in model, or making it")
    model = models.resolve("embedded", progress=lambda _share, _text: None)
    work, evaluate_s = _work(models, model, asked)
    rows = []
    with emulation.testbed_up(asked, progress) as bed:
        for arm in compared:
            row = emulation.run_job(bed, arm, model=str(model.folder), progress=progress)
            rows.append(row | {"profile": bed.profile, "metrics_s": bed.metrics_s})
        twin = Orchestrator(evaluate_s=evaluate_s, metrics_s=bed.metrics_s)
        return [
            _compare(bed, arm, row, work, twin, first=number == 0)
            for number, (arm, row) in enumerate(zip(compared, rows, strict=True))
        ]


def _work(models: FolderModels, model: Model, asked: Scenario) -> tuple[Work, float]:
    """Work out what the job sends and computes, and time one evaluation on this machine."""
    job, training = asked.finetune, asked.finetune.training
    tokens = models.tokens(model, data=job.data, max_bytes=job.data_bytes, seed=asked.seed)
    nodes = tuple(f"h{i}" for i in range(1, asked.topology.hosts + 1))
    parts = split(
        tokens,
        nodes=nodes,
        sequence=training.sequence_length,
        held_out_ratio=job.held_out_ratio,
        seed=asked.seed,
    )
    evaluate_s = _evaluation_s(models, model, parts.held_out, sequence=training.sequence_length)
    samples = training.local_steps * training.batch_size
    tasks = {
        name: Task(
            data_bytes=int(part.nbytes),
            tokens=samples * training.sequence_length,
            steps=training.local_steps,
            samples=samples,
        )
        for name, part in parts.partitions.items()
    }
    return Work(
        parameters=model.parameter_bytes // 4,
        layers=model.layers,
        model_bytes=model.parameter_bytes,
        update_bytes=model.parameter_bytes,
        tasks=tasks,
    ), evaluate_s


def _evaluation_s(models: FolderModels, model: Model, held_out: NDArray[np.int32], *, sequence: int) -> float:
    """Time an evaluation as the orchestrator makes it: in one thread, and not its first."""
    parameters, took = models.parameters(model), []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(1 + _EVALUATIONS):
            began = time.perf_counter()
            models.loss(model, parameters, held_out, sequence=sequence)
            took.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(took[1:])


def _compare(
    bed: Testbed, arm: Arm, row: dict[str, Any], work: Work, twin: Orchestrator, *, first: bool
) -> dict[str, Any]:
    """Simulate what was emulated; the connections of all but the testbed's first job know their paths."""
    control = row["profile"]["congestion_control"]
    place = replace(world(bed.spec, congestion_control=control), used_before=not first)
    found = simulate(
        arm.spec(tuple(work.tasks), bed.scenario.finetune.epochs),
        world=place,
        work=work,
        loss=FittedLoss(_UNUSED_CURVE, samples_per_round=1.0),
        seed=bed.scenario.seed,
        orchestrator=twin,
        observer=Replayed(place, row["seen"]),
    )
    if found.summary is None:
        raise RuntimeError(f"{bed.scenario.name}, {arm.name}: simulated job failed: {found.failure}")
    simulated = [report.seconds for report in found.epochs]
    emulated = [epoch["seconds"] for epoch in row["epochs"]]
    same = [list(report.eliminated) for report in found.epochs] == [
        epoch["eliminated"] for epoch in row["epochs"]
    ]
    return {
        "where": "validation",
        "scenario": bed.scenario.name,
        "setup": row["setup"],
        "nodes": row["nodes"],
        "seed": row["seed"],
        "arm": arm.name,
        "congestion_control": control,
        "emulated_completion_s": row["completion_s"],
        "simulated_completion_s": found.summary.completion_s,
        "completion_error": found.summary.completion_s / row["completion_s"] - 1,
        "epoch_errors": [mine / theirs - 1 for mine, theirs in zip(simulated, emulated, strict=True)],
        "same_choices": same,
        "emulated": row,
        "simulated_node_round_s": [dict(report.node_round_s) for report in found.epochs],
        "simulated_epoch_s": simulated,
        "links_kept_up": row["links_kept_up"],
    }
