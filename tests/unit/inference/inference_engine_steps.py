"""What the tests of the deployments' engine do to it: events by name, instructions by kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from core_examples import a_model, a_network, a_node, a_path

from orchestrator.core.cost import Workload
from orchestrator.core.decisions import Decision
from orchestrator.core.model import Network, NodeState, Placement
from orchestrator.core.triggers import Thresholds
from orchestrator.inference import messages as m
from orchestrator.inference.engine import Engine

NAMES = [f"h{i}" for i in range(1, 7)]
NODES = tuple(a_node(name, trusted=name in ("h1", "h2"), memory_bytes=900_000) for name in NAMES)
ACCESS = {"h1": 0.005, "h2": 0.01, "h3": 0.006, "h4": 0.007, "h5": 0.02, "h6": 0.03}


def the_network(now_s: float = 0.0, slow: Mapping[tuple[str, str], float] | None = None) -> Network:
    paths = dict(a_network(NAMES, access_s=ACCESS, available_bps=1e8).paths)
    for (src, dst), delay_s in (slow or {}).items():
        paths[src, dst] = a_path(src, dst, delay_s=delay_s, available_bps=1e8)
    return Network(taken_at_s=now_s, paths=paths)


def spec(**values: object) -> m.DeploymentSpec:
    defaults: dict[str, object] = {
        "deployment": "d1",
        "model": a_model(8),
        "min_nodes": 3,
        "workload": Workload(prompt_tokens=16, generated_tokens=64, context_tokens=64),
        "thresholds": Thresholds(latency_s=0.15, available_bps=1e6, cool_down_s=30.0),
    }
    return m.DeploymentSpec(**{**defaults, **values})  # type: ignore[arg-type]


def only(kind: type[m.Instruction], instructions: Iterable[m.Instruction]) -> list[m.Instruction]:
    return [instruction for instruction in instructions if isinstance(instruction, kind)]


def decisions(instructions: Iterable[m.Instruction]) -> list[Decision]:
    return [item.decision for item in instructions if isinstance(item, m.Record)]


def states(instructions: Iterable[m.Instruction]) -> list[str]:
    return [item.state for item in instructions if isinstance(item, m.Announce)]


def feed(engine: Engine, *events: m.Event) -> list[m.Instruction]:
    return [instruction for event in events for instruction in engine.handle(event)]


def deploy(engine: Engine, now_s: float = 0.0, nodes: tuple[NodeState, ...] = NODES) -> list[m.Instruction]:
    return feed(engine, m.DeployRequested(now_s=now_s, nodes=nodes, network=the_network(now_s)))


def look(
    engine: Engine,
    now_s: float,
    *,
    nodes: tuple[NodeState, ...] = NODES,
    slow: Mapping[tuple[str, str], float] | None = None,
) -> list[m.Instruction]:
    network = the_network(now_s, slow)
    return feed(engine, m.EnvironmentTaken(now_s=now_s, nodes=nodes, network=network))


def carry_out(engine: Engine, instructions: list[m.Instruction], now_s: float) -> list[m.Instruction]:
    """Answer every prepare and commit as a driver does whose nodes all comply; return all that followed."""
    every, todo = list(instructions), list(instructions)
    while todo:
        instruction = todo.pop(0)
        answer: m.Event
        if isinstance(instruction, m.PrepareShard):
            answer = m.Prepared(now_s=now_s, node=instruction.shard.node, epoch=instruction.epoch)
        elif isinstance(instruction, m.CommitShard):
            answer = m.Committed(now_s=now_s, node=instruction.node, epoch=instruction.epoch)
        else:
            continue
        more = engine.handle(answer)
        every += more
        todo += more
    return every


def serving(engine: Engine, now_s: float = 0.0) -> Placement:
    carry_out(engine, deploy(engine, now_s), now_s + 1)
    assert engine.state == "serving"
    assert engine.placement is not None
    return engine.placement


def tokens(
    engine: Engine, epoch: int, elapsed_s: float, now_s: float, count: int = 20
) -> list[m.Instruction]:
    return feed(
        engine,
        *(
            m.TokenObserved(now_s=now_s, epoch=epoch, request="r", index=i, elapsed_s=elapsed_s)
            for i in range(count)
        ),
    )


def slow_second_hop(placement: Placement) -> dict[tuple[str, str], float]:
    return {placement.hops[1]: 0.5}


def changed_once(engine: Engine) -> Placement:
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    carry_out(engine, look(engine, 41.0, slow=slow_second_hop(old)), 42.0)
    assert engine.placement is not None
    return engine.placement
