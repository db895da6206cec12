"""The deployment engine: placing, watching, changing in two phases, failing over, replayed event by event."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pytest
from core_examples import a_model, a_network, a_node, a_path
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.cost import Workload
from orchestrator.core.decisions import Decision
from orchestrator.core.errors import Infeasible, InvalidValue
from orchestrator.core.model import Network, NodeState, Placement
from orchestrator.core.triggers import Thresholds
from orchestrator.inference import messages as m
from orchestrator.inference.engine import Engine, preview

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


def changed_once(engine: Engine) -> Placement:
    old = serving(engine)
    tokens(engine, 1, 0.6, 40.0)
    carry_out(engine, look(engine, 41.0, slow=slow_second_hop(old)), 42.0)
    assert engine.placement is not None
    return engine.placement


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


def test_the_cool_down_does_not_hold_back_a_drained_node() -> None:
    engine = Engine(spec())
    placement = changed_once(engine)
    drained = placement.nodes[1]
    nodes = tuple(replace(node, draining=node.name == drained) for node in NODES)
    carry_out(engine, look(engine, 43.0, nodes=nodes), 44.0)
    assert engine.placement is not None
    assert drained not in engine.placement.nodes
