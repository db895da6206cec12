"""The benchmark of splitting runs, and its ratios compare only what took turns."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.split_overhead import figures, hop, model


def row(part: str, arm: str, pair: int, speed: float) -> figures.Row:
    return {"part": part, "arm": arm, "pair": pair, "tokens_per_s": speed}


def test_one_token_reads_161_megabytes() -> None:
    values = model.parameters(model.config(quick=False), seed=0)
    read = sum(value.numel() for name, value in values.items() if "embed_tokens" not in name)
    assert round(4 * read / 1e6) == 160


def test_a_ratio_is_the_median_over_pairs_not_of_medians() -> None:
    rows = [row("stages 2", "one", pair, speed) for pair, speed in enumerate((100.0, 50.0, 10.0))]
    rows += [row("stages 2", "split", pair, speed) for pair, speed in enumerate((50.0, 45.0, 9.0))]
    assert figures.ratio(rows, "stages 2", "split", "one") == 0.9


def test_a_run_without_its_pair_is_not_compared() -> None:
    rows = [row("single", "ours", 0, 100.0), row("single", "huggingface", 1, 50.0)]
    assert figures.ratio(rows, "single", "ours", "huggingface") is None


def test_what_a_batch_could_reach_is_twice_what_half_of_it_makes_on_one() -> None:
    found = {"one": 800.0, "half": 600.0, "halves": 1000.0, "split": 900.0}
    rows = [row("batch", arm, 0, tokens_per_s) for arm, tokens_per_s in found.items()]
    told = str(figures.attainable(rows))
    assert "1.25 times" in told
    assert "1.50 if each had its own" in told
    assert "90%" in told
    for place in range(len(rows)):
        assert figures.attainable(rows[:place] + rows[place + 1 :]) is None


def test_an_unmeasured_target_is_not_met() -> None:
    assert not any(target.met for target in figures.targets([]))


def test_tokens_that_differ_beyond_a_tie_miss_the_target() -> None:
    same = {**row("single", "huggingface", 0, 1.0), "same_tokens": True}
    other = {**row("single", "huggingface", 1, 1.0), "same_tokens": False}
    found = {target.name: target.met for target in figures.targets([same, other])}
    assert not found["tokens_as_huggingface"]
    assert figures.first_difference([1, 2, 3], [1, 2, 4]) == 2


def test_what_llamacpp_keeps_is_told_apart_from_our_own_target() -> None:
    rows = [row("stages 2", "one", 0, 100.0), row("stages 2", "split", 0, 99.0)]
    assert figures.rpc_kept(rows) is None
    rows += [row("stages 2", figures.RPC_ONE, 0, 200.0), row("stages 2", figures.RPC_SPLIT, 0, 150.0)]
    assert str(figures.rpc_kept(rows)).endswith("keeps 0.750 with 2")
    other = {**rows[-1], "same_tokens": False}
    found = {target.name: target.value for target in figures.targets([*rows, other])}
    assert (found["2_stages_over_one"], found["tokens_as_huggingface"]) == (0.99, None)


def test_both_hops_of_a_round_are_told_apart() -> None:
    assert hop.hops_us(float(37 + 1_000_000 * 52)) == (37.0, 52.0)


def test_a_quick_run_measures_every_part_on_loopback_and_writes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    parts = [
        word
        for part in ("single", "stages", "batch", "hop", "fairness", "correct", "compute", "wire")
        for word in ("--part", part)
    ]
    command = [sys.executable, "-m", "benchmarks.split_overhead", "--quick", *parts, "--json", str(path)]
    done = subprocess.run([*command, "--cache", str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(path.read_text())
    assert {row["part"] for row in result["rows"]} == {
        "single", "stages 2", "stages 3", "stages 4", "batch", "hop", "fairness 2", "fairness 3", "correct",
        "compute", "wire",
    }  # fmt: skip
    unknown = [target["name"] for target in result["targets"] if target["value"] is None]
    assert [name for name in unknown if not name.startswith(("networks", "clients"))] == [
        "single_over_llamacpp"
    ]
    notes = "\n".join(result["profile"]["notes"])
    assert "llamacpp not run" in notes
    assert notes.count("llamacpp rpc 1 not run: llamacpp_rpc is not installed") == 1
    assert next(target for target in result["targets"] if target["name"] == "correct_differences")["met"]
    sent = {row["arm"]: row for row in result["rows"] if row["part"] == "wire"}
    assert sent["int8"]["bytes_per_hop"] < sent["fp16"]["bytes_per_hop"] < sent["fp32"]["bytes_per_hop"]
    assert sent["fp32"]["row_rms_error"] == 0 < sent["fp16"]["row_rms_error"] < sent["int8"]["row_rms_error"]
