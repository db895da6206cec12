"""The stragglers benchmark: what it simulates, how figures come out of rows, and the form of its file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.stragglers import __main__ as command
from benchmarks.stragglers import arms, figures, fit, sweep, validation
from benchmarks.stragglers.fitted import CURVE
from benchmarks.stragglers.replay import Replayed, seen
from benchmarks.stragglers.worlds import world
from orchestrator.simulation.loss import Curve
from topologies.specs import network_spec


def test_a_quick_run_writes_rows_lines_targets_and_pictures(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "stragglers.json"
    monkeypatch.setattr("sys.argv", ["stragglers", "--quick", "--json", str(path)])
    assert command.main() == 0
    result = json.loads(path.read_text())
    assert {row["arm"] for row in result["rows"]} == {arm.name for arm in (*arms.ARMS, arms.BEST_SET)}
    assert {line["nodes"] for line in result["lines"]} == {12, 16}
    assert {picture.name for picture in tmp_path.glob("*.png")} == {
        "stragglers.completion.png",
        "stragglers.loss-simulation.png",
    }
    assert all(set(target) == {"name", "value", "op", "limit", "met"} for target in result["targets"])


def test_the_simulated_paths_are_those_that_the_emulation_configures() -> None:
    scenario = validation.scenario(2, seed=5, prefix="tst", port=7000)
    spec = network_spec(scenario)
    made = world(spec, congestion_control="bbr")
    links = {link.name: link for link in made.links}
    for node in made.nodes:
        path, expected = [links[name] for name in node.down], spec.end_to_end(node.name)
        assert min(link.rate_bps for link in path) == expected.rate_bps
        assert sum(link.delay_s for link in path) == pytest.approx(expected.delay_s)
        assert 1 - math.prod(1 - link.loss_ratio for link in path) == pytest.approx(expected.loss_ratio)


def test_the_same_case_gives_the_same_row_each_time() -> None:
    case = sweep.Case(setup=1, nodes=12, seed=3)
    first, second = (sweep.run_case(case, (arms.ALL, arms.PLAN)) for _ in range(2))
    assert first == second


def test_a_replay_answers_for_each_epoch_what_the_testbed_saw_after_it() -> None:
    def decision(node: str, bandwidth: float) -> dict:
        criteria = {"bandwidth": {"value": bandwidth}, "delay": {"value": 0.05}, "loss": {"value": None}}
        return {"kind": "eliminate", "scores": [{"node": node, "criteria": criteria}]}

    epochs = seen([{"kind": "job"}, decision("h1", 5e6), decision("h2", 7e6)])
    place = world(
        network_spec(validation.scenario(1, seed=5, prefix="tst", port=7000)), congestion_control="bbr"
    )
    replayed = Replayed(place, epochs)
    pairs = {("orch", "h1"): 0.1, ("h1", "orch"): 0.1, ("orch", "h2"): 0.1, ("h2", "orch"): 0.1}
    before, first, second, later = (replayed.measure(0.0, pairs) for _ in range(4))
    assert before.paths == first.paths
    assert first.path("orch", "h1").capacity_bps.value == 5e6
    assert first.path("orch", "h1").loss_ratio.value is None
    assert ("orch", "h2") not in first.paths
    assert second.path("h2", "orch").capacity_bps.value == 7e6
    assert later.paths == second.paths


def row(arm: arms.Arm, seed: int, completion_s: float, loss: float = 1.5) -> dict:
    return {
        "where": "simulation",
        "setup": 1,
        "nodes": 40,
        "seed": seed,
        "congestion_control": "bbr",
        "rate_floor_bps": sweep.RATE_FLOOR_BPS,
        "partition": "equal",
        "arm": arm.name,
        "policy": arm.policy,
        "completion_s": completion_s,
        "loss": [2.4, loss],
        "energy_j": 10.0,
    }


def test_a_reduction_is_the_median_of_each_seeds_own() -> None:
    rows = [row(arms.ALL, 1, 100.0), row(arms.ALL, 2, 1000.0), row(arms.ALL, 3, 50.0)]
    rows += [row(arms.PLAN, 1, 10.0), row(arms.PLAN, 2, 500.0), row(arms.PLAN, 3, 15.0)]
    line = next(line for line in figures.summarise(rows) if line["arm"] == arms.PLAN.name)
    assert line["reduction_median"] == pytest.approx(0.7)
    assert line["completion_median_s"] == 15.0


def test_targets_are_met_or_missed_by_what_the_rows_say() -> None:
    rows = [row(arms.ALL, 1, 100.0), row(arms.PLAN, 1, 6.0), row(arms.FITTED, 1, 30.0, loss=1.6)]
    met = {target.name: target.met for target in figures.targets(rows, figures.summarise(rows))}
    assert met == {
        "plan: reduction, setup 1, 40 nodes": True,
        "eliminate, fitted: reduction, setup 1, 40 nodes": False,
        "plan: final loss over all's, setup 1, 40 nodes, by the curve": True,
        "eliminate, fitted: final loss over all's, setup 1, 40 nodes, by the curve": False,
    }


def test_a_validation_whose_links_were_late_does_not_count() -> None:
    late = {"where": "validation", "links_kept_up": False, "completion_error": 0.9, "epoch_errors": [0.9]}
    good = {"where": "validation", "links_kept_up": True, "completion_error": -0.05, "epoch_errors": [0.1]}
    found = {target.name: target.value for target in figures.targets([late, good], [])}
    assert found == {
        "validated scenarios": 1,
        "completion error, worst": 0.05,
        "epoch error, worst": 0.1,
    }


def test_a_curve_is_found_again_from_its_own_points() -> None:
    curve = Curve(start=2.4, floor=0.9, scale=3.0, power=0.8, noise=0.15, memory=0.8, rounds=10)
    paths = (fit.constant(1), fit.constant(4), fit.eliminated(16), tuple(reversed(fit.eliminated(16))))
    found, error = fit.fit_curve(paths, [fit.follow(curve, path) for path in paths])
    assert error < 1e-3
    assert fit.follow(found, fit.constant(2))[-1] == pytest.approx(
        fit.follow(curve, fit.constant(2))[-1], rel=1e-2
    )


def test_a_curve_followed_is_what_a_simulated_job_sees() -> None:
    case = sweep.Case(setup=1, nodes=12, seed=3)
    found = sweep.row_of(case, arms.FITTED, sweep.run(case, arms.FITTED))
    assert found["loss"] == pytest.approx(fit.follow(CURVE, tuple(found["contributed"])))


def test_the_noise_scale_is_found_again_from_the_progress_it_makes() -> None:
    """A job of e times the progress ends at the loss that all nodes have after e times the rounds."""
    rounds = np.arange(11)
    counts = (2, 4, 8, 24)
    shares = [(1 + 4 / 24) / (1 + 4 / count) for count in counts]
    losses = [(2.4 - 0.1 * share * rounds).tolist() for share in shares]
    noise, progress = fit.fit_noise([fit.constant(count) for count in counts], losses)
    assert noise == pytest.approx(4.0, rel=1e-3)
    assert progress == pytest.approx(shares)


@pytest.mark.parametrize("nodes", [12, 40])
def test_no_plan_is_done_before_the_best_set_in_hindsight(nodes: int) -> None:
    case = sweep.Case(setup=1, nodes=nodes, seed=2)
    bound = sweep.best_set(case)
    assert (
        sweep.row_of(case, arms.PLAN, sweep.run(case, arms.PLAN))["completion_s"]
        >= 0.999 * bound["completion_s"]
    )
