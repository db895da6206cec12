"""When a deployment moves, and when it stays with the reason on record."""

from __future__ import annotations

from dataclasses import replace

import pytest
from core_examples import a_node
from inference_engine_steps import (
    NAMES,
    NODES,
    carry_out,
    changed_once,
    decisions,
    deploy,
    feed,
    look,
    only,
    serving,
    slow_second_hop,
    spec,
    states,
    the_network,
    tokens,
)

from orchestrator.inference import messages as m
from orchestrator.inference.engine import Engine


def test_a_quiet_environment_leaves_no_record() -> None:
    engine = Engine(spec())
    serving(engine)
    tokens(engine, 1, 0.05, 2.0)
    assert look(engine, 100.0) == []


def test_a_degraded_link_leads_to_a_better_placement_while_the_old_one_serves() -> None:
    engine = Engine(spec())
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    instructions = look(engine, 41.0, slow=slow_second_hop(old))
    (decision,) = decisions(instructions)
    assert decision.kind == "reconfigure"
    assert decision.verdict in ("redistribute", "resplit")
    assert [crossing.trigger for crossing in decision.crossings] == ["latency"]
    chosen = [option for option in decision.alternatives if option.chosen]
    keep = decision.alternatives[0]
    assert keep.name == "keep"
    assert keep.cost is not None
    assert chosen[0].cost is not None
    assert chosen[0].cost < 0.8 * keep.cost
    assert states(instructions) == ["reconfiguring"]
    assert engine.placement == old
    done = carry_out(engine, instructions, 42.0)
    assert engine.placement is not None
    assert engine.placement.head == old.head
    assert old.hops[1] not in engine.placement.hops
    assert only(m.RetireShard, done) == [m.RetireShard(node=node, epoch=1) for node in old.nodes]
    commits = [i.node for i in done if isinstance(i, m.CommitShard)]
    assert commits[-1] == old.head
    assert states(done)[-1] == "serving"


def test_a_node_that_keeps_its_layers_is_asked_to_reuse_them() -> None:
    engine = Engine(spec())
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    instructions = look(engine, 41.0, slow=slow_second_hop(old))
    before = {shard.node: shard for shard in old.shards()}
    for prepare in instructions:
        if isinstance(prepare, m.PrepareShard):
            same = before.get(prepare.shard.node)
            assert prepare.reuse == (same is not None and same.holds_as(prepare.shard))
    assert any(isinstance(p, m.PrepareShard) and p.reuse for p in instructions)


def test_latency_counts_steady_decoding_on_the_present_route_only() -> None:
    engine = Engine(spec())
    serving(engine)
    feed(
        engine,
        m.TokenObserved(now_s=1.0, epoch=1, request="r", index=0, elapsed_s=9.0),
        m.TokenObserved(now_s=1.0, epoch=1, request="r", index=5, elapsed_s=9.0, replayed=30),
        m.TokenObserved(now_s=1.0, epoch=7, request="r", index=6, elapsed_s=9.0),
    )
    assert engine.latency_s is None
    feed(engine, m.TokenObserved(now_s=1.0, epoch=1, request="r", index=7, elapsed_s=0.1))
    assert engine.latency_s == pytest.approx(0.1)


def test_within_the_cool_down_a_slow_route_is_kept_with_the_reason_on_record() -> None:
    engine = Engine(spec())
    changed_once(engine)
    tokens(engine, 2, 0.6, 50.0)
    instructions = look(engine, 50.0)
    (decision,) = decisions(instructions)
    assert instructions == [m.Record(decision=decision)]
    assert decision.verdict == "keep"
    assert "the cool-down lasts 22.0 s more" in decision.reason


def test_identical_verdicts_to_keep_are_recorded_once_in_a_while() -> None:
    engine = Engine(spec())
    serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    recorded = [now for now in range(41, 111) if decisions(look(engine, float(now)))]
    assert recorded == [41, 71, 101]


def test_high_latency_without_a_better_placement_keeps_the_present_one() -> None:
    engine = Engine(spec())
    serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    (decision,) = decisions(look(engine, 41.0))
    assert decision.verdict == "keep"
    assert "nothing is better than the present placement" in decision.reason
    assert [option.name for option in decision.alternatives] == ["keep", "redistribute", "resplit"]


def test_a_private_request_moves_the_layers_to_trusted_nodes_without_waiting() -> None:
    nodes = tuple(a_node(name, trusted=name in ("h1", "h5", "h6"), memory_bytes=2_000_000) for name in NAMES)
    engine = Engine(spec())
    carry_out(engine, deploy(engine, nodes=nodes), 1.0)
    instructions = feed(engine, m.PrivateRequest(now_s=2.0, request="r1"))
    (decision,) = decisions(instructions)
    assert [crossing.trigger for crossing in decision.crossings] == ["privacy"]
    carry_out(engine, instructions, 3.0)
    assert engine.placement is not None
    assert set(engine.placement.nodes) == {"h1", "h5", "h6"}


def test_a_private_request_that_cannot_be_met_is_recorded_with_the_reason() -> None:
    engine = Engine(spec())
    old = serving(engine)
    (decision,) = decisions(feed(engine, m.PrivateRequest(now_s=2.0, request="r1")))
    assert decision.verdict == "keep"
    assert "min_nodes is 3 but 2 are trusted and usable" in decision.reason
    assert engine.placement == old


def test_a_drained_node_is_left_at_once_but_a_drained_head_stays() -> None:
    engine = Engine(spec())
    old = serving(engine)
    drained = old.nodes[1]
    nodes = tuple(replace(node, draining=node.name in (drained, old.head)) for node in NODES)
    instructions = look(engine, 2.0, nodes=nodes)
    assert [crossing.where for crossing in decisions(instructions)[0].crossings] == [drained]
    carry_out(engine, instructions, 3.0)
    assert engine.placement is not None
    assert drained not in engine.placement.nodes
    assert engine.placement.head == old.head


def test_the_operator_gets_any_better_placement_and_otherwise_a_reason() -> None:
    engine = Engine(spec())
    old = serving(engine)
    asked = feed(engine, m.MigrationRequested(now_s=2.0))
    assert decisions(asked)[0].verdict == "keep"
    assert "nothing is better" in decisions(asked)[0].reason
    small = {old.hops[1]: dict(the_network().paths)[old.hops[1]].delay_s.value * 2.5}  # type: ignore[operator]
    assert look(engine, 3.0, slow=small) == []
    instructions = feed(engine, m.MigrationRequested(now_s=4.0))
    assert decisions(instructions)[0].verdict != "keep"
    carry_out(engine, instructions, 5.0)
    assert engine.placement is not None
    assert old.hops[1] not in engine.placement.hops


def test_the_cool_down_does_not_hold_back_a_drained_node() -> None:
    engine = Engine(spec())
    placement = changed_once(engine)
    drained = placement.nodes[1]
    nodes = tuple(replace(node, draining=node.name == drained) for node in NODES)
    carry_out(engine, look(engine, 43.0, nodes=nodes), 44.0)
    assert engine.placement is not None
    assert drained not in engine.placement.nodes
