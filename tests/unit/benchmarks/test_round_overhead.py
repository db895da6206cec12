"""The benchmark of a round runs, and its ratios compare only what took turns."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.round_overhead import arms, figures, model


def row(arm: str, wall_s: float, *, group: str = "light", workers: int = 12) -> figures.Row:
    return {"group": group, "arm": arm, "workers": workers, "wall_s": wall_s, "server_model_sizes": None}


def rounds(arm: arms.Arm, count: int) -> None:
    for _ in range(count):
        arm.round()


def test_the_model_has_ten_million_parameters() -> None:
    assert model.size_bytes(quick=False) == 40_000_000


def test_a_ratio_is_of_medians_within_a_group() -> None:
    rows = [row("ours tls", 1.0), row("ours tls", 3.0), row("ours tls", 2.0), row("gloo", 1.0)]
    rows += [row("gloo", 50.0, group="alone")]
    found = {target.name: target.value for target in figures.targets(rows)}
    assert found["tls_over_gloo"] == 2.0
    assert found["plain_over_gloo"] is None


def test_a_reference_says_what_part_is_the_transports() -> None:
    rows = [row("ours tls", 3.0), row("star tls", 2.0), row("gloo", 1.0)]
    found = figures.references(rows)
    assert (found["tls_over_star_tls"], found["star_tls_over_gloo"]) == (1.5, 2.0)
    assert found["plain_over_star_plain"] is None


def test_arms_with_other_numbers_of_workers_are_not_compared() -> None:
    rows = [row("ours tls", 1.0), row("flower tls", 10.0, workers=6)]
    assert {target.name: target.value for target in figures.targets(rows)}["tls_over_flower_tls"] is None


def test_an_unmeasured_target_is_not_met() -> None:
    assert not any(target.met for target in figures.targets([]))


def test_what_an_arm_said_first_is_not_lost_behind_what_followed() -> None:
    first = 'Traceback (most recent call last):\n  File "a.py", line 1\nRuntimeError: the job has ended\n'
    others = 12 * ('Traceback (most recent call last):\n  File "b.py"' + 40 * " x" + "\nOSError: gone\n")
    shown = arms.excerpt(f"it begins\n{first}{others}the end")
    assert shown.startswith(first)
    assert shown.endswith("OSError: gone\nthe end")
    assert "it begins" not in shown
    assert len(shown) < 2000
    assert arms.excerpt("short\nand all of it") == "short\nand all of it"
    assert arms.excerpt(200 * "nothing wrong\n" + "the end").endswith("nothing wrong\nthe end")


def test_an_arm_that_fails_says_why_and_its_workers_are_gone_before_their_folder(tmp_path: Path) -> None:
    plan = arms.ours("tls", workers=3, quick=True)
    arm = arms.Arm(plan, log=tmp_path / "log")
    try:
        server = psutil.Process(arm._process.pid)
        workers = server.children()
        assert len(workers) == 3
        for worker in workers:
            worker.kill()
        with pytest.raises(RuntimeError, match=r"(?s)ours tls has ended: .*the job has ended: failed"):
            rounds(arm, 3)
        assert "cannot be read any more" not in (tmp_path / "log").read_text()
    finally:
        arm.stop()


def test_a_quick_run_takes_turns_and_writes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "round.json"
    command = [sys.executable, "-m", "benchmarks.round_overhead", "--quick", "--group", "light", "--peers"]
    able = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    if able.returncode != 0:
        pytest.skip("no network namespace can be made here")
    done = subprocess.run([*command, "--json", str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]
    assert [row["arm"] for row in rows] == ["ours plain", "ours tls", "star plain", "star tls", "gloo"]
    round_bytes = 2 * 3 * model.size_bytes(quick=True)
    assert all(round_bytes < row["lo_bytes"] < 1.2 * round_bytes for row in rows[:4])
