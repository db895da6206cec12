"""A deployment from its first placement to its end, and the rules that hold whatever happens."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_engine_steps import (
    NAMES,
    NODES,
    carry_out,
    decisions,
    deploy,
    feed,
    look,
    only,
    serving,
    spec,
    states,
    the_network,
)

from orchestrator.core.errors import Infeasible, InvalidValue
from orchestrator.core.model import Network
from orchestrator.inference import messages as m
from orchestrator.inference.engine import Engine, preview


def test_a_deployment_is_placed_prepared_committed_head_last_and_serves() -> None:
    engine = Engine(spec())
    instructions = deploy(engine)
    (decision,) = decisions(instructions)
    assert (decision.kind, decision.verdict) == ("place", "place")
    json.dumps(decision.to_json(), allow_nan=False)
    prepares = only(m.PrepareShard, instructions)
    assert [p.reuse for p in prepares] == [False] * len(prepares)  # type: ignore[attr-defined]
    shards = [p.shard for p in prepares]  # type: ignore[attr-defined]
    head, *others = [shard.node for shard in shards]
    assert head == "h1"
    assert shards[0].roles[0] == "head"
    assert feed(engine, *(m.Prepared(now_s=1.0, node=node, epoch=1) for node in others)) == []
    commits = feed(engine, m.Prepared(now_s=1.0, node=head, epoch=1))
    assert commits == [m.CommitShard(node=node, epoch=1) for node in others]
    for node in others[:-1]:
        assert feed(engine, m.Committed(now_s=2.0, node=node, epoch=1)) == []
    assert feed(engine, m.Committed(now_s=2.0, node=others[-1], epoch=1)) == [
        m.CommitShard(node=head, epoch=1)
    ]
    last = feed(engine, m.Committed(now_s=2.5, node=head, epoch=1))
    assert [d.verdict for d in decisions(last)] == ["switched"]
    announcement = last[-1]
    assert isinstance(announcement, m.Announce)
    assert (announcement.state, announcement.epoch) == ("serving", 1)
    assert announcement.placement == engine.placement


UNMEASURED = Network(taken_at_s=0.0)


def unmeasured(engine: Engine, now_s: float) -> list[m.Instruction]:
    return feed(engine, m.EnvironmentTaken(now_s=now_s, nodes=NODES, network=UNMEASURED))


def test_a_deployment_that_comes_before_the_measurements_waits_for_them() -> None:
    engine = Engine(spec())
    instructions = feed(engine, m.DeployRequested(now_s=0.0, nodes=NODES, network=UNMEASURED))
    assert [decision.verdict for decision in decisions(instructions)] == ["wait"]
    assert states(instructions) == ["preparing"]
    assert unmeasured(engine, 2.0) == []
    placed = look(engine, 4.0)
    assert [decision.verdict for decision in decisions(placed)] == ["place"]
    carry_out(engine, placed, 5.0)
    assert engine.state == "serving"


def test_it_waits_too_while_only_some_paths_are_measured_and_no_ring_is_left() -> None:
    engine = Engine(spec())
    three = NODES[:3]
    lacking = {("h1", "h2"), ("h2", "h1")}
    ways = {pair: path for pair, path in the_network().paths.items() if pair not in lacking}
    network = Network(taken_at_s=0.0, paths=ways)
    instructions = feed(engine, m.DeployRequested(now_s=0.0, nodes=three, network=network))
    assert states(instructions) == ["preparing"]
    assert "2 of 6 paths between nodes cannot be used" in decisions(instructions)[0].reason
    assert states(look(engine, 2.0, nodes=three)) == ["preparing"], "now it is placed"


def test_it_does_not_wait_for_measurements_for_ever() -> None:
    engine = Engine(spec())
    feed(engine, m.DeployRequested(now_s=0.0, nodes=NODES, network=UNMEASURED))
    unmeasured(engine, 59.0)
    assert not engine.ended
    last = unmeasured(engine, 60.0)
    assert states(last) == ["failed"]
    assert "paths between nodes cannot be used" in decisions(last)[0].reason


def test_what_cannot_be_placed_fails_with_the_reason_and_leaves_nothing() -> None:
    engine = Engine(spec())
    untrusted = tuple(replace(node, trusted=False) for node in NODES)
    instructions = deploy(engine, nodes=untrusted)
    assert only(m.PrepareShard, instructions) == []
    assert states(instructions) == ["failed"]
    (decision,) = decisions(instructions)
    assert (decision.verdict, decision.inputs["constraint"]) == ("infeasible", "trusted-head")
    assert "no node is trusted" in decision.reason
    assert engine.ended


def test_undeploying_aborts_retires_and_ends() -> None:
    engine = Engine(spec())
    old = serving(engine)
    instructions = feed(engine, m.UndeployRequested(now_s=2.0))
    assert only(m.RetireShard, instructions) == [m.RetireShard(node=node, epoch=1) for node in old.nodes]
    assert states(instructions) == ["retired"]
    assert look(engine, 3.0) == []


def test_undeploying_while_preparing_aborts_the_change() -> None:
    engine = Engine(spec())
    nodes = [p.shard.node for p in deploy(engine) if isinstance(p, m.PrepareShard)]
    instructions = feed(engine, m.UndeployRequested(now_s=2.0))
    assert [i.node for i in instructions if isinstance(i, m.AbortShard)] == nodes
    assert states(instructions) == ["retired"]


def test_a_preview_is_what_a_deployment_would_get_and_changes_nothing() -> None:
    engine = Engine(spec())
    choice = preview(spec(), NODES, the_network())
    assert choice.placement == serving(engine)
    with pytest.raises(Infeasible, match="no node is trusted"):
        preview(spec(), tuple(replace(node, trusted=False) for node in NODES), the_network())


def test_more_nodes_than_a_model_can_fill_are_refused() -> None:
    with pytest.raises(
        InvalidValue, match="min_nodes is 10, but a model of 8 layers and a head fills at most 9"
    ):
        spec(min_nodes=10)


@st.composite
def incidents(draw: st.DrawFn) -> list[tuple[str, str, float]]:
    kinds = [
        "lost",
        "look",
        "slow",
        "prepared",
        "refused",
        "committed",
        "uncommitted",
        "stalled",
        "tick",
        "token",
    ]
    step = st.tuples(st.sampled_from(kinds), st.sampled_from(NAMES), st.floats(0.0, 40.0))
    return draw(st.lists(step, min_size=5, max_size=60))


@settings(max_examples=80, deadline=None)
@given(incident=incidents())
def test_whatever_happens_a_route_is_switched_only_when_all_its_nodes_are_ready(
    incident: list[tuple[str, str, float]],
) -> None:
    """The head commits last, epochs grow, lost nodes are asked for nothing, the head stays while it lives."""
    engine = Engine(spec())
    now, alive = 0.0, set(NAMES)
    prepared: dict[int, set[str]] = {}
    committed: dict[int, set[str]] = {}
    wanted: dict[int, list[str]] = {}
    todo = deploy(engine)
    for kind, node, wait_s in [*incident, ("tick", "h1", 0.0)]:
        for instruction in todo:
            if isinstance(instruction, m.PrepareShard):
                assert instruction.shard.node in alive
                wanted.setdefault(instruction.epoch, []).append(instruction.shard.node)
            elif isinstance(instruction, m.CommitShard):
                assert instruction.node in alive
                ring = wanted[instruction.epoch]
                assert prepared[instruction.epoch] == set(ring)
                if instruction.node == ring[0]:
                    assert committed.get(instruction.epoch, set()) >= set(ring[1:])
            elif isinstance(instruction, m.Announce) and instruction.state == "serving":
                assert instruction.placement is not None
                assert "h1" not in alive or instruction.placement.head in alive
        now += wait_s
        epoch = max(wanted, default=0)
        nodes = tuple(replace(item, alive=item.name in alive) for item in NODES)
        match kind:
            case "lost" if node in alive:
                alive.discard(node)
                event: m.Event = m.NodeLost(now_s=now, node=node, reason="gone")
            case "look":
                event = m.EnvironmentTaken(now_s=now, nodes=nodes, network=the_network(now))
            case "slow" if engine.placement is not None and engine.placement.hops:
                network = the_network(now, {engine.placement.hops[0]: 0.9})
                event = m.EnvironmentTaken(now_s=now, nodes=nodes, network=network)
            case "prepared" if node in wanted.get(epoch, []):
                prepared.setdefault(epoch, set()).add(node)
                event = m.Prepared(now_s=now, node=node, epoch=epoch)
            case "refused":
                event = m.PrepareFailed(now_s=now, node=node, epoch=epoch, reason="no")
            case "committed":
                committed.setdefault(epoch, set()).add(node)
                event = m.Committed(now_s=now, node=node, epoch=epoch)
            case "uncommitted":
                event = m.CommitFailed(now_s=now, node=node, epoch=epoch, reason="no")
            case "stalled":
                event = m.Stalled(now_s=now, epoch=epoch, request="r", detail="silence")
            case "token":
                event = m.TokenObserved(now_s=now, epoch=epoch, request="r", index=3, elapsed_s=wait_s)
            case _:
                event = m.Tick(now_s=now)
        todo = engine.handle(event)
