"""Whole workers on loopback: enrolment, a training round, and a ring of three over TLS."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_worlds import TINY, Ring, as_arrays, profile, wait_for
from worker_loopback import LoopbackOrchestrator, TestAuthority

from workers.agent import Agent
from workers.config import WorkerConfig
from workers.errors import ChannelClosed, LinkError
from workers.wire import link

THREE = [("h1", 0, 2), ("h2", 2, 4), ("h3", 4, 6)]
SLOW = {"pacing": True, "layer_overhead_s": 0.002}


class Workers:
    """Worker agents in threads, attached to a loopback orchestrator."""

    def __init__(self, directory: Path, names: list[str]) -> None:
        self.authority = TestAuthority(directory / "authority")
        self.orchestrator = LoopbackOrchestrator(self.authority)
        self.agents: dict[str, Agent] = {}
        self.threads: dict[str, threading.Thread] = {}
        for name in names:
            config = WorkerConfig(
                node=name,
                orchestrator=("127.0.0.1", self.orchestrator.port),
                listen=("127.0.0.1", 0),
                state_dir=directory / name,
                token=self.authority.token(name),
            )
            self.agents[name] = Agent(config, profile(**SLOW))
            self.threads[name] = threading.Thread(target=self.agents[name].run, daemon=True)
            self.threads[name].start()
        self.orchestrator.wait_for(*names)
        self.ports = {name: self.orchestrator.place_of(name)[1] for name in names}

    def stop(self, name: str) -> None:
        self.agents[name].stop()
        self.threads[name].join(20)
        assert not self.threads[name].is_alive()

    def close(self) -> None:
        for name in self.agents:
            self.stop(name)
        self.orchestrator.close()


class WireRing(Ring):
    """The ring of the other tests, over the wire."""

    def __init__(self, workers: Workers) -> None:
        super().__init__("")
        self.workers = workers
        self.told = workers.orchestrator.notified

    def ask(self, node: str, kind: str, tensors: Any = None, **fields: Any) -> link.Reply:
        channel = "bulk" if kind == "shard.prepare" else "control"
        reply = self.workers.orchestrator.request(node, kind, fields, tensors, channel=channel)
        return link.Reply(reply.fields, reply.tensors)

    def prepare_fields(self, node: str, placement: list[tuple[str, int, int]], epoch: int) -> dict[str, Any]:
        fields = super().prepare_fields(node, placement, epoch)
        fields["next"]["port"] = self.workers.ports[fields["next"]["node"]]
        return fields


@pytest.fixture
def ring(tmp_path: Path) -> Iterator[WireRing]:
    workers = Workers(tmp_path, ["h1", "h2", "h3", "h4"])
    yield WireRing(workers)
    workers.close()


def test_a_training_round_comes_back_over_the_wire(ring: WireRing) -> None:
    ask = ring.workers.orchestrator.request
    plan = {
        "local_steps": 2,
        "batch_size": 2,
        "sequence_length": 16,
        "learning_rate": 1e-3,
        "optimiser": "adamw",
        "synchronisation": "local_steps",
        "schedule": "constant",
        "total_steps": 2,
        "warmup_steps": 0,
        "final_learning_rate_ratio": 0.0,
        "update_encoding": "fp32",
        "topk_ratio": 0.1,
        "lora_rank": 0,
        "lora_alpha": 8.0,
    }
    start = as_arrays(ring.parameters)
    loading = {"job": "j", "version": 0, "config": TINY, "training": plan}
    assert ask("h1", "train.load", loading, start, channel="bulk").fields["digest"] == ring.digest
    ask("h1", "train.data", {"job": "j"}, {"tokens": np.arange(200, dtype=np.uint8)}, channel="bulk")
    reply = ask("h1", "train.run", {"job": "j", "epoch": 0, "version": 0, "seed": 1}, channel="bulk")
    assert set(reply.tensors) == set(start)
    assert any(np.abs(value).max() > 0 for value in reply.tensors.values())
    ask("h1", "train.end", {"job": "j"}, channel="bulk")


def test_a_generation_survives_a_re_route_and_a_dead_worker(ring: WireRing) -> None:
    expected, margins = ring.reference(max_tokens=60)
    assert min(margins) > 1e-3
    ring.deploy(THREE, request_timeout_s=0.5)
    ring.generate("h1", "r", max_tokens=60)
    wait_for(lambda: len(ring.tokens("r")) >= 5, "five tokens")

    ring.deploy([("h1", 0, 1), ("h3", 1, 4), ("h2", 4, 6)], 2, request_timeout_s=0.5)
    for node in ("h1", "h2", "h3"):
        ring.ask(node, "shard.retire", deployment="d", epoch=1)
    wait_for(lambda: any(entry["epoch"] == 2 for entry in ring.tokens("r")), "a token of the second epoch")

    ring.workers.stop("h3")
    wait_for(lambda: any(kind == "stalled" for _, kind, _ in list(ring.told)), "the stall")
    ring.deploy([("h1", 0, 2), ("h4", 2, 4), ("h2", 4, 6)], 3)
    assert ring.wait_done("r")["finish_reason"] == "length"

    told = ring.tokens("r")
    assert [entry["token"] for entry in told] == expected
    assert [entry["index"] for entry in told] == list(range(60))
    assert {entry["epoch"] for entry in told} == {1, 2, 3}


def test_a_node_that_is_not_on_the_route_is_cut_off_and_nobody_else(ring: WireRing) -> None:
    ring.deploy(THREE)
    ring.generate("h1", "r", max_tokens=40)
    stranger = ring.workers.agents["h4"]
    channel = stranger._dial_peer("h2", "127.0.0.1", ring.workers.ports["h2"])
    fields = {"deployment": "d", "epoch": 1, "number": 1, "position": 0, "sequence": 1}
    channel.notify("activation", fields, {"x": np.zeros((1, 32), dtype=np.float32)})
    assert channel.wait_closed(10)
    with pytest.raises((ChannelClosed, LinkError)):
        channel.notify("activation", fields, {"x": np.zeros((1, 32), dtype=np.float32)})
    ring.wait_done("r")
    assert [entry["token"] for entry in ring.tokens("r")] == ring.reference(max_tokens=40)[0]


def test_rows_are_handed_over_with_their_values(ring: WireRing) -> None:
    ring.deploy([("h1", 0, 0), ("h2", 0, 6)])
    ring.generate("h1", "r", prompt="bytes: ä", max_tokens=10)
    ring.wait_done("r")
    expected, margins = ring.reference("bytes: ä", 10)
    assert [entry["token"] for entry in ring.tokens("r")] == expected
    torch.testing.assert_close([entry["margin"] for entry in ring.tokens("r")], margins, atol=1e-5, rtol=1e-5)
