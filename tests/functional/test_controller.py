"""The controller on an emulated network: it measures what is configured, and traffic finds its way."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from alto_reader import AltoClient
from emulated_network import eventually, host, inside, ping, received, running, small_scenario

from topologies import controller_token, testbed
from topologies.specs import LinkKind, NetworkSpec, network_spec
from topologies.status import Status

PREFIX = "ryb"
URL = "http://127.0.0.1:8111"
RATIO = 0.2
IMPLAUSIBLE = 1e-6
"""Chance may do what is likelier than this: it is no sign of a wrong measurement."""
BUSY_SLACK_S = 0.0015
"""What a busy two-core machine may add to one link's delay."""

SCENARIO = small_scenario("controller", prefix=PREFIX, number=11)

pytestmark = [
    pytest.mark.functional,
]


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    return network_spec(SCENARIO)


@pytest.fixture(scope="module")
def net() -> Iterator[Status]:
    """Run controller and network; every host has spoken."""
    with running(SCENARIO, "controller", "network") as status:
        yield status


def get(path: str) -> Any:
    with urllib.request.urlopen(URL + path, timeout=10) as answer:
        return json.load(answer)


def nb(path: str) -> Any:
    return get("/northbound/v1" + path)


def at_least(count: int, trials: int, ratio: float) -> float:
    """Return the probability of `count` or more successes in so many trials."""
    return sum(
        math.comb(trials, k) * ratio**k * (1 - ratio) ** (trials - k) for k in range(count, trials + 1)
    )


def test_every_pair_reaches_each_other_without_a_duplicate(net: Status) -> None:
    names = [item["name"] for item in net.hosts]
    pairs = [(src, dst) for src in names for dst in names if src != dst]
    pings = {pair: ping(net, *pair, "-c", "5", "-i", "0.3", "-W", "2") for pair in pairs}
    answers = {pair: process.communicate(timeout=60)[0] for pair, process in pings.items()}
    assert {pair: text for pair, text in answers.items() if received(text) < 2} == {}
    assert [pair for pair, text in answers.items() if "DUP" in text] == []
    assert get("/healthz")["hosts"] == len(names)


def off(spec: NetworkSpec, status: Status) -> list[str]:
    """Return the links whose measured delay or capacity is not what is configured."""
    links = {link["id"]: link for link in nb("/links")["links"]}
    wrong = []
    for link in spec.links:
        ends = [
            host(status, name)["ip"] if port == 0 else f"{spec.switch(name).dpid}.{port}"
            for name, port in ((link.a, link.a_port), (link.b, link.b_port))
        ]
        for (name, wanted), link_id in zip(
            link.directions(), (f"{ends[0]}-{ends[1]}", f"{ends[1]}-{ends[0]}"), strict=True
        ):
            measured = links[link_id]
            delay_s = measured["delay_s"]["value"]
            if delay_s is None or abs(delay_s - wanted.delay_s) > RATIO * wanted.delay_s + BUSY_SLACK_S:
                wrong.append(f"{name}: delay {delay_s} instead of {wanted.delay_s}")
            rate_bps = measured["estimated_capacity_bps"]["value"]
            if link.kind == LinkKind.ACCESS and (
                rate_bps is None or abs(rate_bps / wanted.rate_bps - 1) > RATIO
            ):
                wrong.append(f"{name}: capacity {rate_bps} instead of {wanted.rate_bps}")
    return wrong


def test_delay_and_capacity_of_every_link_are_what_is_configured(net: Status, spec: NetworkSpec) -> None:
    wrong: list[str] = []

    def all_right() -> bool:
        wrong[:] = off(spec, net)
        return not wrong

    assert eventually(all_right, seconds=90), wrong


def test_a_path_has_the_values_of_its_links(net: Status, spec: NetworkSpec) -> None:
    wanted = spec.end_to_end("h1")
    ends = f"src={host(net, 'orch')['ip']}&dst={host(net, 'h1')['ip']}"

    def measured() -> Any:
        found = nb(f"/paths?{ends}")
        return found if None not in (found["available_bps"]["value"], found["loss_ratio"]["value"]) else None

    path = eventually(measured, seconds=60)
    assert path["delay_s"]["value"] == pytest.approx(wanted.delay_s, rel=RATIO, abs=0.004)
    assert path["capacity_bps"]["value"] == pytest.approx(wanted.rate_bps, rel=RATIO)
    access = nb(f"/links/{path['links'][-1]}")["loss_ratio"]
    round_trip = 1 - (1 - spec.link("h1-g1").a_to_b.loss_ratio) * (1 - spec.link("h1-g1").b_to_a.loss_ratio)
    lost = round((1 - (1 - access["value"]) ** 2) * access["samples"])
    assert at_least(lost, access["samples"], round_trip) > IMPLAUSIBLE, (access, round_trip)
    assert at_least(access["samples"] - lost, access["samples"], 1 - round_trip) > IMPLAUSIBLE


