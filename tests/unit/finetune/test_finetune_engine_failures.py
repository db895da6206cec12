"""What a job does when nodes are lost, hang or send garbage, or something else fails."""

from __future__ import annotations

import pytest
from finetune_engine_steps import (
    NODES,
    begin,
    close,
    contribute,
    feed,
    job,
    names,
    only,
    start,
    update,
    verdicts,
)

from orchestrator.finetune import messages as m


def test_a_node_lost_in_mid_round_costs_its_own_contribution_only() -> None:
    engine = job()
    begin(engine)
    contribute(engine, ["h1", "h2", "h3", "h4"])
    instructions = feed(engine, m.NodeLost(now_s=12.0, node="h5", reason="connection closed"))
    assert verdicts(instructions) == [("lost", "h5: connection closed")]
    aggregate = only(m.Aggregate, instructions)[0]
    assert isinstance(aggregate, m.Aggregate)
    assert [c.node for c in aggregate.contributions] == ["h1", "h2", "h3", "h4"]
    report = only(m.ReportEpoch, close(engine))[0]
    assert isinstance(report, m.ReportEpoch)
    assert report.report.failed == {"h5": "lost: connection closed"}
    assert report.report.eliminated == ("h3", "h4")


def test_a_node_lost_while_loading_does_not_hold_up_the_others() -> None:
    engine = job()
    start(engine)
    feed(engine, *(m.NodeLoaded(now_s=1.0, node=node, version=0) for node in NODES[:4]))
    contribute(engine, NODES[:4])
    assert only(m.Aggregate, feed(engine, m.NodeLost(now_s=5.0, node="h5", reason="gone")))


def test_a_node_that_was_dead_at_the_start_is_not_loaded() -> None:
    engine = job()
    engine.handle(m.NodeLost(now_s=0.0, node="h2", reason="gone"))
    assert names(m.LoadNode, start(engine, 0.1)) == ["h1", "h3", "h4", "h5"]


def test_a_hung_node_runs_out_of_time_and_its_late_update_is_discarded_but_brings_it_back() -> None:
    engine = job()
    begin(engine, now_s=0.0)
    contribute(engine, ["h1", "h2", "h3", "h4"])
    assert feed(engine, m.Tick(now_s=60.9)) == []
    instructions = feed(engine, m.Tick(now_s=61.1))
    assert verdicts(instructions) == [("hung", "h5: no update within 60 s")]
    assert only(m.Aggregate, instructions)
    late = feed(engine, update("h5", 0, 70.0))
    assert late[0] == m.Discard(node="h5", epoch=0, reason="it came too late or was not asked for")
    assert verdicts(late)[0][0] == "answers-again"
    assert names(m.StartRound, close(engine)) == ["h1", "h2", "h5"]


def test_a_hung_node_stays_out_where_rejoining_is_off_but_is_kept_up_to_date() -> None:
    engine = job(rejoin=False)
    begin(engine)
    contribute(engine, ["h1", "h2", "h3", "h4"])
    feed(engine, m.Tick(now_s=61.1), update("h5", 0, 70.0))
    instructions = close(engine)
    assert names(m.StartRound, instructions) == ["h1", "h2"]
    assert "h5" in names(m.SyncNode, instructions)


def test_a_lost_node_that_comes_back_is_loaded_again_and_joins_the_next_epoch() -> None:
    engine = job()
    begin(engine)
    feed(engine, m.NodeLost(now_s=5.0, node="h1", reason="gone"))
    back = feed(engine, m.NodeBack(now_s=6.0, node="h1"))
    assert only(m.LoadNode, back) == [m.LoadNode(node="h1", version=0)]
    assert feed(engine, m.NodeLoaded(now_s=8.0, node="h1", version=0)) == []
    contribute(engine, NODES[1:])
    assert names(m.StartRound, close(engine)) == ["h1", "h2", "h3"]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"valid": False, "reason": "delta of layer 3 has NaN"}, "delta of layer 3 has NaN"),
        ({"samples": 0}, "samples is 0, must be at least 1"),
        ({"round_s": float("nan")}, "round_s is nan, must be finite and at least 0"),
        ({"train_s": -1.0}, "train_s is -1.0, must be finite and at least 0"),
    ],
)
def test_garbage_is_discarded_and_the_node_gets_another_chance(wrong: dict[str, object], reason: str) -> None:
    engine = job()
    begin(engine)
    instructions = feed(engine, update("h1", 0, **wrong))
    assert instructions[0] == m.Discard(node="h1", epoch=0, reason=reason)
    assert verdicts(instructions) == [("refused", f"h1: {reason}")]
    contribute(engine, NODES[1:])
    assert "h1" in names(m.StartRound, close(engine))


def test_garbage_twice_in_a_row_leaves_a_node_out() -> None:
    engine = job(policy="all")
    begin(engine)
    for epoch in range(2):
        feed(engine, update("h1", epoch, samples=0))
        contribute(engine, NODES[1:])
        instructions = close(engine)
    assert names(m.StartRound, instructions) == list(NODES[1:])
    assert names(m.SyncNode, instructions) == ["h1"]


def test_a_second_update_for_the_same_epoch_is_discarded() -> None:
    engine = job()
    begin(engine)
    feed(engine, update("h1", 0))
    assert feed(engine, update("h1", 0)) == [
        m.Discard(node="h1", epoch=0, reason="it came too late or was not asked for")
    ]


def test_an_update_from_a_node_that_is_no_part_of_the_job_is_discarded() -> None:
    engine = job()
    begin(engine)
    assert names(m.Discard, feed(engine, update("h99", 0))) == ["h99"]


