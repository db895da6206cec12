"""The controller among broken, hostile and restarting peers: the others notice nothing.

Most switches here are OpenFlow connections only (switch_farm.py) and need neither root nor emulation.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_network import eventually
from switch_farm import Farm, mac, message, ring, speak

from ryu_apps import openflow, packets

OPENFLOW_PORT, REST_PORT = 6731, 8131
URL = f"http://127.0.0.1:{REST_PORT}"
SWITCHES, HOSTS = 3, 4
ROOT = Path(__file__).resolve().parents[2]


class Controller:
    """A controller process on ports of its own."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "ryu_apps.launcher", "--noverbose"]
        command += ["--ofp-tcp-listen-port", str(OPENFLOW_PORT), "--wsapi-port", str(REST_PORT)]
        command += ["--train-interval", "0", "ryu_apps/manager.py"]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def memory_bytes(self) -> int:
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


def get(path: str) -> Any:
    with urllib.request.urlopen(URL + path, timeout=5) as answer:
        return json.load(answer)


def counter(name: str) -> float:
    with urllib.request.urlopen(URL + "/metrics", timeout=5) as answer:
        found = re.search(rf"^utopia_{name}_total (.*)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def all_measured() -> bool:
    """Tell whether all links of the ring and all hosts are there, with fresh delays."""
    links = get("/northbound/v1/links")["links"]
    delays = [link["delay_s"] for link in links]
    return len(links) == 2 * SWITCHES + 2 * HOSTS and all(
        delay["value"] is not None and delay["age_s"] < 2 for delay in delays
    )


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    running = Controller(tmp_path_factory.mktemp("controller") / "log")
    try:
        yield running
    finally:
        running.kill()


@pytest.fixture(scope="module")
def farm(controller: Controller) -> Iterator[Farm]:
    """Three switches in a ring, four hosts, all measured."""
    assert eventually(lambda: get("/healthz"), seconds=20)
    farm = Farm(OPENFLOW_PORT)
    try:
        ring(farm, SWITCHES, HOSTS)
        assert eventually(lambda: get("/healthz")["links"] == 2 * SWITCHES)
        time.sleep(1.1)  # ports without a link are taken for hosts' after a second
        speak(farm)
        assert eventually(all_measured)
        yield farm
    finally:
        farm.close()


@pytest.fixture(autouse=True)
def undisturbed(farm: Farm) -> Iterator[None]:
    """Before and after every test the whole network is measured."""
    assert eventually(all_measured)
    yield
    assert eventually(all_measured)


def test_a_second_switch_of_the_same_id_waits_until_the_first_is_gone(farm: Farm) -> None:
    before = counter("connections_refused_switches")
    first, second = farm.switches[2], farm.add(2, dict(farm.switches[2].ports), key=99)
    assert eventually(lambda: counter("connections_refused_switches") >= before + 2)
    assert all_measured()
    assert second.rules == {}
    farm.remove(first)
    farm.switches[2] = farm.switches.pop(99)
    assert eventually(lambda: second.rules)
    assert eventually(all_measured)


def test_noise_on_the_openflow_port_disturbs_nobody(farm: Farm, controller: Controller) -> None:
    memory, sent = controller.memory_bytes(), counter("probes_sent")
    idle = []
    for number in range(300):
        noise = socket.create_connection(("127.0.0.1", OPENFLOW_PORT), timeout=5)
        with contextlib.suppress(OSError):
            if number % 3 == 1:
                noise.sendall(os.urandom(200))
            elif number % 3 == 2:
                noise.sendall(message(0)[:5] if number % 2 else message(6, bytes(3)))
        idle.append(noise)
    started = time.monotonic()
    while time.monotonic() - started < 2:
        assert all_measured()
    assert counter("probes_sent") > sent + 50
    assert counter("connections_refused_connections") > 100
    assert controller.memory_bytes() - memory < 50e6
    for noise in idle:
        noise.close()


def test_idle_and_slow_clients_keep_nobody_from_the_rest_interface(farm: Farm) -> None:
    address = ("127.0.0.1", REST_PORT)
    held = [socket.create_connection(address, timeout=5) for _ in range(300)]
    for slow in held[:100]:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nX: ")
    huge = socket.create_connection(address, timeout=5)
    with contextlib.suppress(OSError):
        for _ in range(200):
            huge.sendall(b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 8000 + b"\r\n")
    assert all_measured()
    slow = held[0]
    slow.settimeout(20)
    started = time.monotonic()
    with contextlib.suppress(OSError):
        while time.monotonic() - started < 20:  # one byte now and then does not help
            slow.sendall(b"z")
            time.sleep(0.5)
            if not select_readable(slow):
                continue
            break
    assert time.monotonic() - started < 20
    for client in held:
        client.close()


def select_readable(client: socket.socket) -> bool:
    """Tell whether a connection was closed by the other side."""
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False
    finally:
        client.settimeout(20)


class Deaf:
    """A switch that introduces itself and never reads again."""

    def __init__(self, dpid: int) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(5)
        self.socket.connect(("127.0.0.1", OPENFLOW_PORT))
        self.socket.sendall(message(0))
        self.socket.sendall(message(6, dpid.to_bytes(8, "big") + bytes(16)))
        name = b"deaf".ljust(16, b"\0")
        ports = b"".join(number.to_bytes(4, "big") + bytes(12) + name + bytes(32) for number in range(1, 60))
        time.sleep(0.5)
        self.socket.sendall(message(19, b"\0\x0d\0\0\0\0\0\0" + ports))

    def close(self) -> None:
        self.socket.close()


def test_a_switch_that_reads_nothing_holds_up_nobody(farm: Farm) -> None:
    deaf = Deaf(77)
    try:
        assert eventually(lambda: get("/healthz")["switches"] == SWITCHES + 1)
        started = time.monotonic()
        while time.monotonic() - started < 3:
            assert all_measured()
    finally:
        deaf.close()
    assert eventually(lambda: get("/healthz")["switches"] == SWITCHES)


def test_a_link_that_flaps_gives_few_events_and_comes_back(farm: Farm) -> None:
    with urllib.request.urlopen(URL + "/northbound/v1/events", timeout=1) as stream:
        assert stream.readline().startswith(b": utopia")
        switch = farm.switches[1]
        for turn in range(24):
            farm.call(lambda up=bool(turn % 2): switch.port_is(1, up=up))
            time.sleep(0.3 if turn % 2 else 0.05)  # long enough for probes to find the link again
        assert eventually(all_measured)
        lines = []
        with contextlib.suppress(TimeoutError):
            for line in stream:
                lines.append(line)
    told = [line for line in lines if line.startswith(b"event: link")]
    assert 2 <= len(told) <= 16


def test_a_controller_that_was_killed_finds_everything_again_and_breaks_no_rule(
    farm: Farm, controller: Controller
) -> None:
    hosts = {host["ip"]: (host["dpid"], host["port"]) for host in get("/northbound/v1/topology")["hosts"]}
    for first, second in pairs(sorted(hosts)):
        place = next((s, p) for s in farm.switches.values() for p, end in s.ports.items() if end == first)
        farm.say(*place, datagram(first, second), datagram(first, second))
    assert eventually(lambda: len({rule[1:] for rule in pair_rules(farm)}) >= 2 * len(hosts))
    began, kept = time.time(), pair_rules(farm)
    controller.kill()
    controller.start()
    assert eventually(all_measured, seconds=30), get("/northbound/v1/topology")
    found = {host["ip"]: (host["dpid"], host["port"]) for host in get("/northbound/v1/topology")["hosts"]}
    assert found == hosts
    assert eventually(lambda: counter("takeover_restored_routes") >= len(hosts))
    assert eventually(lambda: not pair_rules(farm) & kept)
    removed = [
        (moment, rule)
        for switch in farm.switches.values()
        for moment, what, rule in switch.log
        if what == "delete" and moment > began and openflow.is_ours(rule.cookie)
    ]
    assert removed == []


def pairs(ips: list[str]) -> Iterator[tuple[str, str]]:
    """Pair each address with the next one, the last with the first."""
    yield from zip(ips, [*ips[1:], ips[0]], strict=True)


def pair_rules(farm: Farm) -> set[tuple[int, bytes, int]]:
    """Return (switch, match, cookie) of the rules of pairs."""
    return {
        (switch.dpid, rule.match, rule.cookie)
        for switch in farm.switches.values()
        for rule in list(switch.rules.values())
        if openflow.is_pair(rule.cookie)
    }


def datagram(src: str, dst: str) -> bytes:
    return packets.build_udp(
        source_mac=mac(src),
        destination_mac=mac(dst),
        source=packets.ip_bytes(src),
        destination=packets.ip_bytes(dst),
        port=9,
        payload=b"hello",
    )
