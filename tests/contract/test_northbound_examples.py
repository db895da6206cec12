"""The controller's answers have the shape of the examples, which were captured from a running network.

The orchestrator's reader is checked against the same files (test_northbound_reader.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from northbound_client import BASE, H1, H4, LINK, TOKEN, Client, World

from ryu_apps.events import MAX_QUEUED, Reader
from ryu_apps.pins import read_wish
from ryu_apps.signals import Change
from ryu_apps.stats import Measurement

EXAMPLES = Path(__file__).parent / "northbound_examples"


def example(name: str) -> Any:
    return json.loads((EXAMPLES / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


def shape(value: Any) -> Any:
    """Return names and types; a measurement counts as one, known or not; a list by its items."""
    if isinstance(value, dict):
        if set(value) == {"value", "raw", "low", "high", "samples", "age_s", "source", "unit", "reason"}:
            return check_measurement(value)
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        shapes = {json.dumps(shape(item), sort_keys=True) for item in value}
        return [json.loads(item) for item in sorted(shapes)]
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


def check_measurement(value: dict[str, Any]) -> str:
    assert (value["value"] is None) == (value["reason"] is not None)
    known = {
        "probe",
        "echo",
        "counters",
        "packet_train",
        "configuration",
        "derived",
        "transfers",
        "flow_counters",
    }
    assert value["source"] in known
    assert isinstance(value["samples"], int)
    for name in ("value", "raw", "low", "high", "age_s"):
        assert value[name] is None or isinstance(value[name], int | float)
    return f"measurement in {value['unit']}"


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("healthz", "/healthz"),
        ("topology", f"{BASE}/topology"),
        ("link", f"{BASE}/links/0000000000000001.11-{H1}"),
        ("path", f"{BASE}/paths?src={H1}&dst={H4}"),
        ("paths", f"{BASE}/paths"),
    ],
)
def test_answers_have_the_shape_of_the_examples(client: Client, name: str, path: str) -> None:
    assert shape(client.get(path)) == shape(example(name))


def test_a_pin_has_the_shape_of_its_example() -> None:
    client = Client()
    client.world.say(H1, H4)
    client.world.advance(1.0)
    wish = {
        "src": H1,
        "dst": H4,
        "traffic_class": {"protocol": "tcp", "dst_port": 7000},
        "objective": {"delay": 7, "loss": 3},
        "k": 2,
    }
    made = client.ask(f"{BASE}/paths", method="POST", body=json.dumps(wish).encode())
    assert (made.status_int, made.headers["Location"]) == (201, f"http://localhost{BASE}/pins/p1")
    client.world.advance(0.5)
    pin = client.get(f"{BASE}/pins/p1?k=2")
    assert shape(pin) == shape(example("pin"))
    assert client.get(f"{BASE}/pins")["pins"][0]["state"] == "installed"
    assert "alternatives" not in client.get(f"{BASE}/pins/p1")["directions"][0]
    assert client.ask(f"{BASE}/pins/p1?k=0").status_int == 400
    assert client.ask(f"{BASE}/paths", method="POST", body=json.dumps(wish).encode()).status_int == 409
    assert client.ask(f"{BASE}/paths/p1", method="DELETE").json == {"deleted": "p1"}
    gone = client.ask(f"{BASE}/paths/p1", method="DELETE")
    assert (gone.status_int, gone.json["detail"]) == (404, "pin p1 is not known; known pins: none")


def test_links_of_every_kind_have_the_shape_of_the_examples(client: Client) -> None:
    assert shape(client.get(f"{BASE}/links")) == shape(example("links"))


@pytest.mark.parametrize(
    ("name", "path", "method", "body"),
    [
        ("problem_404", f"{BASE}/paths?src={H1}&dst=198.18.0.99", "GET", None),
        ("problem_400", f"{BASE}/links/{LINK}", "PUT", b'{"capacity_bps": -1}'),
        ("problem_405", f"{BASE}/links", "POST", b"{}"),
    ],
)
def test_problems_have_the_shape_of_the_examples(
    client: Client, name: str, path: str, method: str, body: bytes | None
) -> None:
    answer = client.ask(path, method=method, body=body)
    expected = example(name)
    assert answer.content_type == "application/problem+json"
    assert shape(answer.json) == shape(expected)
    assert {key: answer.json[key] for key in ("type", "title", "status")} == {
        key: expected[key] for key in ("type", "title", "status")
    }
    assert answer.status_int == expected["status"]


@pytest.mark.parametrize(
    ("path", "method", "body", "status", "detail"),
    [
        ("/nothing", "GET", None, 404, "is not part of this API"),
        ("/", "GET", None, 404, "is not part of this API"),
        ("/no%0Athing", "GET", None, 404, "is not part of this API"),
        ("/%ff", "GET", None, 400, "is not UTF-8"),
        (f"{BASE}/links/{LINK}", "DELETE", None, 405, "it takes GET, PUT"),
        (f"{BASE}/links/none", "GET", None, 404, "link none is not up"),
        (f"{BASE}/links/none", "PUT", b'{"capacity_bps": 1}', 404, "link none is not up"),
        (f"{BASE}/paths?src=h1", "GET", None, 400, "src is 'h1', not an IPv4 address"),
        (f"{BASE}/paths?from=1", "GET", None, 400, "no parameter 'from'; it has src, dst"),
        (f"{BASE}/paths?src=%ff", "GET", None, 400, "is not UTF-8"),
        (f"{BASE}/paths?src={H1}&dst={H1}", "GET", None, 400, "src and dst are both"),
        (f"{BASE}/paths?src={H1}&src={H4}", "GET", None, 400, "src is given 2 times"),
        (f"{BASE}/links/{LINK}", "PUT", None, 400, "the body is missing"),
        (f"{BASE}/links/{LINK}", "PUT", b"{", 400, "the body is not JSON"),
        (f"{BASE}/links/{LINK}", "PUT", b"[" * 30000, 400, "the body is not JSON"),
        (f"{BASE}/links/{LINK}", "PUT", b"[" * 70000, 400, "the body has 70000 bytes"),
        (f"{BASE}/links/{LINK}", "PUT", b'{"capacity_bps": true}', 400, "capacity_bps is True"),
        (f"{BASE}/links/{LINK}", "PUT", b'{"capacity_bps": NaN}', 400, "capacity_bps is 'nan'"),
        (f"{BASE}/links/{LINK}", "PUT", b'{"capacity": 1}', 400, "exactly one key"),
    ],
)
def test_wrong_requests_get_one_clear_problem(
    client: Client, path: str, method: str, body: bytes | None, status: int, detail: str
) -> None:
    answer = client.ask(path, method=method, body=body)
    assert answer.status_int == status
    assert detail in answer.json["detail"]


@pytest.mark.parametrize(
    ("token", "challenge"), [(None, ""), ("another-token-of-the-tests", ', error="invalid_token"')]
)
def test_only_who_has_the_token_writes(client: Client, token: str | None, challenge: str) -> None:
    path, body = f"{BASE}/links/{LINK}", b'{"capacity_bps": 5e8}'
    answer = client.ask(path, method="PUT", body=body, token=token)
    assert answer.status_int == 401
    assert answer.headers["WWW-Authenticate"] == f'Bearer realm="utopia northbound"{challenge}'
    assert answer.content_type == "application/problem+json"
    assert TOKEN not in answer.text
    assert client.ask(path, token=token).json["capacity_bps"]["source"] != "configuration"


def test_a_configured_capacity_stands_until_it_is_forgotten(client: Client) -> None:
    answer = client.ask(f"{BASE}/links/{LINK}", method="PUT", body=b'{"capacity_bps": 1e9}')
    assert answer.json["capacity_bps"]["value"] == 1e9
    assert answer.json["capacity_bps"]["source"] == "configuration"
    assert answer.json["estimated_capacity_bps"]["source"] == "packet_train"
    answer = client.ask(f"{BASE}/links/{LINK}", method="PUT", body=b'{"capacity_bps": null}')
    assert answer.json["capacity_bps"]["value"] is None


def test_the_values_of_a_path_come_from_its_links(client: Client) -> None:
    path = client.get(f"{BASE}/paths?src={H1}&dst={H4}")
    links = [client.get(f"{BASE}/links/{link}") for link in path["links"]]
    assert [links[0]["src"]["ip"], links[-1]["dst"]["ip"]] == [H1, H4]
    total = sum(link["delay_s"]["value"] for link in links)
    assert path["delay_s"]["value"] == pytest.approx(total, rel=0.02)


def test_the_metrics_are_served(client: Client) -> None:
    text = client.ask("/metrics").text
    assert 'dp_status{dp_id="0x1",dp_name="s1"} 1.0' in text
    assert f'utopia_link_delay_s{{link="{LINK}"}}' in text


def delay(value_s: float) -> Measurement:
    return Measurement(value=value_s, source="probe", unit="s")


def test_every_event_has_the_shape_of_its_example() -> None:
    world = World()
    told: list[bytes] = []
    reader = Reader(wake=lambda: told.append(reader.take()))
    world.parts.events.readers.add(reader)
    world.host(H1, 1, 11)
    world.host(H4, 4, 11)
    world.advance(2.0)
    world.join(3)
    for ip, other in ((H1, H4), (H4, H1)):
        world.say_arp(ip, other)
    world.deliver()
    world.say(H1, H4)
    world.deliver()
    world.parts.steering.create(read_wish({"src": H1, "dst": H4, "objective": "delay"}))
    world.host(H1, 2, 12)
    for _ in range(2):
        world.say_arp(H1, H4)
        world.advance(2.0)
    world.switches[3].heard_at = world.now
    world.join(3)
    world.parts.network.port_changed(world.now, 2, 12, "x", up=False)
    datum = {"link": LINK, "metric": "delay_s", "before": 0.1, "after": 0.2}
    world.parts.watcher._told[LINK, "delay_s"] = 0.1
    world.parts.watcher._compare_one(LINK, "delay_s", delay(datum["after"]), 0.002)
    events = [event.split("\n", 1) for event in b"".join(told).decode().split("\n\n") if event]
    shapes = {
        head.removeprefix("event: "): shape(json.loads(body.removeprefix("data: "))) for head, body in events
    }
    assert shapes == {item["event"]: shape(item["data"]) for item in example("events")}
    silent = {Change.PORT_UP, Change.PORT_DOWN}
    assert set(shapes) == {change.value for change in Change if change not in silent}


def test_a_reader_that_takes_nothing_is_cut_off_and_costs_nobody_memory() -> None:
    reader = Reader(wake=lambda: None)
    for _ in range(MAX_QUEUED * 3):
        reader.put(b"event")
    assert reader.overrun
    assert reader.take() == b""
