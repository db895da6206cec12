"""What the tests of the jobs' engine do to it: events by name, instructions by kind."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from core_examples import a_node, a_path
from hypothesis import strategies as st

from orchestrator.core.model import ORCHESTRATOR, network
from orchestrator.core.selection import EliminationOptions, PolicyOptions
from orchestrator.finetune import messages as m
from orchestrator.finetune.engine import Engine

NODES = ("h1", "h2", "h3", "h4", "h5")
BEFORE = -1
TO_THE_LETTER = PolicyOptions(eliminate=EliminationOptions(wait="all"))


def job(**values: object) -> Engine:
    """Make a job that waits for every answer, as Algorithm 1 says; test_finetune_early.py has the others."""
    defaults: dict[str, object] = {
        "job": "j1",
        "nodes": NODES,
        "epochs": 3,
        "round_timeout_s": 60.0,
        "options": TO_THE_LETTER,
    }
    return Engine(m.JobSpec(**{**defaults, **values}), Random(0))  # type: ignore[arg-type]


def metrics(epoch: int, now_s: float, nodes: Iterable[str] = NODES) -> m.MetricsTaken:
    """Take metrics in which a higher number in the name is a worse node in everything."""
    states, paths = [], []
    for name in nodes:
        rank = int(name[1:])
        states.append(a_node(name, compute_flops=1e9 / rank))
        for src, dst in ((ORCHESTRATOR, name), (name, ORCHESTRATOR)):
            paths.append(
                a_path(src, dst, delay_s=0.01 * rank, loss_ratio=0.001 * rank, available_bps=1e8 / rank)
            )
    return m.MetricsTaken(now_s=now_s, epoch=epoch, nodes=tuple(states), network=network(now_s, paths))


def update(node: str, epoch: int, now_s: float = 10.0, **values: object) -> m.UpdateArrived:
    seconds = float(node[1:])
    defaults: dict[str, object] = {
        "train_s": seconds,
        "round_s": seconds + 1,
        "real_s": 0.1,
        "late_s": 0.0,
        "samples": 32,
        "loss": 2.0,
    }
    return m.UpdateArrived(now_s=now_s, node=node, epoch=epoch, **{**defaults, **values})  # type: ignore[arg-type]


def only(kind: type[m.Instruction], instructions: Iterable[m.Instruction]) -> list[m.Instruction]:
    return [instruction for instruction in instructions if isinstance(instruction, kind)]


def names(kind: type[m.Instruction], instructions: Iterable[m.Instruction]) -> list[str]:
    return [instruction.node for instruction in only(kind, instructions)]  # type: ignore[attr-defined]


def verdicts(instructions: Iterable[m.Instruction]) -> list[tuple[str, str]]:
    records = only(m.Record, instructions)
    return [(record.decision.verdict, record.decision.reason) for record in records]  # type: ignore[attr-defined]


def feed(engine: Engine, *events: m.Event) -> list[m.Instruction]:
    return [instruction for event in events for instruction in engine.handle(event)]


def start(engine: Engine, now_s: float = 0.0) -> list[m.Instruction]:
    """Start the job and answer the metrics that it asks for before anything is sent."""
    return feed(engine, m.JobStarted(now_s=now_s), metrics(BEFORE, now_s))


def begin(engine: Engine, now_s: float = 0.0) -> list[m.Instruction]:
    loaded = [m.NodeLoaded(now_s=now_s + 1, node=node, version=0) for node in engine.spec.nodes]
    return [*start(engine, now_s), *feed(engine, *loaded)]


def contribute(engine: Engine, nodes: Iterable[str], now_s: float = 10.0) -> list[m.Instruction]:
    return feed(engine, *(update(node, engine.epoch, now_s) for node in nodes))


def close(engine: Engine, now_s: float = 11.0, loss: float = 2.0) -> list[m.Instruction]:
    """Answer Aggregate, TakeMetrics and Evaluate of the epoch in progress."""
    epoch, version = engine.epoch, engine.version + 1
    return feed(
        engine,
        m.Aggregated(now_s=now_s, version=version),
        metrics(epoch, now_s),
        m.Evaluated(now_s=now_s + 0.5, version=version, loss=loss),
    )


@st.composite
def incidents(draw: st.DrawFn) -> list[m.Event]:
    """Draw any events in any order, as a driver under stress might send them."""
    kinds = ["loaded", "update", "bad", "lost", "back", "agg", "metrics", "eval", "synced", "tick", "failed"]
    events: list[m.Event] = []
    now = 0.0
    for _ in range(draw(st.integers(5, 80))):
        now += draw(st.floats(0.0, 30.0))
        kind, node = draw(st.sampled_from(kinds)), draw(st.sampled_from(NODES))
        number = draw(st.integers(0, 3))
        events.append(
            {
                "loaded": lambda n=node, t=now: m.NodeLoaded(now_s=t, node=n, version=0),
                "update": lambda n=node, t=now, e=number: update(n, e, t),
                "bad": lambda n=node, t=now, e=number: update(n, e, t, valid=False, reason="bad"),
                "lost": lambda n=node, t=now: m.NodeLost(now_s=t, node=n, reason="gone"),
                "back": lambda n=node, t=now: m.NodeBack(now_s=t, node=n),
                "agg": lambda t=now, v=number: m.Aggregated(now_s=t, version=v),
                "metrics": lambda t=now, e=number: metrics(e, t),
                "eval": lambda t=now, v=number: m.Evaluated(now_s=t, version=v, loss=2.0),
                "synced": lambda n=node, t=now, v=number: m.NodeSynced(now_s=t, node=n, version=v),
                "tick": lambda t=now: m.Tick(now_s=t),
                "failed": lambda n=node, t=now: m.RequestFailed(
                    now_s=t, node=n, request=["load", "round", "sync"][int(t) % 3], reason="error"
                ),
            }[kind]()
        )
    return events


def answers(instruction: m.Instruction, now: float) -> list[m.Event]:
    match instruction:
        case m.LoadNode(node=node, version=version):
            return [m.NodeLoaded(now_s=now, node=node, version=version)]
        case m.StartRound(node=node, epoch=epoch):
            return [update(node, epoch, now)]
        case m.SyncNode(node=node, version=version):
            return [m.NodeSynced(now_s=now, node=node, version=version)]
        case m.Aggregate(new_version=version):
            return [m.Aggregated(now_s=now, version=version)]
        case m.TakeMetrics(epoch=epoch):
            return [metrics(epoch, now)]
        case m.Evaluate(version=version):
            return [m.Evaluated(now_s=now, version=version, loss=2.0)]
    return []
