"""Steering on an emulated network: traffic goes where it is pinned, and nothing is lost in a switch-over."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from emulated_network import eventually, host, inside, running, small_scenario

from topologies import controller_token, testbed
from topologies.specs import NetworkSpec, network_spec
from topologies.status import Status

PREFIX = "rst"
URL = "http://127.0.0.1:8121"
GAP_S = 0.005
UDP_PORT = 5005

SENDER = f"""
import socket, sys, time
to, count, dscp = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)
due = time.monotonic()
for number in range(count):
    out.sendto(number.to_bytes(4, "big"), (to, {UDP_PORT}))
    due += {GAP_S}
    time.sleep(max(0.0, due - time.monotonic()))
"""
RECEIVER = f"""
import json, socket
into = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
into.bind(("", {UDP_PORT}))
into.settimeout(30)
print("ready", flush=True)
got = []
try:
    while True:
        got.append(int.from_bytes(into.recv(64), "big"))
        into.settimeout(1)
except TimeoutError:
    print(json.dumps(got), flush=True)
"""

SCENARIO = small_scenario("steering", prefix=PREFIX, number=21)

pytestmark = [pytest.mark.functional]


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    return network_spec(SCENARIO)


@pytest.fixture(scope="module")
def net() -> Iterator[Status]:
    """Run controller and network; from orch to h1 no link loses anything."""
    with running(SCENARIO, "controller", "network") as status:
        testbed.Client(PREFIX).degrade("h1-g1", loss_ratio=0.0)
        yield status


class Controller:
    """A controller in the place of the testbed's, which is killed."""

    def __init__(self, status: Status) -> None:
        old = psutil.Process(status.pids["controller"])
        self._command, self._directory = old.cmdline(), old.cwd()
        self._command[-1:-1] = ["--train-interval", "0"]
        self._log = Path(status.state_dir) / "controller-again.log"
        old.send_signal(signal.SIGKILL)
        self.start()

    def start(self) -> None:
        with self._log.open("a") as out:
            self._process = subprocess.Popen(self._command, cwd=self._directory, stdout=out, stderr=out)
        assert eventually(is_up, seconds=20), self._log.read_text()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(timeout=20)


@pytest.fixture(scope="module", autouse=True)
def controller(net: Status) -> Iterator[Controller]:
    """Run a controller without packet trains, which crowd others' packets out of the queues of slow links."""
    running = Controller(net)
    try:
        for name, other in (("orch", "h1"), ("h1", "orch")):
            inside(net, name, "ping", "-c", "3", "-i", "0.5", address(net, other)).wait(timeout=20)
        assert eventually(lambda: links_up() == 10 and path(net).get("links"), seconds=30)
        yield running
    finally:
        running.stop()


@pytest.fixture(autouse=True)
def _no_pins(controller: Controller) -> Iterator[None]:
    yield
    for pin in ask("GET", "/pins")[1]["pins"]:
        ask("DELETE", f"/paths/{pin['id']}")


