"""The simulated job with real training at small scale as its loss: equal and Dirichlet partitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from benchmarks.stragglers import sweep
from benchmarks.stragglers.arms import Arm
from benchmarks.stragglers.small import SmallJob, small_job
from orchestrator.finetune.job_workload import makeup
from orchestrator.simulation import Work

ALPHA = 0.3
PARTITIONS = ("equal", f"Dirichlet({ALPHA})")


def run(task: tuple[sweep.Case, Arm, str]) -> sweep.Row:
    """Simulate one job, training for real; what is sent and timed is the full-size job."""
    torch.set_num_threads(1)
    case, arm, partition = task
    job = small_job(
        case.nodes, seed=case.seed, epochs=sweep.EPOCHS, dirichlet=None if partition == "equal" else ALPHA
    )
    result = sweep.run(case, arm, loss=job.training, work=work_of(job))
    return sweep.row_of(case, arm, result, partition=partition) | {"where": "simulation, trained"}


def work_of(job: SmallJob) -> Work:
    """Return the full-size work on the job's partitions: data as they are dealt, as many samples each."""
    work = sweep.work_of(job.nodes)
    total = sum(len(part) for part in job.partitions.values())
    tasks = {
        node: replace(work.tasks[node], data_bytes=max(1, round(sweep.DATA_BYTES * len(part) / total)))
        for node, part in job.partitions.items()
    }
    return replace(work, tasks=tasks, makeup=makeup(job.partitions))


def train(
    cases: Sequence[sweep.Case],
    arms: Sequence[Arm],
    partitions: Sequence[str],
    *,
    processes: int,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Run every case with every arm on each kind of partition."""
    tasks = [(case, arm, partition) for case in cases for partition in partitions for arm in arms]
    rows = []
    with ProcessPoolExecutor(max_workers=processes) as pool:
        for number, row in enumerate(pool.map(run, tasks), start=1):
            rows.append(row)
            progress(number, len(tasks))
    return rows
