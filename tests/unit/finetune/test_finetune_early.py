"""Rounds that do not wait for everybody, nodes that are not begun with, and those that come back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from finetune_engine_steps import (
    BEFORE,
    NODES,
    answers,
    begin,
    close,
    contribute,
    feed,
    incidents,
    job,
    metrics,
    names,
    only,
    start,
    update,
    verdicts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.selection import POLICIES, DeadlineOptions, PlanOptions, PolicyOptions
from orchestrator.core.workload import Workload
from orchestrator.finetune import messages as m
from orchestrator.finetune import snapshot as snapshots
from orchestrator.finetune.engine import Engine

TWO_OF_FIVE = PolicyOptions(deadline=DeadlineOptions(share=0.4, over_select=2.5))
WORK = Workload(model_bytes=1_000_000, update_bytes=1_000_000, data_bytes=dict.fromkeys(NODES, 100_000))


def eager(**values: object) -> Engine:
    """A job that eliminates as soon as it is certain."""
    return job(options=PolicyOptions(), **values)


def test_elimination_does_not_wait_for_nodes_that_will_be_eliminated_anyway() -> None:
    """Epoch 0: h4 and h5 are still loading, and worst in everything that is known of them."""
    engine = eager()
    start(engine)
    feed(engine, *(m.NodeLoaded(now_s=1.0, node=node, version=0) for node in NODES[:3]))
    instructions = contribute(engine, NODES[:3])
    assert verdicts(instructions)[-1][0] == "close without h4, h5"
    (aggregate,) = only(m.Aggregate, instructions)
    assert [c.node for c in aggregate.contributions] == ["h1", "h2", "h3"]
    closed = close(engine)
    (report,) = only(m.ReportEpoch, closed)[:1]
    assert (report.report.late, report.report.eliminated) == (("h4", "h5"), ("h4", "h5"))
    assert names(m.StartRound, closed) == ["h1", "h2", "h3"]
    assert feed(engine, m.NodeLoaded(now_s=50.0, node="h5", version=0)) == [m.SyncNode(node="h5", version=1)]


def test_it_waits_while_an_awaited_node_might_still_beat_another() -> None:
    engine = eager()
    begin(engine)
    assert only(m.Aggregate, contribute(engine, ["h1", "h4", "h5"])) == []
    assert engine.wakes_at_s == pytest.approx(10.0 * 1.02)
    assert only(m.Aggregate, contribute(engine, ["h2"])) == []
    assert only(m.Aggregate, contribute(engine, ["h3"])) != []
    assert engine.wakes_at_s is None


def test_a_late_update_is_discarded_and_the_node_is_free_again() -> None:
    engine = job(policy="deadline", options=TWO_OF_FIVE)
    begin(engine)
    contribute(engine, ["h1", "h2"])
    closed = close(engine)
    assert names(m.StartRound, closed) == ["h1", "h2"]  # the others are still busy
    late = feed(engine, update("h3", 0, 12.0))
    assert late == [m.Discard(node="h3", epoch=0, reason="it came too late or was not asked for")]
    assert feed(engine, update("h3", 0, 12.5)) == late
    contribute(engine, ["h1", "h2"], now_s=13.0)
    assert names(m.StartRound, close(engine, now_s=14.0)) == ["h1", "h2", "h3"]


def test_a_round_may_close_at_its_deadline_but_not_without_any_answer() -> None:
    options = PolicyOptions(deadline=DeadlineOptions(share=0.6, over_select=1.0, deadline_s=20.0))
    engine = job(policy="deadline", options=options)
    begin(engine)
    asked = engine._job.round.active
    assert only(m.Aggregate, feed(engine, m.Tick(now_s=25.0))) == []
    instructions = feed(engine, update(asked[0], 0, 26.0))
    assert only(m.Aggregate, instructions) != []
    assert verdicts(instructions)[-1][1] == "the deadline of 20 s has passed"


def test_the_engine_says_when_time_alone_could_close_the_round() -> None:
    options = PolicyOptions(deadline=DeadlineOptions(share=0.6, over_select=1.0, deadline_s=20.0))
    engine = job(policy="deadline", options=options)
    begin(engine)
    assert engine.wakes_at_s is None
    feed(engine, update(engine._job.round.active[0], 0, 5.0))
    assert engine.wakes_at_s == 20.0
    assert only(m.Aggregate, feed(engine, m.Tick(now_s=20.0))) != []


def planned(**options: float) -> tuple[Engine, list[m.Instruction]]:
    """Begin a planned job in which h5 is five times slower than h1; two or three are enough."""
    chosen = PolicyOptions(plan=PlanOptions(**{"least_efficiency": 0.7, "noise_nodes": 1.0, **options}))
    engine = job(policy="plan", options=chosen)
    told = feed(engine, m.JobStarted(now_s=0.0, workload=WORK), metrics(BEFORE, 0.0))
    return engine, told


def test_who_is_not_selected_gets_nothing_until_the_end_and_then_the_model_alone() -> None:
    engine, told = planned()
    chosen = names(m.LoadNode, told)
    assert chosen == ["h1", "h2"]
    assert verdicts(told)[1][0] == "begin with h1, h2"
    feed(engine, *(m.NodeLoaded(now_s=0.2, node=node, version=0) for node in chosen))
    for epoch in range(3):
        contribute(engine, chosen, now_s=0.4 * (epoch + 1))
        last = close(engine, now_s=0.4 * (epoch + 1) + 0.01)
        assert [i.data for i in only(m.LoadNode, last)] == ([False] * 3 if epoch == 2 else [])
    feed(engine, *(m.NodeSynced(now_s=9.0, node=node, version=3) for node in chosen))
    ended = feed(engine, *(m.NodeLoaded(now_s=20.0, node=node, version=3) for node in ("h3", "h4", "h5")))
    (finish,) = only(m.Finish, ended)
    assert finish.summary.settled == NODES
    assert finish.summary.completion_s < 2.0


def test_a_member_that_is_far_slower_than_forecast_is_replaced_and_kept_up_to_date() -> None:
    engine, told = planned(patience=1.5)
    chosen = names(m.LoadNode, told)
    feed(engine, *(m.NodeLoaded(now_s=0.2, node=node, version=0) for node in chosen))
    contribute(engine, ["h1"], now_s=0.4)
    instructions = feed(engine, m.Tick(now_s=9.0))
    assert verdicts(instructions)[-1][0] == "close without h2"
    closed = close(engine, now_s=9.1)
    (record,) = [r.decision for r in only(m.Record, closed) if r.decision.kind == "eliminate"]
    assert record.verdict == "eliminate h2"
    assert "h3" in record.inputs["readmitted"]
    assert "h3" in names(m.LoadNode, closed)
    assert names(m.SyncNode, feed(engine, update("h2", 0, 30.0))) == ["h2"]


def test_if_all_members_die_those_that_were_not_selected_train() -> None:
    engine, told = planned()
    lost = [m.NodeLost(now_s=1.0, node=node, reason="gone") for node in names(m.LoadNode, told)]
    instructions = feed(engine, *lost)
    assert verdicts(instructions)[-1][0] == "recalled"
    assert names(m.LoadNode, instructions) == ["h3", "h4", "h5"]


def test_a_resumed_plan_remembers_its_rounds_and_whom_it_had_not_selected() -> None:
    engine, told = planned()
    chosen = names(m.LoadNode, told)
    feed(engine, *(m.NodeLoaded(now_s=0.2, node=node, version=0) for node in chosen))
    contribute(engine, chosen, now_s=0.4)
    close(engine, now_s=0.5)
    text = json.dumps(engine.snapshot(0.6).to_json())
    again = job(policy="plan", options=engine.spec.options)
    again.restore(snapshots.from_json(json.loads(text)))
    told = feed(again, m.JobStarted(now_s=100.0, workload=WORK), metrics(BEFORE, 100.0))
    assert names(m.LoadNode, told) == chosen
    assert again._selecting.history == engine._selecting.history
    assert again._selecting.choices == tuple(replace(c, alternatives=()) for c in engine._selecting.choices)


def test_an_eliminated_node_whose_path_recovers_trains_again() -> None:
    engine = eager(nodes=(*NODES, "h6", "h7"), epochs=6)
    everybody = engine.spec.nodes
    feed(engine, m.JobStarted(now_s=0.0, workload=WORK), metrics(BEFORE, 0.0, everybody))
    feed(engine, *(m.NodeLoaded(now_s=1.0, node=node, version=0) for node in everybody))
    back: list[str] = []
    for epoch in range(4):
        contribute(engine, engine._job.round.active, now_s=10.0 * (epoch + 1))
        version, now_s = engine.version + 1, 10.0 * (epoch + 1) + 1
        taken = metrics(epoch, now_s, everybody)
        if epoch >= 1:  # h7's path and device are now as good as those of h1
            best = {("orch", "h7"): ("orch", "h1"), ("h7", "orch"): ("h1", "orch")}
            paths = {
                pair: replace(taken.network.path(*best.get(pair, pair)), src=pair[0], dst=pair[1])
                for pair in taken.network.paths
            }
            nodes = tuple(replace(n, compute_flops=1e9) if n.name == "h7" else n for n in taken.nodes)
            taken = replace(taken, network=replace(taken.network, paths=paths), nodes=nodes)
        told = feed(engine, m.Aggregated(now_s=now_s, version=version), taken)
        told += feed(engine, m.Evaluated(now_s=now_s, version=version, loss=2.0))
        for node in names(m.SyncNode, told):
            feed(engine, m.NodeSynced(now_s=now_s + 0.1, node=node, version=version))
        back += only(m.ReportEpoch, told)[0].report.readmitted
    assert back == ["h7"]


@settings(max_examples=120, deadline=None)
@given(events=incidents(), policy=st.sampled_from(POLICIES), known=st.booleans())
def test_with_every_policy_the_rules_hold_and_the_job_ends_whatever_happens(
    events: list[m.Event], policy: str, known: bool
) -> None:
    """Nothing is accepted twice, nothing asked of lost nodes; once nodes answer and time passes, it ends."""
    engine = job(policy=policy, options=PolicyOptions())
    accepted: set[tuple[str, int]] = set()
    lost: set[str] = set()

    def watched(event: m.Event) -> list[m.Instruction]:
        if isinstance(event, m.NodeLost):
            lost.add(event.node)
        if isinstance(event, m.NodeBack):
            lost.discard(event.node)
        told = engine.handle(event)
        for instruction in told:
            if isinstance(instruction, m.Accept):
                assert (instruction.node, instruction.epoch) not in accepted
                accepted.add((instruction.node, instruction.epoch))
            if isinstance(instruction, m.LoadNode | m.StartRound | m.SyncNode):
                assert instruction.node not in lost
        return told

    waiting = watched(m.JobStarted(now_s=0.0, workload=WORK if known else Workload()))
    for event in [metrics(BEFORE, 0.0), *events] if known else events:
        waiting += watched(event)
    now_s = 10_000.0
    for _ in range(400):
        if engine.ended:
            return
        now_s += 201.0
        todo, waiting = waiting, []
        for instruction in todo:
            for answer in answers(instruction, now_s):
                waiting += watched(answer)
        waiting += watched(m.Tick(now_s=now_s + 100.0))
    raise AssertionError("the job never ended")
