"""Fit what the simulation and the score use: `python -m benchmarks.stragglers.fit [--curve] [--weights]`.

The curve is fitted on real training of the built-in model, with 1 to 24 of 24 nodes contributing; the weights
on simulated jobs, by the median reduction of elimination. Both print what `fitted.py` holds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from statistics import median

import numpy as np
import torch
from scipy.optimize import least_squares

from benchmarks.stragglers import arms, sweep
from benchmarks.stragglers.small import small_job
from orchestrator.core.scoring import CRITERIA, Weights
from orchestrator.finetune.messages import Aggregate, Contribution
from orchestrator.simulation.loss import Curve

FIT_SEED = 1001
"""Of the first network and partition; the figures use seeds from 1 on, far fewer than 1000."""
PARTITIONS = 24
CONTRIBUTORS = (1, 2, 4, 8, 16, 24)
SETUPS, NODES, SEEDS = (1, 2, 3), (12, 40), tuple(range(FIT_SEED, FIT_SEED + 4))
STEPS = 4
"""Weights are tried in quarters, of one, two or three criteria."""


def train(contributors: int) -> list[float]:
    """Return the held-out loss before and after each of the sweep's rounds, with the first `contributors`."""
    torch.set_num_threads(1)
    job = small_job(PARTITIONS, seed=FIT_SEED)
    nodes = job.nodes[:contributors]
    losses = [job.training.loss(0)]
    for epoch in range(sweep.EPOCHS):
        for node in nodes:
            job.training.train(node, epoch, epoch)
        shares = tuple(Contribution(node=node, weight=1.0) for node in nodes)
        job.training.aggregate(
            Aggregate(
                epoch=epoch,
                base_version=epoch,
                new_version=epoch + 1,
                outer_learning_rate=1.0,
                contributions=shares,
            )
        )
        losses.append(job.training.loss(epoch + 1))
    return losses


def fit_curve(contributors: Sequence[int], losses: Sequence[Sequence[float]]) -> tuple[Curve, float]:
    """Fit a curve to `losses` (a list per number of contributors); returns it and the RMS error in nats."""
    seen = np.array(losses)
    rounds = np.arange(seen.shape[1])
    counts = np.array(contributors, dtype=float)[:, None]

    def model(values: np.ndarray) -> np.ndarray:
        start, floor, scale, power, noise = values
        left = (1 + rounds / scale) ** -power
        return floor + (start - floor) * left + noise / counts * (1 - left)

    start = float(seen[:, 0].mean())
    found = least_squares(
        lambda values: (model(values) - seen).ravel(),
        x0=[start, 0.6 * start, 3.0, 0.7, 0.1],
        bounds=([0.5 * start, 0.0, 1e-2, 1e-2, 0.0], [2 * start, 0.98 * start, 1e4, 10.0, start]),
    )
    start, floor, scale, power, noise = (float(value) for value in found.x)
    curve = Curve(start=start, floor=floor, scale=scale, power=power, noise=noise)
    return curve, float(np.sqrt(np.mean(found.fun**2)))


def candidates() -> list[Weights]:
    """Return all weights in steps of a quarter, and equal ones."""
    found = [
        Weights(**dict(zip(CRITERIA, (share / STEPS for share in shares), strict=True)))
        for shares in itertools.product(range(STEPS + 1), repeat=len(CRITERIA))
        if sum(shares) == STEPS
    ]
    return [Weights(), *found]


def reduction(case: sweep.Case, weights: Sequence[Weights]) -> list[float]:
    """Return what elimination with each of `weights` saves against all resources."""
    slow_s = _completion_s(case, arms.ALL)
    return [1 - _completion_s(case, arms.eliminating("candidate", one)) / slow_s for one in weights]


def _completion_s(case: sweep.Case, arm: arms.Arm) -> float:
    summary = sweep.run(case, arm).summary
    assert summary is not None
    return summary.completion_s


def fit_weights(cases: Sequence[sweep.Case], weights: Sequence[Weights], *, processes: int) -> list[float]:
    """Return the median reduction of each of `weights` over `cases`."""
    with ProcessPoolExecutor(max_workers=processes) as pool:
        found = list(pool.map(reduction, cases, [weights] * len(cases)))
    return [median(values) for values in zip(*found, strict=True)]


def main() -> int:
    """Fit what is asked for, both if nothing is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stragglers.fit", description=__doc__)
    parser.add_argument("--curve", action="store_true", help="the loss curve: about 2 CPU minutes")
    parser.add_argument("--weights", action="store_true", help="the score's weights: about 6 CPU minutes")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    both = not (options.curve or options.weights)
    if options.curve or both:
        with ProcessPoolExecutor(max_workers=options.processes) as pool:
            losses = list(pool.map(train, CONTRIBUTORS))
        for count, seen in zip(CONTRIBUTORS, losses, strict=True):
            print(f"{count:3} contribute: " + " ".join(f"{loss:.4f}" for loss in seen))
        curve, error = fit_curve(CONTRIBUTORS, losses)
        print(f"{curve}, RMS error {error:.4f} nats")
    if options.weights or both:
        cases = list(sweep.cases(SETUPS, NODES, SEEDS))
        tried = candidates()
        medians = fit_weights(cases, tried, processes=options.processes)
        for value, one in sorted(zip(medians, tried, strict=True), key=lambda pair: -pair[0])[:10]:
            print(f"{value:.4f} {asdict(one)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
