"""A job from loading its nodes to its summary, when all goes well."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from finetune_engine_steps import (
    BEFORE,
    NODES,
    begin,
    close,
    contribute,
    feed,
    job,
    metrics,
    names,
    only,
    start,
    update,
    verdicts,
)

from orchestrator.core.energy import Energy, PowerProfile
from orchestrator.core.errors import InvalidPolicy, InvalidValue
from orchestrator.finetune import messages as m
from orchestrator.finetune.engine import Engine


def test_a_job_begins_by_loading_every_node_and_measuring_the_start_loss() -> None:
    engine = job()
    assert engine.handle(m.JobStarted(now_s=0.0)) == [m.Evaluate(version=0), m.TakeMetrics(epoch=BEFORE)]
    instructions = engine.handle(metrics(BEFORE, 0.1))
    assert [type(i).__name__ for i in instructions[:2]] == ["Record", "Announce"]
    assert instructions[2:] == [m.LoadNode(node=node, version=0) for node in NODES]


def test_a_job_begins_without_metrics_if_nobody_knows_them_in_time() -> None:
    engine = job(metrics_timeout_s=10.0)
    engine.handle(m.JobStarted(now_s=0.0))
    assert engine.handle(m.Tick(now_s=9.0)) == []
    assert names(m.LoadNode, engine.handle(m.Tick(now_s=10.5))) == list(NODES)


def test_a_node_trains_as_soon_as_it_is_loaded_itself() -> None:
    engine = job()
    start(engine)
    assert engine.handle(m.NodeLoaded(now_s=1.0, node="h2", version=0)) == [
        m.Announce(state="training", reason="h2 is loaded and trains"),
        m.StartRound(node="h2", epoch=0, version=0),
    ]
    assert engine.handle(m.NodeLoaded(now_s=9.0, node="h1", version=0)) == [
        m.StartRound(node="h1", epoch=0, version=0)
    ]


def test_updates_are_accepted_as_they_come_and_the_last_one_closes_the_epoch() -> None:
    engine = job()
    begin(engine)
    assert feed(engine, update("h3", 0, samples=16)) == [m.Accept(node="h3", epoch=0, weight=16.0)]
    contribute(engine, ["h1", "h2", "h4"])
    assert feed(engine, update("h5", 0)) == [
        m.Accept(node="h5", epoch=0, weight=32.0),
        m.Aggregate(
            epoch=0,
            base_version=0,
            new_version=1,
            outer_learning_rate=1.0,
            contributions=tuple(
                m.Contribution(node=node, weight=16.0 if node == "h3" else 32.0) for node in NODES
            ),
        ),
        m.TakeMetrics(epoch=0),
    ]


def test_the_worst_nodes_are_eliminated_and_get_the_new_version_in_the_background() -> None:
    engine = job()
    begin(engine)
    contribute(engine, NODES)
    assert engine.handle(m.Aggregated(now_s=11.0, version=1)) == [m.Evaluate(version=1)]
    instructions = engine.handle(metrics(0, 11.0))
    record, report, *rest = instructions
    assert isinstance(record, m.Record)
    decision = record.decision
    assert (decision.kind, decision.verdict) == ("eliminate", "eliminate h4, h5")
    assert [score.node for score in decision.scores] == ["h1", "h2", "h3", "h4", "h5"]
    assert decision.scores[0].score == pytest.approx(1.0)
    assert decision.scores[4].score == pytest.approx(0.0)
    assert decision.scores[2].criteria["time"].value == 4.0
    json.dumps(decision.to_json(), allow_nan=False)
    assert isinstance(report, m.ReportEpoch)
    assert (report.report.eliminated, report.report.loss) == (("h4", "h5"), None)
    assert rest == [
        *(m.StartRound(node=node, epoch=1, version=1) for node in ("h1", "h2", "h3")),
        m.SyncNode(node="h4", version=1),
        m.SyncNode(node="h5", version=1),
    ]


def test_an_evaluation_that_overlaps_the_next_epoch_completes_its_report() -> None:
    engine = job()
    begin(engine)
    contribute(engine, NODES)
    instructions = close(engine, loss=1.75)
    last = only(m.ReportEpoch, instructions)[-1]
    assert isinstance(last, m.ReportEpoch)
    assert (last.report.epoch, last.report.loss) == (0, 1.75)


def test_a_slow_transfer_to_an_eliminated_node_holds_nobody_up_and_is_coalesced() -> None:
    engine = job()
    begin(engine)
    contribute(engine, NODES)
    close(engine)
    contribute(engine, ["h1", "h2", "h3"])
    second = close(engine)
    assert names(m.StartRound, second) == ["h1"]
    assert names(m.SyncNode, second) == ["h2", "h3"]
    behind = feed(engine, m.NodeSynced(now_s=30.0, node="h4", version=1))
    assert behind == [m.SyncNode(node="h4", version=2)]


def finished_job(engine: Engine) -> m.Summary:
    begin(engine)
    instructions: list[m.Instruction] = []
    for epoch in range(engine.spec.epochs):
        contribute(engine, engine.active, now_s=10.0 * (epoch + 1))
        instructions = close(engine, now_s=10.0 * (epoch + 1) + 1)
        for node in names(m.SyncNode, instructions):
            instructions += feed(engine, m.NodeSynced(now_s=50.0, node=node, version=engine.version))
    finish = instructions[-1]
    assert isinstance(finish, m.Finish), instructions
    assert engine.ended
    return finish.summary


def test_the_job_is_complete_when_the_final_loss_is_known_and_settled_when_all_nodes_have_it() -> None:
    engine = job()
    feed(engine, m.Evaluated(now_s=0.0, version=0, loss=2.4))
    summary = finished_job(engine)
    assert replace(summary, energy={}, energy_total=Energy()) == m.Summary(
        policy="eliminate",
        epochs=3,
        start_loss=2.4,
        final_loss=2.0,
        final_version=3,
        completion_s=31.5,
        settle_s=18.5,
        settled=NODES,
        unsettled={},
    )


def test_the_summary_says_what_the_job_cost_each_node() -> None:
    """h1 is loaded in 1 s, trains 1 s and transfers 8 s in each epoch, and gets the model in 19 s."""
    power = PowerProfile(compute_w=10.0, transfer_w=4.0, idle_w=2.0)
    summary = finished_job(job(power=power))
    spent = summary.energy["h1"]
    assert spent.compute_j == pytest.approx(10.0 * 3)
    assert spent.transfer_j == pytest.approx(4.0 * (1 + 8 + 8 + 8 + 19))
    assert spent.total_j == pytest.approx(spent.compute_j + spent.transfer_j + spent.idle_j)
    assert summary.energy_total.total_j == pytest.approx(sum(e.total_j for e in summary.energy.values()))


def test_nobody_is_eliminated_after_the_last_epoch() -> None:
    engine = job(epochs=2, nodes=("h1", "h2", "h3"))
    begin(engine)
    contribute(engine, engine.active)
    close(engine)
    active = engine.active
    contribute(engine, active)
    instructions = close(engine)
    assert verdicts(instructions)[0] == ("keep all", "the last epoch: all 1 stay")
    assert engine.active == active


def test_with_all_resources_every_node_takes_part_to_the_end() -> None:
    engine = job(policy="all", epochs=5)
    assert finished_job(engine).settled == NODES
    assert engine.active == NODES


@pytest.mark.parametrize("criterion", ["train_s", "round_s"])
def test_the_time_that_is_scored_is_the_one_that_was_asked_for(criterion: str) -> None:
    engine = job(time_criterion=criterion)
    begin(engine)
    feed(engine, *(update(node, 0, train_s=1.0, round_s=5.0) for node in NODES))
    record = only(m.Record, close(engine))[0]
    assert isinstance(record, m.Record)
    assert record.decision.scores[0].criteria["time"].value == (1.0 if criterion == "train_s" else 5.0)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"nodes": ()}, InvalidValue, "no nodes"),
        ({"nodes": ("h1", "h1")}, InvalidValue, "named twice"),
        ({"epochs": 5}, InvalidPolicy, "only 5 nodes"),
        ({"policy": "oracle"}, InvalidPolicy, "'oracle' is unknown"),
        ({"time_criterion": "T"}, InvalidValue, "known: train_s, round_s"),
    ],
)
def test_a_job_that_cannot_work_is_refused(values: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        job(**values)