def test_only_who_has_the_testbeds_token_writes(net: Status, spec: NetworkSpec) -> None:
    link = spec.link("g1-c1")
    path = (
        f"/northbound/v1/links/{spec.switch('g1').dpid}.{link.a_port}-{spec.switch('c1').dpid}.{link.b_port}"
    )
    body = {"capacity_bps": link.a_to_b.rate_bps}
    right = controller_token.headers(PREFIX)
    assert send("PUT", path, body)[0] == 401
    assert send("PUT", path, body, {"Authorization": "Bearer a-token-that-is-wrong"})[0] == 401
    status, answer = send("PUT", path, body, right)
    assert (status, answer["capacity_bps"]["value"]) == (200, link.a_to_b.rate_bps)
    token = right["Authorization"].split()[1]
    logs = [log for log in Path(net.state_dir, "logs").glob("*.log") if token in log.read_text()]
    commands = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in net.pids.values()]
    assert logs == []
    assert [command for command in commands if token.encode() in command] == []


def test_an_alto_client_finds_the_delays_of_the_paths_from_the_directory(net: Status) -> None:
    def ask(method: str, uri: str, body: Any, kind: str | None) -> tuple[int, str, Any]:
        request = urllib.request.Request(
            URL + uri,
            data=None if body is None else json.dumps(body).encode(),
            headers={} if kind is None else {"Content-Type": kind},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers.get_content_type(), json.load(answer)

    orch, h1 = host(net, "orch")["ip"], host(net, "h1")["ip"]
    alto = AltoClient(ask, "/northbound/v1/alto/directory")
    costs = alto.endpoint_costs("delay-ow", endpoints={"srcs": [f"ipv4:{orch}"], "dsts": [f"ipv4:{h1}"]})
    delay_s = nb(f"/paths?src={orch}&dst={h1}")["delay_s"]["value"]
    assert costs[f"ipv4:{orch}", f"ipv4:{h1}"] == pytest.approx(delay_s * 1e6, rel=RATIO, abs=4000)
    pids, _tag = alto.network_map()
    assert sorted(str(prefix) for prefixes in pids.values() for prefix in prefixes) == sorted(
        f"{item['ip']}/32" for item in net.hosts
    )
    assert set(alto.cost_map("delay-ow")[0]) >= {
        (one, other) for one in pids for other in pids if one != other
    }


def send(method: str, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        URL + path, data=json.dumps(body).encode(), headers=headers or {}, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_degraded_link_shows_within_seconds(net: Status, spec: NetworkSpec) -> None:
    client = testbed.Client(PREFIX)
    link = spec.link("h2-g2")
    link_id = next(
        item["id"] for item in nb("/links")["links"] if item["dst"].get("ip") == host(net, "h2")["ip"]
    )
    client.degrade("h2-g2", delay_s=0.3)
    try:
        assert eventually(lambda: nb(f"/links/{link_id}")["delay_s"]["value"] > 0.27, seconds=10)
    finally:
        client.restore("h2-g2")
    assert eventually(
        lambda: nb(f"/links/{link_id}")["delay_s"]["value"] < 1.3 * link.a_to_b.delay_s + 0.005, seconds=10
    )


def test_a_rate_that_halves_and_traffic_that_begins_show_without_being_asked_for(
    net: Status, spec: NetworkSpec
) -> None:
    rate_bps = spec.link("h2-g2").a_to_b.rate_bps
    link = next(item for item in nb("/links")["links"] if item["src"].get("ip") == host(net, "h2")["ip"])

    def shows(metric: str, wanted: float) -> bool:
        value = nb(f"/links/{link['id']}")[metric]["value"]
        return value is not None and abs(value / wanted - 1) <= RATIO

    assert eventually(lambda: shows("estimated_capacity_bps", rate_bps), seconds=30)
    client = testbed.Client(PREFIX)
    client.degrade("h2-g2", rate_bps=rate_bps / 2)
    try:
        assert eventually(lambda: shows("estimated_capacity_bps", rate_bps / 2), seconds=15)
        assert shows("available_bps", rate_bps / 2)
    finally:
        client.restore("h2-g2")
    assert eventually(lambda: shows("estimated_capacity_bps", rate_bps), seconds=15)
    sender = inside(net, "h2", "python3", "-c", steady_traffic(host(net, "h1")["ip"], 0.4 * rate_bps, 8))
    assert eventually(lambda: shows("used_bps", 0.4 * rate_bps), seconds=8)
    assert shows("available_bps", 0.6 * rate_bps)
    assert sender.wait(timeout=20) == 0, sender.stdout and sender.stdout.read()


def steady_traffic(ip: str, rate_bps: float, seconds: float) -> str:
    """Return a program that sends datagrams at a rate, counted with their Ethernet headers."""
    return (
        "import socket, time\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"start, sent, rate = time.monotonic(), 0, {rate_bps / 8 / 1242!r}\n"
        f"while (now := time.monotonic()) < start + {seconds!r}:\n"
        "    while sent < (now - start) * rate:\n"
        f"        s.sendto(bytes(1200), ('{ip}', 9))\n"
        "        sent += 1\n"
        "    time.sleep(0.005)\n"
    )


def test_each_direction_of_a_link_has_its_own_delay_and_loss(net: Status, spec: NetworkSpec) -> None:
    link = spec.link("g2-c2")
    g2, c2 = (f"{spec.switch(name).dpid}.{port}" for name, port in (("g2", link.a_port), ("c2", link.b_port)))
    client = testbed.Client(PREFIX)
    client.degrade("g2-c2", "g2>c2", delay_s=0.05, loss_ratio=0.3)

    def shows() -> bool:
        forth, back = nb(f"/links/{g2}-{c2}"), nb(f"/links/{c2}-{g2}")
        return bool(
            forth["delay_s"]["value"] > 0.045 and forth["loss_ratio"]["low"] > back["loss_ratio"]["high"]
        )

    try:
        assert eventually(shows, seconds=30)
        assert nb(f"/links/{c2}-{g2}")["delay_s"]["value"] < 0.03
    finally:
        client.restore("g2-c2")


def test_traffic_goes_round_a_link_that_fails_and_returns(net: Status, spec: NetworkSpec) -> None:
    ends = f"src={host(net, 'orch')['ip']}&dst={host(net, 'h1')['ip']}"
    link = spec.link("g1-c1")
    forth = f"{spec.switch('c1').dpid}.{link.b_port}-{spec.switch('g1').dpid}.{link.a_port}"
    received(ping(net, "orch", "h1", "-c", "3", "-i", "0.2").communicate(timeout=20)[0])
    before = nb(f"/paths?{ends}")["links"]
    assert forth in before
    client = testbed.Client(PREFIX)
    client.degrade("g1-c1", loss_ratio=1.0)
    try:
        assert eventually(lambda: forth not in nb(f"/paths?{ends}")["links"], seconds=15)
        around = ping(net, "orch", "h1", "-c", "10", "-i", "0.1", "-W", "2").communicate(timeout=20)[0]
        assert received(around) >= 7, around
    finally:
        client.restore("g1-c1")
    assert eventually(lambda: nb(f"/paths?{ends}")["links"] == before, seconds=20)


def test_garbage_to_the_probe_address_is_counted_and_changes_nothing(net: Status) -> None:
    links = nb("/topology")["links"]
    before = counter("utopia_probes_forged_total")
    code = (
        "import os, socket\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for n in range(100): s.sendto(os.urandom(n), ('198.19.255.253', 50550))\n"
    )
    sender = inside(net, "h1", "python3", "-c", code)
    assert sender.wait(timeout=20) == 0, sender.stdout and sender.stdout.read()
    assert eventually(lambda: counter("utopia_probes_forged_total") >= before + 90, seconds=10)
    assert nb("/topology")["links"] == links


def counter(name: str) -> float:
    with urllib.request.urlopen(URL + "/metrics", timeout=10) as answer:
        found = re.search(rf"^{name} (.*)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_event_stream_tells_at_once(net: Status) -> None:
    with urllib.request.urlopen(URL + "/northbound/v1/events", timeout=15) as stream:
        assert stream.readline().startswith(b": utopia")
        client = testbed.Client(PREFIX)
        client.degrade("h3-g1", delay_s=0.4)
        try:
            started = time.monotonic()
            lines = iter(stream.readline, b"")
            told = next(line for line in lines if b"metric_changed" in line)
            assert told.startswith(b"event: ")
            assert time.monotonic() - started < 10
        finally:
            client.restore("h3-g1")


def utopia(*words: str) -> str:
    process = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *words],
        env={**os.environ, "UTOPIA_PREFIX": PREFIX, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_people_steer_by_name_from_the_command_line(net: Status) -> None:
    assert "g1.1-c1.3" in utopia("links")
    preview = json.loads(utopia("steer", "h1", "h2", "--by", "delay", "--preview", "--json"))
    assert len(preview["directions"][0]["alternatives"]) == 3
    assert "g1 c2 g2" in utopia("steer", "h1", "h2", "--over", "g1,c2,g2", "--tcp", "5001")
    (pin,) = json.loads(utopia("pins", "--json"))["pins"]
    assert pin["traffic_class"] == {"protocol": "tcp", "dst_port": 5001}
    assert "h1 → h2" in utopia("pins")
    utopia("unpin", pin["id"])
    assert json.loads(utopia("pins", "--json"))["pins"] == []
