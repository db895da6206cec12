"""Fit what the simulation and the score use: `python -m benchmarks.stragglers.fit [--curve] [--weights]`.

The curve is fitted on real training of the built-in model with 2 to 24 of 24 nodes contributing, jobs that
lose nodes and jobs that gain them among it. It says where elimination must end. The weights are fitted on
simulated jobs, by the median reduction of elimination that ends there. It prints what `fitted.py` holds.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from statistics import median

import numpy as np
import torch
from scipy.optimize import least_squares, minimize_scalar

from benchmarks.stragglers import arms, sweep
from benchmarks.stragglers.small import small_job
from orchestrator.core.scoring import CRITERIA, Weights
from orchestrator.core.selection import EliminationOptions, eliminations_per_epoch
from orchestrator.core.selection.progress import efficiency
from orchestrator.finetune.messages import Aggregate, Contribution
from orchestrator.simulation.loss import Curve, Past

FIT_SEED = 1001
"""Of the first network and partition; the figures use seeds from 1 on, far fewer than 1000."""
PARTITIONS = 24
SETUPS, NODES, SEEDS = (1, 2, 3), (12, 40), tuple(range(FIT_SEED, FIT_SEED + 4))
STEPS = 4
"""Weights are tried in quarters, of one, two or three criteria."""
LOSS_LIMIT = 1.02
"""Of the final loss of all: elimination ends where the curve says that fewer nodes would exceed it."""
LEAST_EFFICIENCIES = (0.0, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85)

Path = Sequence[int]


def constant(count: int) -> Path:
    """Return a job in which `count` nodes contribute to each round."""
    return (count,) * sweep.EPOCHS


def eliminated(nodes: int, keep: int = 1) -> Path:
    """Return how many contribute to each round if Eq. 1 eliminates down to `keep`."""
    step = eliminations_per_epoch(nodes, sweep.EPOCHS)
    return tuple(max(nodes - step * epoch, keep) for epoch in range(sweep.EPOCHS))


PATHS = (
    *(constant(count) for count in (2, 4, 8, 16, PARTITIONS)),
    eliminated(PARTITIONS),
    eliminated(PARTITIONS, keep=10),
    tuple(reversed(eliminated(PARTITIONS))),
)


def train(path: Path) -> list[float]:
    """Return the held-out loss before and after each round, of each the first nodes contributing."""
    torch.set_num_threads(1)
    job = small_job(PARTITIONS, seed=FIT_SEED, epochs=sweep.EPOCHS)
    losses = [job.training.loss(0)]
    for epoch, count in enumerate(path):
        nodes = job.nodes[:count]
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


def follow(curve: Curve, path: Path) -> list[float]:
    """Return what the curve says of the loss before and after each round of `path`."""
    past = Past()
    losses = [curve.loss(past)]
    for count in path:
        past = curve.after(past, contributors=count)
        losses.append(curve.loss(past))
    return losses


def fit_curve(paths: Sequence[Path], losses: Sequence[Sequence[float]]) -> tuple[Curve, float]:
    """Fit a curve to `losses` (a list for each of `paths`); returns it and the RMS error in nats."""
    seen = np.array(losses)
    start = float(seen[:, 0].mean())

    def made(values: np.ndarray) -> Curve:
        first, share, *others = (float(value) for value in values)
        scale, power, noise, memory = others
        return Curve(
            start=first,
            floor=share * first,
            scale=scale,
            power=power,
            noise=noise,
            memory=memory,
            rounds=seen.shape[1] - 1,
        )

    def errors(values: np.ndarray) -> np.ndarray:
        curve = made(values)
        return np.concatenate(
            [np.array(follow(curve, path)) - row for path, row in zip(paths, seen, strict=True)]
        )

    found = least_squares(
        errors,
        x0=[start, 0.6, 3.0, 0.7, 0.1, 0.9],
        bounds=([0.5 * start, 0.0, 1e-2, 1e-2, 0.0, 0.0], [2 * start, 0.98, 1e4, 10.0, start, 1.0]),
    )
    return made(found.x), float(np.sqrt(np.mean(found.fun**2)))


def fit_noise(paths: Sequence[Path], losses: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    """Fit the gradient noise scale, in nodes, to constant `paths`, of which the last has all nodes.

    The progress of a round is measured as the share of the rounds that all nodes need to the same loss.
    Returns the scale and the measured progress of each path.
    """
    counts = np.array([path[0] for path in paths], dtype=float)
    usual = np.minimum.accumulate(np.array(losses[-1]))
    rounds = np.arange(len(usual), dtype=float)
    needed = [float(np.interp(-row[-1], -usual, rounds)) for row in losses]
    progress = np.array(needed) / rounds[-1]
    found = minimize_scalar(
        lambda noise: float(np.sum((efficiency(counts, whole=counts[-1], noise=noise) - progress) ** 2)),
        bounds=(0.0, 50.0),
        method="bounded",
    )
    return float(found.x), progress.tolist()


def feasible(curve: Curve, least_efficiency: float) -> dict[int, float]:
    """Return the final loss of elimination that ends there over that of all, by the number of nodes."""
    found = {}
    for nodes in NODES:
        keep = EliminationOptions(least_efficiency=least_efficiency).least_nodes(nodes)
        losses = follow(curve, eliminated(nodes, keep))
        found[nodes] = losses[-1] / follow(curve, constant(nodes))[-1]
    return found


def candidates() -> list[Weights]:
    """Return all weights in steps of a quarter, and equal ones."""
    found = [
        Weights(**dict(zip(CRITERIA, (share / STEPS for share in shares), strict=True)))
        for shares in itertools.product(range(STEPS + 1), repeat=len(CRITERIA))
        if sum(shares) == STEPS
    ]
    return [Weights.equal(), *found]


def reduction(case: sweep.Case, weights: Sequence[Weights]) -> list[float]:
    """Return what elimination with each of `weights` saves against all resources."""
    slow_s = _completion_s(case, arms.ALL)
    return [1 - _completion_s(case, arms.eliminating("candidate", one)) / slow_s for one in weights]


def _completion_s(case: sweep.Case, arm: arms.Arm) -> float:
    summary = sweep.run(case, arm).summary
    assert summary is not None
    return summary.completion_s


def fit_weights(
    cases: Sequence[sweep.Case], weights: Sequence[Weights], *, processes: int
) -> dict[sweep.Case, list[float]]:
    """Return what each of `weights` saves in each of `cases`."""
    with ProcessPoolExecutor(max_workers=processes) as pool:
        return dict(zip(cases, pool.map(reduction, cases, [weights] * len(cases)), strict=True))


def medians(found: Mapping[sweep.Case, Sequence[float]]) -> list[float]:
    """Return the median reduction of each of the weights over the cases."""
    return [median(values) for values in zip(*found.values(), strict=True)]


def print_curve(processes: int) -> None:
    """Train, fit the curve and the noise scale, and say where elimination may end."""
    with ProcessPoolExecutor(max_workers=processes) as pool:
        losses = list(pool.map(train, PATHS))
    for path, seen in zip(PATHS, losses, strict=True):
        print(
            f"{' '.join(map(str, path))} contribute: " + " ".join(f"{loss:.4f}" for loss in seen), flush=True
        )
    curve, error = fit_curve(PATHS, losses)
    for path in PATHS:
        print("by the curve: " + " ".join(f"{loss:.4f}" for loss in follow(curve, path)))
    print(f"{curve}, RMS error {error:.4f} nats")
    steady = [index for index, path in enumerate(PATHS) if len(set(path)) == 1]
    noise, progress = fit_noise([PATHS[i] for i in steady], [losses[i] for i in steady])
    print(f"noise_nodes {noise:.2f}; progress {', '.join(f'{share:.2f}' for share in progress)}")
    for least in LEAST_EFFICIENCIES:
        found = feasible(curve, least)
        verdict = "feasible" if max(found.values()) <= LOSS_LIMIT else "too much loss"
        print(f"least_efficiency {least}: " + ", ".join(f"N={n} x{x:.4f}" for n, x in found.items()), verdict)


def print_weights(processes: int) -> None:
    """Rank the weights over all cases, and say what the best and equal ones save in each setup and size."""
    tried = candidates()
    found = fit_weights(list(sweep.cases(SETUPS, NODES, SEEDS)), tried, processes=processes)
    overall = medians(found)
    order = sorted(range(len(tried)), key=lambda index: -overall[index])
    for index in order[:10]:
        print(f"{overall[index]:.4f} {asdict(tried[index])}")
    best, equal = order[0], tried.index(Weights.equal())
    for nodes, setup in itertools.product(NODES, SETUPS):
        alone = medians({c: row for c, row in found.items() if (c.nodes, c.setup) == (nodes, setup)})
        own = max(range(len(tried)), key=lambda index: alone[index])
        print(
            f"N={nodes} setup {setup}: these {alone[best]:.4f}, equal {alone[equal]:.4f}, the best there "
            f"{alone[own]:.4f} {asdict(tried[own])}"
        )


def main() -> int:
    """Fit what is asked for, both if nothing is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stragglers.fit", description=__doc__)
    parser.add_argument("--curve", action="store_true", help="the loss curve: about 2 CPU minutes")
    parser.add_argument("--weights", action="store_true", help="the score's weights: about 6 CPU minutes")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    both = not (options.curve or options.weights)
    if options.curve or both:
        print_curve(options.processes)
    if options.weights or both:
        print_weights(options.processes)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
