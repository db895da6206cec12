"""A controller that is killed, and switches that lose their rules, under traffic on an emulated network."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from test_controller_robustness import (
    OPENFLOW_PORT,
    REST_PORT,
    Controller,
    counter,
    eventually,
    get,
)

from scenarios.schema import Scenario, parse
from topologies import shell, state, testbed
from topologies.status import Status

PREFIX = "rsr"
PINGS_PER_S = 20

pytestmark = [pytest.mark.functional]


def scenario() -> Scenario:
    network = {
        "prefix": PREFIX,
        "openflow_port": OPENFLOW_PORT,
        "northbound_port": REST_PORT,
        "api_port": 8230,
    }
    return parse(
        {
            "name": "restart",
            "seed": 5,
            "topology": {"hosts": 2, "domains": 2},
            "devices": {"trusted": []},
            "finetune": {"policies": ["all"]},
            "network": network,
        },
        source="test",
    )


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    running = Controller(tmp_path_factory.mktemp("controller") / "log")
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="module")
def net(controller: Controller) -> Iterator[Status]:
    """Run a network whose controller is the tests' own; all hosts have talked to each other."""
    testbed.down(PREFIX)
    try:
        status = testbed.up(scenario(), stages=("network",), tied=True, progress=lambda _text: None)
        assert eventually(lambda: get("/healthz")["links"] >= 10, seconds=20), get("/healthz")
        names = [host["name"] for host in status.hosts]

        def all_talk() -> bool:
            pings = [
                ping(status, src, dst, "-c", "2", "-i", "0.2", "-W", "2")
                for src in names
                for dst in names
                if src != dst
            ]
            return all(received(process.communicate(timeout=20)[0]) > 0 for process in pings)

        assert eventually(all_talk)
        yield status
    finally:
        testbed.down(PREFIX)
        assert state.inventory(PREFIX) == []


def host(status: Status, name: str) -> dict[str, Any]:
    return next(item for item in status.hosts if item["name"] == name)


def ping(status: Status, src: str, dst: str, *options: str) -> subprocess.Popen[str]:
    enter = ["nsenter", "-t", str(host(status, src)["pid"]), "-n", "ping", *options, host(status, dst)["ip"]]
    return subprocess.Popen(enter, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def received(text: str) -> int:
    found = re.search(r"(\d+) received", text)
    return int(found[1]) if found else 0


def bridges() -> list[str]:
    return [name for name in shell.run(["ovs-vsctl", "list-br"]).split() if name.startswith(f"{PREFIX}-")]


def test_traffic_flows_on_while_the_controller_is_killed_and_started_again(
    net: Status, controller: Controller
) -> None:
    seconds = 8
    traffic = ping(net, "orch", "h1", "-i", str(1 / PINGS_PER_S), "-w", str(seconds), "-W", "1")
    controller.kill()
    controller.start()
    assert eventually(lambda: get("/healthz")["hosts"] == len(net.hosts)), get("/healthz")
    assert eventually(lambda: counter("takeover_restored_routes") >= 6)
    text = traffic.communicate(timeout=seconds + 10)[0]
    assert received(text) > 0.8 * PINGS_PER_S * seconds, text
    delays = [link["delay_s"] for link in get("/northbound/v1/links")["links"]]
    assert all(delay["value"] is None or 0 <= delay["value"] < 1 for delay in delays)
    assert eventually(
        lambda: all(link["delay_s"]["value"] is not None for link in get("/northbound/v1/links")["links"])
    )


def test_switches_that_lost_everything_are_served_anew(net: Status) -> None:
    for name in bridges():
        shell.run(["ovs-vsctl", "del-controller", name])
        shell.run(["ovs-ofctl", "-O", "OpenFlow13", "del-flows", name])
    for name in bridges():
        shell.run(["ovs-vsctl", "set-controller", name, f"tcp:127.0.0.1:{OPENFLOW_PORT}"])
    started = time.monotonic()
    assert eventually(
        lambda: received(ping(net, "h2", "h1", "-c", "3", "-i", "0.2", "-W", "1").communicate(timeout=10)[0])
    )
    assert time.monotonic() - started < 15
    assert eventually(lambda: get("/healthz")["hosts"] == len(net.hosts))
