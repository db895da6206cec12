"""Rings of shard hosts, and workers on loopback with their orchestrator; closed after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from agent_loopback import Worker
from model_worlds import MakeRing, Ring
from worker_loopback import LoopbackOrchestrator, TestAuthority

from workers.config import WorkerConfig


@pytest.fixture
def make_ring() -> Iterator[MakeRing]:
    rings: list[Ring] = []

    def make(*args: Any, **kwargs: Any) -> Ring:
        rings.append(Ring(*args, **kwargs))
        return rings[-1]

    yield make
    for ring in rings:
        ring.close()


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    return TestAuthority(tmp_path / "authority")


@pytest.fixture
def orchestrator(authority: TestAuthority) -> Iterator[LoopbackOrchestrator]:
    with closing(LoopbackOrchestrator(authority)) as served:
        yield served


@pytest.fixture
def start(orchestrator: LoopbackOrchestrator, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    with ExitStack() as stack:

        def start(node: str = "h1", **changes: Any) -> Worker:
            values: dict[str, Any] = {
                "node": node,
                "orchestrator": ("127.0.0.1", orchestrator.port),
                "listen": ("127.0.0.1", 0),
                "state_dir": tmp_path / node,
                "power": 30.0,
                "compute_flops": 1e9,
                "memory_bytes": 10**6,
                "emulated": True,
                "give_up_after_s": 20.0,
            }
            return stack.enter_context(closing(Worker(WorkerConfig(**(values | changes)))))

        yield start
