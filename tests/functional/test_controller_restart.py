"""A controller that is killed, and switches that lose their rules, under traffic on an emulated network."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from emulated_network import eventually, ping, received, running, small_scenario
from test_controller_robustness import (
    OPENFLOW_PORT,
    Controller,
    counter,
    get,
)

from topologies import shell
from topologies.status import Status

PREFIX = "rsr"
PINGS_PER_S = 20

SCENARIO = small_scenario("restart", prefix=PREFIX, number=31, hosts=2)

pytestmark = [pytest.mark.functional]


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
    with running(SCENARIO, "network") as status:
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
