"""One job whose nodes are killed, hung, cut off or answer nonsense: each costs its own part, and is told."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from typing import Any

import numpy as np
import pytest
from loopback_orchestrator import DATA_ADDRESS, Loopback, system_of

from workers.agent import Agent
from workers.config import WorkerConfig
from workers.device_profile import make_profile
from workers.finetune.trainer import Trainer
from workers.wire import link
from workers.wire.frames import Frame

FORKED = {"h1": 4e9, "h2": 4e9, "h3": 4e9}
JOB = {
    "epochs": 100,
    "policy": "all",
    "seed": 11,
    "data_bytes": 120_000,
    "round_timeout_s": 30,
    "training": {"local_steps": 4, "batch_size": 4, "sequence_length": 32, "learning_rate": 1e-3},
}
Spoil = Callable[[link.Reply], link.Reply]


def with_nan(reply: link.Reply) -> link.Reply:
    name = next(iter(reply.tensors))
    return link.Reply(reply.fields, {**reply.tensors, name: np.full_like(reply.tensors[name], np.nan)})


def misshapen(reply: link.Reply) -> link.Reply:
    name = next(iter(reply.tensors))
    return link.Reply(reply.fields, {**reply.tensors, name: reply.tensors[name].reshape(-1)[:-1].copy()})


def of_another_round(reply: link.Reply) -> link.Reply:
    return link.Reply({**reply.fields, "epoch": reply.fields["epoch"] + 1}, reply.tensors)


class Relay:
    """Passes bytes on between a node and the orchestrator; once it is cut, nothing arrives or ends."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._passing = threading.Event()
        self._passing.set()
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._passing.clear()

    def heal(self) -> None:
        """Pass new connections on; the old ones are lost, as behind an address that has changed."""
        for sock in self._open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._passing.set()

    def close(self) -> None:
        self._listening.close()
        self.heal()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
                self._passing.wait()
                far = socket.create_connection(self._target)
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._passing.wait()
                sink.sendall(data)
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class OddNode:
    """A worker in a thread, whose answers to rounds are spoilt `times` times."""

    def __init__(
        self,
        system: Loopback,
        node: str,
        *,
        spoil: Spoil | None = None,
        times: int = 10**6,
        port: int | None = None,
    ) -> None:
        token = system.post("/api/v1/enrolment-tokens", {"node": node, "trusted": True})["token"]
        address = f"127.0.0.{10 + int(node[1:])}"
        config = WorkerConfig(
            node=node,
            orchestrator=(DATA_ADDRESS, port or system.data_port),
            listen=(address, 0),
            state_dir=system.directory / node,
            token=token,
            compute_flops=4e9,
            layer_overhead_s=0.0005,
            memory_bytes=400_000,
            pacing=True,
            emulated=True,
        )
        left = [times]

        class Spoiling(Trainer):
            def handle(self, frame: Frame) -> link.Reply:
                reply = super().handle(frame)
                if spoil is None or frame.kind != "train.run" or not left[0]:
                    return reply
                left[0] -= 1
                return spoil(reply)

        self.agent = Agent(config, make_profile(config), make_trainer=Spoiling)
        self.thread = threading.Thread(target=self.agent.run, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.agent.stop()
        self.thread.join(10)


def failures(shown: dict[str, Any], node: str) -> str:
    return "; ".join(epoch["failed"][node] for epoch in shown["epochs"] if node in epoch["failed"])


def known_delays(system: Loopback) -> set[str]:
    nodes = system.get("/api/v1/network")["nodes"]
    return {node["node"] for node in nodes if node["to_orchestrator"]["delay_s"]["value"] is not None}


@pytest.fixture(scope="module")
def system(tmp_path_factory):
    with system_of(tmp_path_factory.mktemp("faults"), FORKED) as made:
        yield made


def test_every_way_of_failing_costs_its_own_part_is_told_and_may_be_made_good(system):
    with ExitStack() as stack:
        relay = stack.enter_context(closing(Relay((DATA_ADDRESS, system.data_port))))
        for node, settings in {
            "h4": {"spoil": with_nan, "times": 1},
            "h5": {"spoil": misshapen},
            "h6": {"spoil": of_another_round},
            "h7": {"port": relay.port},
        }.items():
            stack.enter_context(closing(OddNode(system, node, **settings)))
        everybody = {f"h{number}" for number in range(1, 8)}
        system.wait(lambda: system.alive() == everybody, what="all workers are enrolled and alive")
        made = system.post("/api/v1/jobs", {**JOB, "model": system.model})
        address = f"/api/v1/jobs/{made['id']}"

        def shown() -> dict[str, Any]:
            return system.get(address)

        def await_contributors(*nodes: str) -> None:
            system.wait(
                lambda: (epochs := shown()["epochs"]) and sorted(epochs[-1]["contributed"]) == list(nodes),
                what=f"{', '.join(nodes)} contribute; it is {shown()['epochs'][-1:]}",
            )

        await_contributors("h1", "h2", "h3", "h4", "h7")
        assert "not finite" in failures(shown(), "h4")
        assert "must be float32" in failures(shown(), "h5")
        assert "the answer is for epoch 1 and version 0, asked were 0 and 0" in failures(shown(), "h6")

        hung = system.workers["h2"]
        os.kill(hung, signal.SIGSTOP)
        try:
            system.kill("h3")
            relay.cut()
            system.wait(
                lambda: system.alive() == {"h1", "h4", "h5", "h6"}, what="the dead and the silent are noticed"
            )
            await_contributors("h1", "h4")
        finally:
            os.kill(hung, signal.SIGCONT)
            relay.heal()
        await_contributors("h1", "h2", "h4", "h7")
        system.delete(address)
        ended = system.wait_state(address, ("cancelled", "failed", "completed"))
        assert ended["state"] == "cancelled", ended["reason"]
        decisions = system.get(f"{address}/decisions?limit=200")["items"]
        assert {item["inputs"]["node"] for item in decisions if item["verdict"] == "lost"} == {
            "h2",
            "h3",
            "h7",
        }
        told = [item["reason"] for item in decisions]
        assert any(reason.startswith("h2 takes part again") for reason in told)
        assert any(reason.startswith("h5: ") and "float32" in reason for reason in told)


def test_without_its_controller_a_job_goes_on_with_the_values_that_were_known(system):
    policy = {"policy": "eliminate", "epochs": 2, "nodes": ["h1", "h2", "h4"]}
    with closing(OddNode(system, "h4")):
        system.wait(lambda: {"h1", "h2", "h4"} <= system.alive(), what="three workers are alive")
        system.addresses["h4"] = "127.0.0.14"
        system.measure()
        system.wait(lambda: known_delays(system) >= {"h1", "h2", "h4"}, what="the paths are known")
        made = system.post("/api/v1/jobs", {**JOB, **policy, "model": system.model})
        system.controller.close()
        address = f"/api/v1/jobs/{made['id']}"
        shown = system.wait_state(address, ("completed", "failed"))
    assert shown["state"] == "completed", shown["reason"]
    assert [len(epoch["active"]) for epoch in shown["epochs"]] == [3, 1]
    decisions = system.get(f"{address}/decisions")["items"]
    first = next(item for item in decisions if item["kind"] == "eliminate")
    assert [score["criteria"]["delay"]["value"] for score in first["scores"]] == [0.001] * 3
    told = system.wait(
        lambda: not (seen := system.get("/readyz")["northbound"])["reachable"] and seen,
        what="the orchestrator notices that its controller is gone",
    )
    assert told["age_s"] > 0
    assert told["reason"]