def test_a_failed_load_leaves_the_node_out_with_its_reason() -> None:
    engine = job()
    start(engine)
    failed = m.RequestFailed(now_s=1.0, node="h3", request="load", reason="out-of-memory")
    assert verdicts(feed(engine, failed)) == [("load-failed", "h3: could not be loaded: out-of-memory")]
    assert engine.active == ("h1", "h2", "h4", "h5")


def test_all_nodes_lost_fails_the_job_with_every_reason() -> None:
    engine = job(nodes=("h1", "h2"), policy="all")
    begin(engine)
    lost = [m.NodeLost(now_s=5.0, node=node, reason="gone") for node in engine.spec.nodes]
    instructions = feed(engine, *lost)
    assert instructions[-1] == m.Fail(reason="no node contributed to epoch 0: h1: lost: gone; h2: lost: gone")
    assert engine.ended


def test_if_the_last_active_node_dies_the_eliminated_are_called_back_and_the_epoch_is_done_again() -> None:
    engine = job()
    begin(engine)
    contribute(engine, NODES)
    close(engine)
    for node in ("h4", "h5"):
        feed(engine, m.NodeSynced(now_s=12.0, node=node, version=1))
    lost = [m.NodeLost(now_s=13.0, node=node, reason="gone") for node in ("h1", "h2", "h3")]
    instructions = feed(engine, *lost)
    assert verdicts(instructions)[-1][0] == "recalled"
    assert only(m.StartRound, instructions) == [
        m.StartRound(node=node, epoch=1, version=1) for node in ("h4", "h5")
    ]


def test_missing_metrics_do_not_stop_the_job() -> None:
    engine = job()
    begin(engine)
    contribute(engine, NODES)
    feed(engine, m.Aggregated(now_s=11.0, version=1))
    assert feed(engine, m.Tick(now_s=19.0)) == []
    instructions = feed(engine, m.Tick(now_s=20.1))
    record = only(m.Record, instructions)[0]
    assert isinstance(record, m.Record)
    assert "not been measured" in (record.decision.scores[0].criteria["delay"].note or "")
    assert len(only(m.StartRound, instructions)) == 3


def test_a_node_that_cannot_be_brought_up_to_date_is_named_and_does_not_hold_up_the_end() -> None:
    engine = job(nodes=("h1", "h2", "h3"), epochs=2)
    begin(engine)
    contribute(engine, engine.active)
    close(engine)
    failed = m.RequestFailed(now_s=12.0, node="h2", request="sync", reason="refused")
    for _ in range(2):
        assert names(m.SyncNode, feed(engine, failed)) == ["h2"]
    assert feed(engine, failed) == []
    contribute(engine, ["h1"])
    instructions = close(engine)
    for node in names(m.SyncNode, instructions):
        instructions += feed(engine, m.NodeSynced(now_s=40.0, node=node, version=2))
    instructions += feed(engine, m.NodeSynced(now_s=41.0, node="h3", version=2))
    finish = instructions[-1]
    assert isinstance(finish, m.Finish)
    assert finish.summary.settled == ("h1", "h3")
    assert finish.summary.unsettled == {"h2": "refused"}


def test_a_transfer_that_never_ends_is_given_up_after_its_time() -> None:
    engine = job(nodes=("h1", "h2", "h3"), epochs=2, policy="all", sync_timeout_s=20.0)
    begin(engine)
    for _ in range(2):
        contribute(engine, engine.active)
        close(engine, now_s=30.0)
    feed(engine, *(m.NodeSynced(now_s=31.0, node=node, version=2) for node in ("h1", "h2")))
    finish = feed(engine, m.Tick(now_s=51.0))[-1]
    assert isinstance(finish, m.Finish)
    assert finish.summary.unsettled == {"h3": "no answer within 20 s"}


def test_a_loss_that_is_no_number_ends_the_job_with_advice() -> None:
    engine = job()
    begin(engine)
    contribute(engine, NODES)
    instructions = close(engine, loss=float("nan"))
    assert instructions[-1] == m.Fail(
        reason="the held-out loss of version 1 is nan: training diverged; lower the learning rate"
    )


def test_a_cancelled_job_ends_and_discards_what_still_comes() -> None:
    engine = job()
    begin(engine)
    assert feed(engine, m.Cancelled(now_s=3.0))[-1] == m.Fail(reason="cancelled by the user", cancelled=True)
    assert feed(engine, update("h1", 0)) == [m.Discard(node="h1", epoch=0, reason="the job is over")]
    assert feed(engine, m.Tick(now_s=500.0)) == []


def test_a_failure_at_the_orchestrator_fails_the_job() -> None:
    engine = job()
    begin(engine)
    assert feed(engine, m.DriverFailed(now_s=3.0, reason="disk full"))[-1] == m.Fail(reason="disk full")


def test_a_good_answer_between_two_bad_ones_keeps_a_node_in() -> None:
    engine = job(policy="all", epochs=4)
    begin(engine)
    for samples in (0, 32, 0):
        feed(engine, update("h1", engine.epoch, samples=samples))
        contribute(engine, NODES[1:])
        instructions = close(engine)
    assert "h1" in names(m.StartRound, instructions)


def test_a_node_lost_while_it_is_brought_up_to_date_does_not_hold_up_the_end() -> None:
    engine = job(nodes=("h1", "h2", "h3"), epochs=2, policy="all")
    begin(engine)
    for _ in range(2):
        contribute(engine, engine.active)
        close(engine)
    feed(engine, *(m.NodeSynced(now_s=31.0, node=node, version=2) for node in ("h1", "h2")))
    finish = feed(engine, m.NodeLost(now_s=32.0, node="h3", reason="gone"))[-1]
    assert isinstance(finish, m.Finish)
    assert finish.summary.unsettled == {"h3": "lost"}