def ask(method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """Return status and JSON of the northbound API's answer."""
    headers = {"Content-Type": "application/json", **controller_token.headers(PREFIX)}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{URL}/northbound/v1{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def address(status: Status, name: str) -> str:
    return str(host(status, name)["ip"])


class Stream:
    """Numbered datagrams from orch to h1, one every 5 ms."""

    def __init__(self, status: Status, *, seconds: float, dscp: int = 0) -> None:
        self.count = round(seconds / GAP_S)
        self._receiver = inside(status, "h1", sys.executable, "-c", RECEIVER)
        assert self._receiver.stdout is not None
        assert self._receiver.stdout.readline() == "ready\n"
        to = address(status, "h1")
        self._sender = inside(status, "orch", sys.executable, "-c", SENDER, to, str(self.count), str(dscp))

    def arrived(self) -> list[int]:
        """Return the numbers in the order of arrival, once all were sent."""
        assert self._sender.wait(timeout=60) == 0
        return list(json.loads(self._receiver.communicate(timeout=30)[0]))

    def check(self) -> list[int]:
        """Return the numbers in the order of arrival; each must have arrived once."""
        got = self.arrived()
        amiss = Counter(range(self.count))
        amiss.subtract(got)
        assert {number: missing for number, missing in amiss.items() if missing} == {}
        return got


def pair(net: Status) -> dict[str, str]:
    return {"src": address(net, "orch"), "dst": address(net, "h1")}


def path(net: Status) -> Any:
    ends = pair(net)
    return ask("GET", f"/paths?src={ends['src']}&dst={ends['dst']}")[1]


def over(spec: NetworkSpec, *names: str) -> list[str]:
    return [spec.switch(name).dpid for name in names]


def switches(document: Any) -> list[str]:
    """Return the datapath ids that a list of links passes."""
    return [link.split("-")[1].split(".")[0] for link in document["links"][:-1]]


def pinned(net: Status, **wish: Any) -> Any:
    """Make a pin from orch to h1 and wait until it is installed."""
    status, pin = ask("POST", "/paths", {**pair(net), **wish})
    assert status == 201, pin
    found = eventually(lambda: stands(pin["id"], "installed"), seconds=10)
    assert found, ask("GET", f"/pins/{pin['id']}")
    return found


def stands(name: str, wanted: str) -> Any:
    """Return the pin if it stands as wanted."""
    pin = ask("GET", f"/pins/{name}")[1]
    return pin if pin["state"] == wanted else None


def carried(net: Status, spec: NetworkSpec, seconds: float, dscp: int = 0) -> dict[str, float]:
    """Return which share of a stream left c1 towards g1 directly, and towards c2, by the port counters."""
    links = {"direct": "g1-c1", "round": "c1-c2"}
    before = {name: sent(spec, link) for name, link in links.items()}
    stream = Stream(net, seconds=seconds, dscp=dscp)
    stream.check()
    after = {name: sent(spec, link) for name, link in links.items()}
    return {name: (after[name] - before[name]) / stream.count for name in links}


def sent(spec: NetworkSpec, link_name: str) -> int:
    """Return how many packets c1 has sent into a link."""
    link = spec.link(link_name)
    port = link.a_port if link.a == "c1" else link.b_port
    bridge = bridge_of(spec.switch("c1").dpid)
    text = subprocess.run(
        ["ovs-ofctl", "-O", "OpenFlow13", "dump-ports", bridge, str(port)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return int(text.split("tx pkts=")[1].split(",")[0])


def bridge_of(dpid: str) -> str:
    """Return the name of the testbed's bridge with a datapath id."""
    text = subprocess.run(
        ["ovs-vsctl", "--format=json", "--columns=name,datapath_id", "list", "bridge"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = {row[1]: row[0] for row in json.loads(text)["data"] if str(row[0]).startswith(PREFIX)}
    return str(rows[dpid])


def test_traffic_takes_the_longer_way_that_it_is_pinned_to_and_delete_restores_the_default(
    net: Status, spec: NetworkSpec
) -> None:
    assert switches(path(net)) == over(spec, "c1", "g1")
    pin = pinned(net, path=over(spec, "c1", "c2", "g1"), k=2)
    found = path(net)
    assert (switches(found), found["chosen_by"]) == (over(spec, "c1", "c2", "g1"), f"pin {pin['id']}")
    shares = carried(net, spec, 1.0)
    assert shares["round"] > 0.9
    assert shares["direct"] < 0.5
    assert ask("DELETE", f"/paths/{pin['id']}") == (200, {"deleted": pin["id"]})
    assert eventually(lambda: switches(path(net)) == over(spec, "c1", "g1"), seconds=10)
    assert path(net)["chosen_by"] == "default"
    assert carried(net, spec, 1.0)["direct"] > 0.9


def test_no_packet_is_lost_or_doubled_while_the_way_changes_back_and_forth(
    net: Status, spec: NetworkSpec
) -> None:
    stream = Stream(net, seconds=5.0)
    for _ in range(3):
        pin = pinned(net, path=over(spec, "c1", "c2", "g1"))
        assert ask("DELETE", f"/paths/{pin['id']}")[0] == 200
        assert eventually(lambda: path(net)["chosen_by"] == "default", seconds=5)
    got = stream.check()
    early = sum(before > after for before, after in pairwise(got))
    assert early <= 3 * 2, "the direct way is 4 ms shorter: it may overtake one or two packets each time"


def test_one_class_of_the_traffic_goes_its_own_way(net: Status, spec: NetworkSpec) -> None:
    pinned(net, path=over(spec, "c1", "c2", "g1"), traffic_class={"dscp": 46})
    assert path(net)["chosen_by"] == "default"
    urgent, other = carried(net, spec, 1.0, dscp=46), carried(net, spec, 1.0)
    assert urgent["round"] > 0.9 > 0.5 > urgent["direct"]
    assert other["direct"] > 0.9 > 0.5 > other["round"]


def test_a_pin_falls_back_while_its_link_fails_and_returns_with_it(net: Status, spec: NetworkSpec) -> None:
    pin = pinned(net, path=over(spec, "c1", "c2", "g1"), both_directions=True)
    client = testbed.Client(PREFIX)
    client.degrade("c1-c2", loss_ratio=1.0)
    try:
        assert eventually(lambda: stands(pin["id"], "fallback"), seconds=15)
        assert switches(path(net)) == over(spec, "c1", "g1")
        assert eventually(lambda: len(Stream(net, seconds=0.5).arrived()) == 100, seconds=20)
    finally:
        client.restore("c1-c2")
    assert eventually(lambda: stands(pin["id"], "installed"), seconds=20)
    assert switches(path(net)) == over(spec, "c1", "c2", "g1")


def test_an_objective_follows_the_measured_delay(net: Status, spec: NetworkSpec) -> None:
    pin = pinned(net, objective="delay", k=3)
    assert switches(path(net)) == over(spec, "c1", "g1")
    client = testbed.Client(PREFIX)
    client.degrade("g1-c1", delay_s=0.060)
    try:
        assert eventually(lambda: switches(path(net)) == over(spec, "c1", "c2", "g1"), seconds=20)
    finally:
        client.restore("g1-c1")
    found = ask("GET", f"/pins/{pin['id']}?k=3")[1]["directions"][0]
    assert found["moves"] == 1
    assert len(found["alternatives"]) >= 2
    assert [part["chosen"] for part in found["alternatives"]].count(True) == 1


def test_pins_and_traffic_outlive_a_restart_of_the_controller(
    net: Status, controller: Controller, spec: NetworkSpec
) -> None:
    pin = pinned(net, path=over(spec, "c1", "c2", "g1"))
    controller.stop()
    controller.start()
    assert eventually(lambda: stands(pin["id"], "installed"), seconds=40), ask("GET", f"/pins/{pin['id']}")
    assert switches(path(net)) == over(spec, "c1", "c2", "g1")
    shares = carried(net, spec, 1.0)
    assert shares["round"] > 0.9 > 0.5 > shares["direct"]


def links_up() -> int:
    """Return how many links between switches are up."""
    return sum(link.count(".") == 2 for link in ask("GET", "/topology")[1]["links"])


def is_up() -> bool:
    try:
        with urllib.request.urlopen(f"{URL}/healthz", timeout=5):
            return True
    except OSError:
        return False
