"""The part `clients`: many streaming clients of a testbed's deployment, and what becomes of memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import psutil

from benchmarks.split_overhead import streams
from benchmarks.split_overhead.cores import on_all_cores
from orchestrator.client import Client
from scenarios.schema import Scenario, parse
from topologies import testbed
from topologies.status import Status

PREFIX = "spc"
_DEPLOY_TIMEOUT_S = 120.0
Progress = Callable[[str], None]


def scenario(*, seed: int) -> Scenario:
    """Return three nodes behind three gateways, as fast as this machine is."""
    return parse(
        {
            "name": "clients",
            "seed": seed,
            "topology": {"hosts": 3, "domains": 3},
            "links": {"setup": 3},
            "devices": {"trusted": ["h1", "h2"], "pacing": False, "shard_memory_bytes": 400_000_000},
            "network": {
                "prefix": PREFIX,
                "openflow_port": 6863,
                "northbound_port": 8680,
                "api_port": 8681,
            },
            "finetune": {"epochs": 2},
        },
        source="clients",
    )


def measure(*, clients: int, seconds: float, seed: int, progress: Progress) -> list[dict[str, Any]]:
    """Start the testbed, deploy the embedded model over all nodes, and have the clients read."""
    wanted = scenario(seed=seed)
    with on_all_cores():
        try:
            progress(f"clients: starting a testbed of {wanted.topology.hosts} nodes")
            status = testbed.up(wanted, tied=True, progress=lambda _text: None)
            url = status.urls["api"]
            deployment = _deploy(Client(url), nodes=wanted.topology.hosts)
            memory = _Memory(status)

            def watch(outcome: streams.Outcome) -> None:
                memory.sample()
                progress(
                    f"clients: {outcome.answers} answers, {outcome.tokens} tokens, "
                    f"{sum(outcome.errors.values())} errors"
                )

            every_s = max(0.5, seconds / 30)
            progress(f"clients: {clients} ask for {seconds:g} s")
            outcome = streams.load(
                url, deployment, clients=clients, seconds=seconds, watch=watch, watch_s=every_s
            )
            emulation = testbed.Client(PREFIX).emulation()
        finally:
            testbed.down(PREFIX)
    row = {"part": "clients", "arm": "streams", "clients": clients, "seconds": outcome.seconds}
    return [{**row, **_figures(outcome), **memory.figures(), "emulation_kept_up": emulation["kept_up"]}]


def _deploy(api: Client, *, nodes: int) -> str:
    made = api.post("/api/v1/deployments", {"model": "embedded", "min_nodes": nodes})
    path = f"/api/v1/deployments/{made['id']}"
    settled = api.wait(
        path, lambda shown: shown["state"] in ("serving", "failed"), timeout_s=_DEPLOY_TIMEOUT_S
    )
    if settled["state"] != "serving":
        raise RuntimeError(f"the deployment failed: {settled['reason']}")
    return str(made["id"])


def _figures(outcome: streams.Outcome) -> dict[str, Any]:
    first_s = sorted(outcome.first_s)
    return {
        "answers": outcome.answers,
        "tokens": outcome.tokens,
        "tokens_per_s": outcome.tokens / outcome.seconds,
        "errors": sum(outcome.errors.values()),
        "errors_by_text": dict(outcome.errors.most_common(10)),
        "tokens_lost_or_doubled": outcome.misplaced,
        "answers_at_a_tie": outcome.ties,
        "answers_that_differ": outcome.differing,
        "first_token_s": statistics.median(first_s) if first_s else None,
        "first_token_s_p99": first_s[int(0.99 * (len(first_s) - 1))] if first_s else None,
    }


class _Memory:
    """The resident memory of the orchestrator and of each worker."""

    def __init__(self, status: Status) -> None:
        pids = {"orchestrator": status.pids["orchestrator"]}
        pids |= {host["name"]: host["worker_pid"] for host in status.hosts if host["worker_pid"]}
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._samples: dict[str, list[int]] = {name: [] for name in pids}

    def sample(self) -> None:
        """Look once."""
        for name, process in self._processes.items():
            self._samples[name].append(process.memory_info().rss)

    def figures(self) -> dict[str, Any]:
        """Return how each process grew, and what it took in the end."""
        grown = {name: streams.growth(samples) for name, samples in self._samples.items()}
        known = [ratio for ratio in grown.values() if ratio is not None]
        return {
            "memory_growth": grown,
            "memory_growth_most": max(known) if known else None,
            "memory_bytes": {name: samples[-1] for name, samples in self._samples.items() if samples},
        }
