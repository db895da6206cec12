"""The fine-tuning engine: a job replayed event by event, and every way in which a node can let it down."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest
from core_examples import a_node, a_path
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.energy import Energy, PowerProfile
from orchestrator.core.errors import InvalidPolicy, InvalidValue
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


@settings(max_examples=150, deadline=None)
@given(events=incidents())
def test_whatever_happens_the_rules_of_a_job_hold(events: list[m.Event]) -> None:
    """Each delta is accepted once, aggregates are of what was accepted, nothing is asked of lost nodes."""
    engine = job()
    accepted: dict[int, dict[str, float]] = {}
    version = 0
    lost: set[str] = set()
    for event in [m.JobStarted(now_s=0.0), *events]:
        if isinstance(event, m.NodeLost):
            lost.add(event.node)
        if isinstance(event, m.NodeBack):
            lost.discard(event.node)
        for instruction in engine.handle(event):
            if isinstance(instruction, m.Accept):
                assert instruction.node not in accepted.setdefault(instruction.epoch, {})
                accepted[instruction.epoch][instruction.node] = instruction.weight
            elif isinstance(instruction, m.Aggregate):
                shares = {c.node: c.weight for c in instruction.contributions}
                assert shares == accepted[instruction.epoch]
                assert instruction.new_version == instruction.base_version + 1 == version + 1
                version = instruction.new_version
            elif isinstance(instruction, m.LoadNode | m.StartRound | m.SyncNode):
                assert instruction.node not in lost
                assert instruction.version <= version


@settings(max_examples=60, deadline=None)
@given(events=incidents(), seed=st.integers(0, 100))
def test_a_job_always_comes_to_an_end_once_time_passes_and_nodes_answer(
    events: list[m.Event], seed: int
) -> None:
    """After any incident, a driver that answers every instruction brings the job to Finish or Fail."""
    engine = job()
    waiting = feed(engine, m.JobStarted(now_s=0.0))
    for event in events:
        waiting += feed(engine, event)
    now = 10_000.0
    for _ in range(400):
        if engine.ended:
            return
        now += 1.0
        todo, waiting = waiting, []
        for instruction in todo:
            waiting += feed(engine, *answers(instruction, now))
        now += 200.0
        waiting += feed(engine, m.Tick(now_s=now))
    raise AssertionError("the job never ended")


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
