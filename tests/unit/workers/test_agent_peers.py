"""What nodes may ask of each other, and what they may not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import numpy as np
import pytest
from agent_loopback import Worker
from worker_loopback import LoopbackOrchestrator, wait_until

from workers.errors import (
    IdentityMismatch,
    LinkError,
)
from workers.wire import connections, link, tls


def test_peers_reach_the_shards_under_their_certificates_name(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    first = start("h1", token=orchestrator.authority.token("h1"))
    second = start("h2", token=orchestrator.authority.token("h2"))
    orchestrator.wait_for("h1", "h2")
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    with closing(second.shards.dial("h1", *orchestrator.place_of("h1"))) as channel:
        channel.notify("activation", {"position": 3}, {"x": rows})
        wait_until(lambda: first.shards.frames, what="the activation")
    peer_name, frame = first.shards.frames[0]
    assert (peer_name, frame.fields) == ("h2", {"position": 3})
    np.testing.assert_array_equal(frame.tensors["x"], rows)


def test_a_node_does_not_take_commands_of_another_node(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    context = orchestrator.authority.identity("h2").client_context()
    for kind in ("train.load", "shard.prepare", "generate", "activation"):
        with closing(
            connections.connect(*orchestrator.place_of("h1"), context=context, expected_name="h1")
        ) as channel:
            with pytest.raises(LinkError):
                channel.request(kind, timeout_s=5)
            assert channel.wait_closed(5)
    assert worker.shards.frames == []


def test_a_peer_that_breaks_the_protocol_or_is_not_on_the_route_does_not_disturb_others(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    worker = start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")

    def dial(name: str) -> link.Channel:
        context = orchestrator.authority.identity(name).client_context()
        return connections.connect(*orchestrator.place_of("h1"), context=context, expected_name="h1")

    with closing(dial("h2")) as good, closing(dial("h3")) as bad, closing(dial("h9")) as stray:
        stray.notify("activation")
        bad.notify("release")
        assert bad.wait_closed(5)
        good.notify("activation")
        wait_until(lambda: worker.shards.frames, what="the good peer's activation")
        assert [name for name, _ in worker.shards.frames] == ["h2"]


def test_a_peer_without_certificate_is_not_let_in(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start(token=orchestrator.authority.token("h1"))
    orchestrator.wait_for("h1")
    context = tls.client_context(ca_path=orchestrator.authority.ca_path)
    with (
        closing(
            connections.connect(*orchestrator.place_of("h1"), context=context, expected_name="h1")
        ) as channel,
        pytest.raises(LinkError),
    ):
        channel.request("activation", timeout_s=5)


def test_dialling_a_node_that_is_not_there_under_that_name_fails(
    start: Callable[..., Worker], orchestrator: LoopbackOrchestrator
) -> None:
    start("h1", token=orchestrator.authority.token("h1"))
    second = start("h2", token=orchestrator.authority.token("h2"))
    orchestrator.wait_for("h1", "h2")
    with pytest.raises(IdentityMismatch, match="names 'h1'"):
        second.shards.dial("h3", *orchestrator.place_of("h1"))
