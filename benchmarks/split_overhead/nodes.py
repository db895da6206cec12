"""Our side: workers as the product runs them, one process and one core each, and what asks them.

A worker keeps what it holds for all deployments, so that the one that holds the whole model is also the first
stage of every ring.
"""

from __future__ import annotations

import datetime
import itertools
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.split_overhead import model
from orchestrator.adapters.certificates import Authority
from orchestrator.adapters.sockets import listen
from orchestrator.adapters.worker_pool import LiveWorkerPool
from orchestrator.clock import SystemClock
from workers import agent, namespaces
from workers.config import WorkerConfig
from workers.device import DeviceProfile
from workers.inference.shard import ShardHost
from workers.models.config import parse_config
from workers.models.loader import digest
from workers.models.model_config import parameter_shapes
from workers.models.precision import as_array, dtype_of

_ADDRESS = "127.0.0.1"
_ATTACH_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 120.0
_GENERATION_TIMEOUT_S = 120.0
_MEMORY_BYTES = 4 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a worker is: what it listens on, in which network namespace (None: this one)."""

    address: str
    netns: str | None = None


class Workers:
    """Attached workers, each on a core of its own as far as there are cores; to be closed.

    `control` is where they attach. Everything is on loopback unless `sites` says otherwise.
    """

    def __init__(
        self,
        folder: Path,
        cores: Sequence[int],
        *,
        make_shards: Callable[..., ShardHost] = ShardHost,
        sites: Sequence[Site] | None = None,
        control: Site = Site(address=_ADDRESS),
    ) -> None:
        """Start one worker per entry of `cores` and wait until all are attached."""
        sites = sites or [Site(address=_ADDRESS) for _ in cores]
        self.names = [f"n{number}" for number in range(len(cores))]
        self._numbers = itertools.count()
        self._heads: dict[str, str] = {}
        self._told: queue.SimpleQueue[tuple[str, Mapping[str, Any]]] = queue.SimpleQueue()
        authority = Authority(
            folder, address=control.address, now=lambda: datetime.datetime.now(datetime.UTC)
        )
        listening = listen(control.address, 0, netns=None if control.netns is None else Path(control.netns))
        self._pool = LiveWorkerPool(authority=authority, clock=SystemClock())
        joined = threading.Semaphore(0)
        self._pool.subscribe(lambda event: joined.release() if event.kind == "node_joined" else None)
        self._pool.on_notification("tokens", self._hear_tokens)
        self._pool.on_notification("done", lambda _node, fields: self._told.put(("done", fields)))
        context = multiprocessing.get_context("spawn")
        self._processes = []
        for name, core, site in zip(self.names, cores, sites, strict=True):
            config = WorkerConfig(
                node=name,
                orchestrator=(control.address, listening.getsockname()[1]),
                listen=(site.address, 0),
                state_dir=folder / name,
                token=authority.create_token(name, trusted=True),
                compute_flops=1e9,
                memory_bytes=_MEMORY_BYTES,
                give_up_after_s=10.0,
            )
            process = context.Process(target=_work, args=(config, core, site.netns, make_shards), daemon=True)
            process.start()
            self._processes.append(process)
        self._pool.start(listening)
        for _ in self.names:
            if not joined.acquire(timeout=_ATTACH_TIMEOUT_S):
                self.close()
                raise RuntimeError(f"not all of {len(cores)} workers attached within {_ATTACH_TIMEOUT_S:g} s")
        self.places = {record.node: (record.address, record.port) for record in self._pool.nodes()}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def deploy(
        self,
        name: str,
        document: dict[str, Any],
        parameters: dict[str, torch.Tensor],
        ranges: Sequence[tuple[int, int]],
        *,
        compute: str = "fp32",
        begin: int = 0,
    ) -> None:
        """Put layers [first, end) of `ranges` on the workers from the `begin`th on, the head on the first."""
        parameters = {key: value.to(dtype_of(compute)) for key, value in parameters.items()}
        whole, nodes = digest(parameters), self.names[begin : begin + len(ranges)]
        self._heads[name] = nodes[0]
        config = parse_config(document)
        for place, (node, (first, end)) in enumerate(zip(nodes, ranges, strict=True)):
            following, head = nodes[(place + 1) % len(nodes)], place == 0
            address, port = self.places[following]
            shapes = parameter_shapes(config, first_layer=first, end_layer=end, head=head)
            fields = {
                "deployment": name,
                "epoch": 1,
                "model": whole,
                "config": document,
                "roles": (["head"] if head else []) + (["stage"] if end > first else []),
                "first_layer": first,
                "end_layer": end,
                "tokenizer_json": model.tokenizer_json(document) if head else None,
                "previous": nodes[place - 1],
                "next": {"node": following, "address": address, "port": port},
                "context_tokens": config.context_tokens,
                "request_timeout_s": 30.0,
                "ring_nodes": len(nodes),
                "compute": compute,
            }
            tensors = {key: as_array(parameters[key]) for key in shapes}
            self._ask(node, "bulk", "shard.prepare", fields, tensors)
        for node in reversed(nodes):
            self._ask(node, "control", "shard.commit", {"deployment": name, "epoch": 1})

    def retire(self, name: str, count: int) -> None:
        """Take down what `deploy` put on the first `count` workers, and close connections of no other use."""
        for node in self.names[:count]:
            self._ask(node, "control", "shard.retire", {"deployment": name, "epoch": 1})

    def generate(
        self, *names: str, tokens: int, requests: int = 1, prompt: Sequence[int] = model.PROMPT
    ) -> list[list[Mapping[str, Any]]]:
        """Have `requests` answered at once; returns what was told of the tokens of each, in order.

        They go to the deployments `names` in turn. To each token, `heard_s` is added: when it was heard here.
        """
        made: dict[str, list[Mapping[str, Any]]] = {}
        for number in range(requests):
            own = [(token + 97 * number) for token in prompt]
            made[self.begin(names[number % len(names)], tokens=tokens, prompt=own)] = []
        running = set(made)
        for request, token in self.hear(running):
            made[request].append(token)
        return list(made.values())

    def begin(self, name: str, *, tokens: int, prompt: Sequence[int]) -> str:
        """Have a request answered; returns what it is called."""
        request = f"r{next(self._numbers)}"
        fields = {"deployment": name, "request": request, "tokens": list(prompt), "max_tokens": tokens}
        self._ask(self._heads[name], "control", "generate", fields)
        return request

    def hear(self, running: set[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Give what is told of tokens, with their requests, until all of `running` have ended.

        Who has ended is taken out of it; so may others be, or put in, meanwhile.
        """
        deadline_s = time.monotonic() + _GENERATION_TIMEOUT_S
        while running:
            kind, fields = self._told.get(timeout=max(0.0, deadline_s - time.monotonic()))
            if kind == "token":
                yield fields["request"], fields
                continue
            if fields["finish_reason"] not in ("length", "cancelled"):
                raise RuntimeError(f"a request ended with {fields['finish_reason']}: {fields.get('detail')}")
            running.discard(fields["request"])

    def cancel(self, name: str, request: str) -> None:
        """End a request."""
        self._ask(self._heads[name], "control", "cancel", {"deployment": name, "request": request})

    def _hear_tokens(self, _node: str, fields: Mapping[str, Any]) -> None:
        heard_s = time.monotonic()
        for token in fields["tokens"]:
            self._told.put(("token", {**token, "heard_s": heard_s}))

    def close(self) -> None:
        """End the workers."""
        self._pool.stop()
        for process in self._processes:
            process.terminate()
            process.join(10)

    def _ask(
        self, node: str, channel: Any, kind: str, fields: Mapping[str, Any], tensors: Any = None
    ) -> Mapping[str, Any]:
        return self._pool.request(
            node, channel, kind, dict(fields), tensors, timeout_s=_COMMAND_TIMEOUT_S
        ).fields


def _work(config: WorkerConfig, core: int, netns: str | None, make_shards: Callable[..., ShardHost]) -> None:
    os.sched_setaffinity(0, {core})
    if netns is not None:
        namespaces.enter(os.open(netns, os.O_RDONLY | os.O_CLOEXEC))
    torch.set_num_threads(1)
    profile = DeviceProfile(
        device="cpu", cpu_count=1, memory_bytes=_MEMORY_BYTES, compute_flops=1e9, layer_overhead_s=0.0,
        power=None, emulated=False, pacing=False, torch=torch.__version__, pid=os.getpid(),
    )  # fmt: skip
    agent.Agent(config, profile, make_shards=make_shards).run()
