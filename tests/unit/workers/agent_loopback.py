"""A worker's agent in a thread, its trainer and shards replaced by ones that record."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workers.agent import Agent
from workers.config import WorkerConfig
from workers.device import Pacer
from workers.device_profile import make_profile
from workers.errors import (
    RequestRefused,
    WireError,
)
from workers.wire import link
from workers.wire.frames import Frame


class RecordingTrainer:
    """Answers commands with their kind; `train.run` waits until it is let go."""

    def __init__(self, pacer: Pacer) -> None:
        self.pacer = pacer
        self.let_go = threading.Event()
        self.closed = False

    def handle(self, frame: Frame) -> link.Reply:
        if frame.kind == "train.run":
            self.let_go.wait(20)
        return link.Reply({"by": "trainer", "kind": frame.kind})

    def close(self) -> None:
        self.closed = True
        self.let_go.set()


class RecordingShards:
    """Records peers' frames; knows the dialler and the notifier that the agent lent it."""

    def __init__(
        self,
        node: str,
        pacer: Pacer,
        *,
        memory_bytes: int,
        dial: Callable[[str, str, int], link.Channel],
        notify: Callable[[str, dict[str, Any]], None],
    ) -> None:
        self.dial = dial
        self.notify = notify
        self.frames: list[tuple[str, Frame]] = []
        self.closed = False

    def handle(self, frame: Frame) -> link.Reply:
        return link.Reply({"by": "shards", "kind": frame.kind})

    def on_peer_frame(self, peer_name: str, frame: Frame, *, more: bool) -> None:
        if peer_name == "h9":
            raise RequestRefused("not-on-route", "h9 is not on the route")
        if frame.kind == "release":
            raise WireError("a release that makes no sense")
        self.frames.append((peer_name, frame))

    def holdings(self) -> list[str]:
        return ["demo/3: layers 0 to 2"]

    def caches(self) -> dict[str, Any]:
        return {"used_bytes": {"demo": 5}, "free_bytes": 7}

    def close(self) -> None:
        self.closed = True


class Worker:
    """An agent running in a thread, with its parts within reach."""

    def __init__(self, config: WorkerConfig) -> None:
        self.config = config
        self.failure: Exception | None = None

        def make_trainer(pacer: Pacer, _local_data: Path | None) -> RecordingTrainer:
            self.trainer = RecordingTrainer(pacer)
            return self.trainer

        def make_shards(*arguments: Any, **options: Any) -> RecordingShards:
            self.shards = RecordingShards(*arguments, **options)
            return self.shards

        self.agent = Agent(config, make_profile(config), make_trainer=make_trainer, make_shards=make_shards)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.failure = error

    def close(self) -> None:
        self.agent.stop()
        self.thread.join(10)
        assert not self.thread.is_alive()
