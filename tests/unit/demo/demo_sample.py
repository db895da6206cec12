"""A result of the demo, small and complete, in the form of `results/demo.json`; figures are made up."""

from __future__ import annotations

from typing import Any


def _link(a: str, b: str) -> dict[str, Any]:
    return {"name": f"{a}-{b}", "a": a, "b": b}


def _epoch(number: int, active: list[str], eliminated: list[str], ended_s: float) -> dict[str, Any]:
    return {
        "epoch": number,
        "active": active,
        "scores": {node: 0.2 + 0.1 * index for index, node in enumerate(active)},
        "eliminated": eliminated,
        "reason": f"eliminated {', '.join(eliminated)}" if eliminated else "nobody eliminated",
        "loss": 2.4 - 0.1 * number,
        "seconds": 10.0 - number,
        "ended_s": ended_s,
        "node_train_s": dict.fromkeys(active, 5.0),
        "node_late_s": dict.fromkeys(active, 0.0) | {active[0]: 1.0},
    }


def _run(name: str, eliminated: list[str]) -> dict[str, Any]:
    nodes = ["h1", "h2", "h3", "h4"]
    left = [node for node in nodes if node not in eliminated]
    return {
        "name": name,
        "start_loss": 2.4,
        "final_loss": 2.2,
        "completion_s": 20.0,
        "settle_s": 22.0,
        "bytes_sent": 1e6,
        "bytes_received": 2e6,
        "epochs": [_epoch(1, nodes, eliminated, 9.0), _epoch(2, left, [], 17.0)],
    }


def _placement(epoch: int, second: str) -> dict[str, Any]:
    stages = [
        {"node": "h1", "first_layer": 0, "end_layer": 3},
        {"node": second, "first_layer": 3, "end_layer": 6},
        {"node": "h4", "first_layer": 6, "end_layer": 8},
    ]
    return {"epoch": epoch, "head": "h1", "stages": stages, "latency_s": 0.08}


def _measured(node: str, loss: float | None) -> dict[str, Any]:
    return {
        "node": node,
        "power": 30.0,
        "configured": {"delay_s": 0.05, "rate_bps": 16e6, "loss_ratio": 0.01},
        "measured": {
            "delay_s": 0.051,
            "capacity_bps": 15.5e6,
            "loss_ratio": loss,
            "loss_low": 0.0,
            "loss_high": 0.03,
        },
        "error": {"delay": 0.02, "rate": 0.03},
    }


def result() -> dict[str, Any]:
    """Return a fresh sample."""
    hosts = ["orch", "h1", "h2", "h3", "h4"]
    links = [("orch", "c1"), ("c1", "c2"), ("g1", "c1"), ("g1", "c2"), ("g2", "c1"), ("g2", "c2")]
    links += [("h1", "g1"), ("h2", "g1"), ("h3", "g2"), ("h4", "g2")]
    return {
        "scenario": "sample",
        "seed": 1,
        "commit": "0" * 40,
        "command": "utopia demo <sample>",
        "finished_at": "2026-01-01 00:00:00 UTC",
        "machine": {"cores": 2, "cpu": "some cpu", "memory_bytes": 1},
        "profile": {
            "datapath": "user",
            "trusted": ["h1", "h2"],
            "emulation": {"kept_up": True},
            "device_lateness": {"p50": 0.0, "p90": 0.05, "max": 0.4},
        },
        "phases": [{"name": "network", "seconds": 3.0}],
        "network": {"hosts": [{"name": name} for name in hosts], "links": [_link(a, b) for a, b in links]},
        "measured": [_measured("h1", 0.01), _measured("h2", None)],
        "finetune": {"all": _run("all resources", []), "eliminate": _run("node elimination", ["h3"])},
        "comparison": {"completion_reduction_ratio": 0.3, "loss_difference_ratio": 0.01},
        "inference": {
            "prompt": "The <b>",
            "text": "network & more",
            "tokens": 3,
            "mismatches": 0,
            "ties": 0,
            "placements": [_placement(1, "h2"), _placement(2, "h3")],
            "degrade": {"link": "h2-g1", "before_s": 0.05, "after_s": 0.35},
            "decisions": [{"at_s": 3.0, "verdict": "redistribute", "reason": "latency 0.7 s > 0.35 s"}],
            "token_times": [
                {"index": 0, "at_s": 0.1, "elapsed_s": 0.1, "epoch": 1},
                {"index": 1, "at_s": 0.8, "elapsed_s": 0.7, "epoch": 1},
                {"index": 2, "at_s": 4.0, "elapsed_s": 0.08, "epoch": 2},
            ],
            "degraded_at_s": 0.5,
            "decided_at_s": 3.0,
            "committed_at_s": 3.4,
        },
        "targets": [
            {"name": "tokens_equal", "value": True, "op": "==", "limit": True, "met": True},
            {"name": "delay_error_max", "value": None, "op": "<=", "limit": 0.2, "met": False},
        ],
    }
