"""The simulated job with real training at small scale as its loss: equal and Dirichlet partitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import torch

from benchmarks.stragglers import sweep
from benchmarks.stragglers.arms import Arm
from benchmarks.stragglers.small import small_job
from orchestrator.finetune.job_workload import makeup

ALPHA = 0.3
PARTITIONS = ("equal", f"Dirichlet({ALPHA})")


def run(task: tuple[sweep.Case, Arm, str]) -> sweep.Row:
    """Simulate one job, training for real; what is sent and timed is the full-size job."""
    torch.set_num_threads(1)
    case, arm, partition = task
    job = small_job(case.nodes, seed=case.seed, dirichlet=None if partition == "equal" else ALPHA)
    work = replace(sweep.work_of(job.nodes), makeup=makeup(job.partitions))
    result = sweep.run(case, arm, loss=job.training, work=work)
    return sweep.row_of(case, arm, result, partition=partition) | {"where": "simulation, trained"}


def train(
    cases: Sequence[sweep.Case],
    arms: Sequence[Arm],
    *,
    processes: int,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Run every case with every arm on both kinds of partition."""
    tasks = [(case, arm, partition) for case in cases for partition in PARTITIONS for arm in arms]
    rows = []
    with ProcessPoolExecutor(max_workers=processes) as pool:
        for number, row in enumerate(pool.map(run, tasks), start=1):
            rows.append(row)
            progress(number, len(tasks))
    return rows
