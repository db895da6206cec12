"""What a deployment does when nodes are lost, refuse, keep silent or stall."""

from __future__ import annotations

from dataclasses import replace

from core_examples import a_model, a_node
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
    tokens,
)

from orchestrator.inference import messages as m
from orchestrator.inference.engine import Engine


def test_a_lost_node_is_replaced_at_once_even_within_the_cool_down() -> None:
    engine = Engine(spec())
    placement = changed_once(engine)
    victim = placement.nodes[-1]
    instructions = feed(engine, m.NodeLost(now_s=43.0, node=victim, reason="connection closed"))
    (decision,) = decisions(instructions)
    assert decision.kind == "failover"
    assert f"node {victim} is lost: connection closed" in decision.reason
    assert states(instructions) == ["degraded"]
    done = carry_out(engine, instructions, 43.5)
    assert engine.placement is not None
    assert victim not in engine.placement.nodes
    assert engine.placement.head == placement.head
    assert only(m.FailRequests, done) == []
    assert states(done)[-1] == "serving"
    assert victim not in [i.node for i in done if isinstance(i, m.RetireShard)]


def test_if_the_head_is_lost_running_requests_fail_and_another_trusted_node_takes_over() -> None:
    engine = Engine(spec())
    placement = serving(engine)
    instructions = feed(engine, m.NodeLost(now_s=5.0, node=placement.head, reason="gone"))
    assert len(only(m.FailRequests, instructions)) == 1
    assert {i.node for i in instructions if isinstance(i, m.RetireShard)} == set(placement.nodes[1:])
    carry_out(engine, instructions, 6.0)
    assert engine.state == "serving"
    assert engine.placement is not None
    assert engine.placement.head == "h2"


def test_without_a_replacement_the_deployment_waits_degraded_and_recovers_when_nodes_come_back() -> None:
    engine = Engine(spec(nodes=("h1", "h3", "h4")))
    serving(engine)
    instructions = feed(engine, m.NodeLost(now_s=5.0, node="h3", reason="gone"))
    assert states(instructions) == ["degraded"]
    assert decisions(instructions)[0].verdict == "infeasible"
    gone = tuple(replace(node, alive=node.name != "h3") for node in NODES)
    assert look(engine, 6.0, nodes=gone) == []
    back = look(engine, 7.0)
    assert {p.shard.node: p.reuse for p in back if isinstance(p, m.PrepareShard)}["h3"] is False
    carry_out(engine, back, 8.0)
    assert engine.state == "serving"


def test_a_failover_frees_old_shards_first_where_memory_does_not_allow_both() -> None:
    nodes = tuple(a_node(name, trusted=name == "h1", memory_bytes=1_000_000) for name in NAMES[:4])
    engine = Engine(spec(model=a_model(8), nodes=("h1", "h3", "h4", "h2"), min_nodes=2))
    carry_out(engine, deploy(engine, nodes=nodes), 1.0)
    placement = engine.placement
    assert placement is not None
    victim = placement.nodes[-1]
    instructions = feed(engine, m.NodeLost(now_s=5.0, node=victim, reason="gone"))
    retired = [i.node for i in instructions if isinstance(i, m.RetireShard)]
    assert placement.head not in retired
    for prepare in instructions:
        if isinstance(prepare, m.PrepareShard) and prepare.shard.node in retired:
            assert prepare.reuse is False
    carry_out(engine, instructions, 6.0)
    assert engine.state == "serving"


def test_a_node_that_cannot_prepare_aborts_the_change_and_nothing_has_changed() -> None:
    engine = Engine(spec())
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    change = look(engine, 41.0, slow=slow_second_hop(old))
    nodes = [p.shard.node for p in change if isinstance(p, m.PrepareShard)]
    newcomer = next(node for node in nodes if node not in old.nodes)
    failed = m.PrepareFailed(now_s=42.0, node=newcomer, epoch=2, reason="out-of-memory")
    instructions = feed(engine, failed)
    assert only(m.AbortShard, instructions) == [m.AbortShard(node=node, epoch=2) for node in nodes]
    assert (engine.state, engine.placement) == ("serving", old)
    again = look(engine, 43.0, slow=slow_second_hop(old))
    epochs = {p.epoch for p in again if isinstance(p, m.PrepareShard)}
    assert epochs == {3}
    assert newcomer not in [p.shard.node for p in again if isinstance(p, m.PrepareShard)]


def test_a_node_that_refuses_the_first_placement_is_left_out_of_the_next_try() -> None:
    engine = Engine(spec())
    nodes = [p.shard.node for p in deploy(engine) if isinstance(p, m.PrepareShard)]
    failed = m.PrepareFailed(now_s=1.0, node=nodes[-1], epoch=1, reason="disk full")
    instructions = feed(engine, failed)
    assert decisions(instructions)[-1].reason.startswith(
        f"a node could not take its shard ({nodes[-1]}: disk full)"
    )
    carry_out(engine, instructions, 2.0)
    assert engine.placement is not None
    assert nodes[-1] not in engine.placement.nodes


