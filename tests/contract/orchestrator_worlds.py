"""Each port with its real adapter and with its double, for one and the same contract suite."""

from __future__ import annotations

import datetime
import secrets
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

from orchestrator.adapters import sockets
from orchestrator.adapters.certificates import Authority
from orchestrator.adapters.worker_pool import LiveWorkerPool
from orchestrator.clock import SystemClock
from orchestrator.ports import Answer
from workers import identity
from workers.errors import RequestRefused
from workers.wire import connections, link

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "api"))
from orchestrator_fakes import FakePool, MemoryStore

PROFILE = {
    "device": "cpu",
    "cpu_count": 1,
    "memory_bytes": 1_000_000,
    "compute_flops": 1e9,
    "layer_overhead_s": 0.001,
    "power": 30.0,
    "emulated": True,
    "pacing": False,
    "torch": "2",
    "pid": 1,
}


class LinkWorker:
    """A worker reduced to its connections: enrols, attaches, beats, and answers what it is told to."""

    def __init__(self, port: int, node: str, token: str, state_dir: Path, answers) -> None:
        self.node = node
        self.port = port
        self.answers = answers
        parsed = identity.Token.parse(token)
        self.identity = identity.enrol(
            "127.0.0.1", port, token=parsed, node=node, state_dir=state_dir, timeout_s=5
        )
        self.session = secrets.token_hex(8)
        self.channels: dict[str, link.Channel] = {}

    def attach(self, *, profile=PROFILE):
        for name in ("control", "bulk"):
            self.channels[name] = connections.connect(
                "127.0.0.1",
                self.port,
                context=self.identity.client_context(),
                expected_name="orchestrator",
                handler=self._handle,
            )
            fields = {
                "channel": name,
                "session": self.session,
                "address": "198.18.1.1",
                "port": 7001,
                "profile": profile,
            }
            self.channels[name].request("attach", fields, timeout_s=5)

    def beat(self):
        fields = {"sent_at": 0.0, "cpu_utilisation": 0.5, "rss_bytes": 10, "busy": None, "shards": []}
        self.channels["control"].notify("heartbeat", fields)

    def close(self):
        for channel in self.channels.values():
            channel.close()

    def _handle(self, _channel, frame):
        if frame.kind not in self.answers:
            raise RequestRefused("not-served", frame.kind)
        answer = self.answers[frame.kind](self.node, dict(frame.fields), dict(frame.tensors))
        return link.Reply(answer.fields, answer.tensors)


class LiveWorld:
    """The real pool and workers on loopback."""

    def __init__(self, tmp_path: Path, **options) -> None:
        self.tmp_path = tmp_path
        self.authority = Authority(
            tmp_path / "authority",
            address="127.0.0.1",
            now=lambda: datetime.datetime.now(datetime.UTC),
        )
        self.pool = LiveWorkerPool(authority=self.authority, clock=SystemClock(), **options)
        listening = sockets.listen("127.0.0.1", 0, netns=None)
        self.port = listening.getsockname()[1]
        self.pool.start(listening)
        self.answers: dict = {}
        self._joins = 0
        self.workers: dict[str, LinkWorker] = {}

    def join(self, node: str, *, trusted: bool = True):
        token = self.pool.create_token(node, trusted=trusted)
        self._joins += 1
        state_dir = self.tmp_path / f"{node}-{self._joins}"
        self.workers[node] = LinkWorker(self.port, node, token, state_dir, self.answers)
        self.workers[node].attach()

    def leave(self, node: str):
        self.workers[node].close()

    def notify(self, kind, node, fields):
        self.workers[node].channels["control"].notify(kind, fields)

    def close(self):
        for worker in self.workers.values():
            worker.close()
        self.pool.stop()


class FakeWorld:
    """The double, driven by the same calls."""

    def __init__(self, _tmp_path: Path) -> None:
        self.pool = FakePool()
        self.answers = self.pool.answers

    def join(self, node: str, *, trusted: bool = True):
        self.pool.create_token(node, trusted=trusted)
        self.pool.join(node, profile=PROFILE)

    def leave(self, node: str):
        self.pool.leave(node)

    def notify(self, kind, node, fields):
        self.pool.notify(kind, node, fields)

    def close(self):
        return


@contextmanager
def world(kind: str, tmp_path: Path):
    made = LiveWorld(tmp_path) if kind == "live" else FakeWorld(tmp_path)
    try:
        yield made
    finally:
        made.close()


__all__ = ["FakePool", "Heard", "LinkWorker", "LiveWorld", "MemoryStore", "answer", "world"]


class Heard:
    """Collects what listeners are called with; waits for a condition with a deadline."""

    def __init__(self) -> None:
        self.items: list = []
        self._changed = threading.Condition()

    def __call__(self, *item):
        with self._changed:
            self.items.append(item[0] if len(item) == 1 else item)
            self._changed.notify_all()

    def wait_for(self, count: int, timeout_s: float = 5.0):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.items) >= count, timeout_s), self.items
            return list(self.items)


def answer(fields, tensors=None) -> Answer:
    return Answer(fields=fields, tensors=tensors or {}, sent_bytes=0, received_bytes=0)
