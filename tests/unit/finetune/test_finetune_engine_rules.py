"""The rules of a job that hold whatever happens."""

from __future__ import annotations

from finetune_engine_steps import answers, feed, incidents, job
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.finetune import messages as m


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
