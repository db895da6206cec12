"""An attached worker on loopback: commands, heartbeats, coming back, ending."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from agent_loopback import Worker
from worker_loopback import LoopbackOrchestrator, wait_until

from workers.errors import (
    RemoteError,
)


def test_what_fine_tuning_may_take_is_limited_by_the_configuration(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start(token=orchestrator.authority.token("h1"), training_memory_bytes=12_345)
    wait_until(lambda: orchestrator.heartbeats("h1"), what="a heartbeat")
    assert orchestrator.heartbeats("h1")[-1]["free_memory_bytes"] == 12_345


def test_commands_go_to_trainer_and_shards_and_the_rest_is_refused(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    worker.trainer.let_go.set()
    for kind, by in {
        "train.load": "trainer",
        "train.end": "trainer",
        "shard.prepare": "shards",
        "generate": "shards",
        "cancel": "shards",
        "probe.layer": "shards",
    }.items():
        assert orchestrator.request("h1", kind, channel="bulk").fields == {"by": by, "kind": kind}
    with pytest.raises(RemoteError, match="not-served: a worker does not know 'activation'"):
        orchestrator.request("h1", "activation")


def test_heartbeats_go_on_and_name_the_command_while_it_runs(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    asking = threading.Thread(target=lambda: orchestrator.request("h1", "train.run", channel="bulk"))
    asking.start()
    wait_until(
        lambda: [beat["busy"] for beat in orchestrator.heartbeats("h1")].count("train.run") >= 3,
        what="heartbeats of a busy worker",
    )
    worker.trainer.let_go.set()
    asking.join(10)
    wait_until(lambda: orchestrator.heartbeats("h1")[-1]["busy"] is None, what="an idle heartbeat")


def test_a_worker_comes_back_when_its_connections_are_cut(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    first = orchestrator.channels["h1", "control"]
    orchestrator.channels["h1", "bulk"].close()  # either one ends both
    orchestrator.wait_for("h1", attachments=2)
    assert first.wait_closed(5)
    assert orchestrator.attached[0][1]["session"] != orchestrator.attached[-1][1]["session"]


def test_a_worker_outlives_a_restart_of_the_orchestrator_and_then_sends_what_waited(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    orchestrator.leave()
    for index in range(5):
        worker.shards.notify("tokens", {"index": index})
    orchestrator.open()
    orchestrator.wait_for("h1", attachments=2)

    def indices() -> list[int]:
        return [fields["index"] for _, kind, fields in list(orchestrator.notified) if kind == "tokens"]

    wait_until(lambda: indices()[-1:] == [4], what="the notifications that waited")
    # The first may have been handed to the old connection before it was known to be gone.
    assert indices() == list(range(5 - len(indices()), 5))


def test_stopping_closes_the_parts(start: Callable[..., Worker], orchestrator: LoopbackOrchestrator) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    started_s = time.monotonic()
    worker.close()
    assert time.monotonic() - started_s < 3
    assert worker.trainer.closed
    assert worker.shards.closed
    assert worker.failure is None
