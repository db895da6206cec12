"""Situations for tests of policies: nodes h1.. whose rate, compute and data are as said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core_examples import a_node, a_path

from orchestrator.core.decisions import NodeScore
from orchestrator.core.model import ORCHESTRATOR, network
from orchestrator.core.selection import Outcome, RoundRecord, Situation
from orchestrator.core.workload import Workload

MODEL_BYTES = 1_000_000


def names(count: int) -> tuple[str, ...]:
    return tuple(f"h{i}" for i in range(1, count + 1))


def situation(
    rates_bps: Mapping[str, float],
    *,
    epochs: int = 10,
    history: Sequence[RoundRecord] = (),
    flops: float | None = None,
    makeup: Mapping[str, tuple[float, ...]] | None = None,
    orchestrator_bps: float | None = None,
) -> Situation:
    """Describe nodes by the rate of their paths; delay 10 ms, no loss, 1 Gflop/s each."""
    paths = [
        a_path(src, dst, delay_s=0.01, loss_ratio=0.0, capacity_bps=rate, available_bps=rate)
        for node, rate in rates_bps.items()
        for src, dst in ((ORCHESTRATOR, node), (node, ORCHESTRATOR))
    ]
    return Situation(
        epochs=epochs,
        states={node: a_node(node, compute_flops=1e9) for node in rates_bps},
        network=network(0.0, paths),
        workload=Workload(
            model_bytes=MODEL_BYTES,
            update_bytes=MODEL_BYTES,
            data_bytes=dict.fromkeys(rates_bps, MODEL_BYTES // 10),
            flops=flops,
            samples=dict.fromkeys(rates_bps, 32.0),
            makeup=makeup or {},
            orchestrator_bps=orchestrator_bps,
        ),
        history=tuple(history),
    )


def scored(nodes: Sequence[str]) -> tuple[NodeScore, ...]:
    """Score `nodes` in the order given, best first."""
    return tuple(
        NodeScore(node=node, score=1 - rank / (len(nodes) + 1), rank=rank, criteria={})
        for rank, node in enumerate(nodes, start=1)
    )


def a_round(epoch: int, seconds: Mapping[str, float], **more: Mapping[str, object]) -> RoundRecord:
    """Record a round in which each node took so long; `more` overrides fields of an outcome, by node."""
    return RoundRecord(
        epoch=epoch,
        seconds=max(seconds.values()),
        outcomes={
            node: Outcome(
                **{"answered": True, "seconds": s, "samples": 32, "loss": 2.0, **more.get(node, {})}
            )  # type: ignore[arg-type]
            for node, s in seconds.items()
        },
    )
