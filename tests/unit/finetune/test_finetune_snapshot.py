"""A job that is resumed from its snapshot: the same nodes, the same draws, nothing asked twice."""

from __future__ import annotations

import json
from random import Random

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

from orchestrator.core.errors import InvalidValue
from orchestrator.finetune import messages as m
from orchestrator.finetune import snapshot as snapshots
from orchestrator.finetune.engine import Engine


def resumed(engine: Engine, now_s: float = 12.0, **spec: object) -> Engine:
    """Carry an engine over to another process: its snapshot goes through JSON text."""
    text = json.dumps(engine.snapshot(now_s).to_json())
    again = job(**spec)
    again.restore(snapshots.from_json(json.loads(text)))
    return again


def one_epoch_done(**spec: object) -> Engine:
    engine = job(**spec)
    begin(engine)
    contribute(engine, engine.active)
    close(engine)
    return engine


def restart(engine: Engine, now_s: float = 100.0) -> list[m.Instruction]:
    return start(engine, now_s)


def test_a_resumed_job_loads_all_with_the_newest_version_and_starts_those_that_were_chosen() -> None:
    engine = resumed(one_epoch_done())
    instructions = restart(engine)
    assert only(m.LoadNode, instructions) == [m.LoadNode(node=node, version=1) for node in NODES]
    assert only(m.Evaluate, instructions) == []
    assert verdicts(instructions)[0][0] == "resume"
    loaded = feed(engine, *(m.NodeLoaded(now_s=101.0, node=node, version=1) for node in NODES))
    assert only(m.StartRound, loaded) == [
        m.StartRound(node=node, epoch=1, version=1) for node in ("h1", "h2", "h3")
    ]
    assert only(m.SyncNode, loaded) == []


def test_a_loss_that_was_not_known_yet_is_measured_again_and_reported_with_its_epoch() -> None:
    engine = job()
    begin(engine)
    contribute(engine, NODES)
    closing = close(engine)  # the loss is the last event of these: take it away again
    report = only(m.ReportEpoch, closing)[0].report
    engine._job.losses.pop(1)
    again = resumed(engine)
    assert only(m.Evaluate, restart(again)) == [m.Evaluate(version=1)]
    told = again.handle(m.Evaluated(now_s=103.0, version=1, loss=1.5))
    (repeated,) = only(m.ReportEpoch, told)
    assert (repeated.report.epoch, repeated.report.loss) == (0, 1.5)
    assert repeated.report.contributed == report.contributed == NODES


def test_the_time_before_counts_and_the_time_away_does_not() -> None:
    engine = resumed(one_epoch_done(epochs=3, policy="all"), now_s=12.0)
    restart(engine, now_s=100.0)
    feed(engine, *(m.NodeLoaded(now_s=101.0, node=node, version=1) for node in NODES))
    contribute(engine, NODES, now_s=104.0)
    close(engine, now_s=105.0)
    contribute(engine, NODES, now_s=106.0)
    last = close(engine, now_s=107.0)
    synced = feed(engine, *(m.NodeSynced(now_s=108.0, node=node, version=3) for node in NODES))
    (finish,) = only(m.Finish, last + synced)
    assert finish.summary.completion_s == pytest.approx(12.0 + 7.5)
    assert finish.summary.final_version == 3


def test_a_job_killed_while_it_settles_only_settles() -> None:
    engine = one_epoch_done(epochs=2, policy="all")
    contribute(engine, NODES)
    close(engine, now_s=20.0)
    again = resumed(engine, now_s=21.0, epochs=2, policy="all")
    instructions = restart(again)
    assert names(m.LoadNode, instructions) == list(NODES)
    ended = feed(again, *(m.NodeLoaded(now_s=102.0, node=node, version=2) for node in NODES))
    assert only(m.StartRound, ended) == []
    (finish,) = only(m.Finish, ended)
    assert finish.summary.settled == NODES
    assert finish.summary.completion_s == pytest.approx(20.5)


def test_a_drawing_policy_draws_on_where_it_was() -> None:
    def drawn(engine: Engine) -> tuple[str, ...]:
        contribute(engine, engine.active)
        return only(m.ReportEpoch, close(engine))[0].report.eliminated

    undisturbed = one_epoch_done(policy="random")
    again = resumed(undisturbed, policy="random")
    restart(again)
    feed(again, *(m.NodeLoaded(now_s=101.0, node=node, version=1) for node in NODES))
    assert again.active == undisturbed.active
    assert drawn(again) == drawn(undisturbed)


@pytest.mark.parametrize(("rejoin", "active"), [(True, NODES), (False, NODES[:4])])
def test_a_node_that_had_failed_is_as_one_that_is_back(rejoin: bool, active: tuple[str, ...]) -> None:
    engine = job(policy="all", rejoin=rejoin, invalid_limit=1)
    begin(engine)
    contribute(engine, NODES[:4])
    feed(engine, update("h5", 0, valid=False, reason="NaN"))
    close(engine)
    assert "h5" not in engine.active
    again = resumed(engine, policy="all", rejoin=rejoin, invalid_limit=1)
    restart(again)
    assert again.active == active


def test_only_a_new_engine_is_restored() -> None:
    engine = one_epoch_done()
    with pytest.raises(InvalidValue, match="has begun"):
        engine.restore(engine.snapshot(12.0))


@pytest.mark.parametrize("change", [{"version": None}, {"losses": []}, {"reports": [3]}, {"out": 1}])
def test_a_snapshot_that_is_none_is_refused(change: dict[str, object]) -> None:
    document = {**one_epoch_done().snapshot(12.0).to_json(), **change}
    with pytest.raises(InvalidValue, match="cannot be read"):
        snapshots.from_json(document)


def test_a_broken_random_state_is_refused() -> None:
    with pytest.raises(InvalidValue, match="random generator"):
        snapshots.restore_random(Random(1), [3, [1, 2], None])