def test_a_deployment_that_no_node_accepts_fails_after_bounded_attempts() -> None:
    engine = Engine(spec(min_nodes=1))
    todo = deploy(engine)
    for attempt in range(1, 20):
        if engine.ended:
            break
        prepare = next(i for i in todo if isinstance(i, m.PrepareShard))
        todo = feed(
            engine,
            m.PrepareFailed(now_s=float(attempt), node=prepare.shard.node, epoch=prepare.epoch, reason="no"),
        )
    assert engine.state == "failed"
    assert attempt <= 6


def test_silence_in_preparing_or_committing_runs_out_of_time() -> None:
    engine = Engine(spec(prepare_timeout_s=20.0, commit_timeout_s=5.0))
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    change = look(engine, 41.0, slow=slow_second_hop(old))
    assert feed(engine, m.Tick(now_s=60.9)) == []
    assert decisions(feed(engine, m.Tick(now_s=61.1)))[0].verdict == "aborted"
    assert engine.placement == old
    change = look(engine, 100.0, slow=slow_second_hop(old))
    for prepare in [i for i in change if isinstance(i, m.PrepareShard)]:
        feed(engine, m.Prepared(now_s=101.0, node=prepare.shard.node, epoch=3))
    assert feed(engine, m.Tick(now_s=105.9)) == []
    (decision,) = decisions(feed(engine, m.Tick(now_s=106.1)))
    assert "no commit within 5 s" in decision.reason
    assert engine.placement == old


def test_answers_of_an_aborted_epoch_change_nothing() -> None:
    engine = Engine(spec())
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    look(engine, 41.0, slow=slow_second_hop(old))
    feed(engine, m.PrepareFailed(now_s=42.0, node=old.nodes[0], epoch=2, reason="x"))
    assert feed(engine, *(m.Prepared(now_s=43.0, node=node, epoch=2) for node in NAMES)) == []
    assert feed(engine, m.Committed(now_s=43.0, node=old.head, epoch=2)) == []


def test_a_node_of_the_new_route_lost_in_preparing_aborts_and_the_old_route_serves_on() -> None:
    engine = Engine(spec())
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    change = look(engine, 41.0, slow=slow_second_hop(old))
    nodes = [p.shard.node for p in change if isinstance(p, m.PrepareShard)]
    newcomer = next(node for node in nodes if node not in old.nodes)
    instructions = feed(engine, m.NodeLost(now_s=42.0, node=newcomer, reason="gone"))
    assert newcomer not in [i.node for i in instructions if isinstance(i, m.AbortShard)]
    assert (engine.state, engine.placement) == ("serving", old)


def test_a_node_of_the_old_route_only_lost_in_preparing_lets_the_change_go_on() -> None:
    engine = Engine(spec())
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    change = look(engine, 41.0, slow=slow_second_hop(old))
    new = [p.shard.node for p in change if isinstance(p, m.PrepareShard)]
    leaving = next(node for node in old.nodes if node not in new)
    instructions = feed(engine, m.NodeLost(now_s=42.0, node=leaving, reason="gone"))
    assert states(instructions) == ["degraded"]
    assert only(m.AbortShard, instructions) == []
    carry_out(engine, change, 43.0)
    assert engine.state == "serving"
    assert engine.placement is not None
    assert list(engine.placement.nodes) == new


def test_a_stalled_ring_is_made_anew_and_at_the_second_stall_without_its_nodes() -> None:
    engine = Engine(spec())
    old = serving(engine)
    first = feed(engine, m.Stalled(now_s=10.0, epoch=1, request="r", detail="no answer in 10 s"))
    assert decisions(first)[0].verdict == "remake"
    assert feed(engine, m.Stalled(now_s=10.1, epoch=1, request="q", detail="no answer")) == []
    carry_out(engine, first, 11.0)
    assert engine.placement == old
    second = feed(engine, m.Stalled(now_s=22.0, epoch=2, request="r", detail="no answer in 10 s"))
    carry_out(engine, second, 23.0)
    assert engine.placement is not None
    assert set(engine.placement.nodes) & set(old.nodes) == {old.head}


def test_a_token_after_a_stall_clears_the_suspicion() -> None:
    engine = Engine(spec())
    old = serving(engine)
    for epoch in (1, 2):
        stalled = m.Stalled(now_s=10.0 * epoch, epoch=epoch, request="r", detail="no answer")
        carry_out(engine, feed(engine, stalled), 10.0 * epoch + 1)
        tokens(engine, epoch + 1, 0.05, 10.0 * epoch + 2, count=1)
    assert engine.placement == old
