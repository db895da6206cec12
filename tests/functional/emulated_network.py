"""A small emulated network that a test module has to itself, and how tests look at it and speak in it."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

from scenarios.schema import Scenario, parse
from topologies import state, testbed
from topologies.status import Status


def small_scenario(name: str, *, prefix: str, number: int, hosts: int = 3, seed: int = 5) -> Scenario:
    """Describe a network of two domains; `number`, 0 to 99, keeps its ports apart from other modules'."""
    return parse(
        {
            "name": name,
            "seed": seed,
            "topology": {"hosts": hosts, "domains": 2},
            "devices": {"trusted": []},
            "finetune": {"policies": ["all"]},
            "network": {
                "prefix": prefix,
                "openflow_port": 6700 + number,
                "northbound_port": 8100 + number,
                "api_port": 8200 + number,
            },
        },
        source="test",
    )


@contextlib.contextmanager
def running(scenario: Scenario, *stages: str) -> Iterator[Status]:
    """Run these stages of a testbed; afterwards nothing of it is left."""
    prefix = scenario.network.prefix
    testbed.down(prefix)
    try:
        yield testbed.up(scenario, stages=stages, tied=True, progress=lambda _text: None)
    finally:
        testbed.down(prefix)
        assert state.inventory(prefix) == []


def eventually(check: Callable[[], Any], *, seconds: float = 15.0) -> Any:
    """Wait until `check` returns something true, or answer what it returned last.

    Whoever does not answer yet, a controller say, is waited for.
    """
    deadline = time.monotonic() + seconds
    while True:
        found = None
        with contextlib.suppress(OSError):
            found = check()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def host(status: Status, name: str) -> dict[str, Any]:
    """Return what the testbed tells of a host."""
    return next(item for item in status.hosts if item["name"] == name)


def inside(status: Status, name: str, *command: str) -> subprocess.Popen[str]:
    """Start a command on a host."""
    enter = ["nsenter", "-t", str(host(status, name)["pid"]), "-n", *command]
    return subprocess.Popen(enter, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ping(status: Status, src: str, dst: str, *options: str) -> subprocess.Popen[str]:
    """Start to ping one host from another."""
    return inside(status, src, "ping", *options, host(status, dst)["ip"])


def received(text: str) -> int:
    """Return how many answers ping counted."""
    found = re.search(r"(\d+) received", text)
    return int(found[1]) if found else 0
