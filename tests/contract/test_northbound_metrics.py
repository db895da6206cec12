"""The metrics parse, and show what the REST shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from northbound_client import BASE, H1, H4, LINK, Client
from prometheus_client.parser import text_string_to_metric_families

GAUGE_NAMES = {
    "of_port_tx_bytes", "of_port_rx_bytes", "of_port_tx_packets", "of_port_rx_packets", "of_port_tx_dropped",
    "of_port_rx_dropped", "of_port_tx_errors", "of_port_rx_errors",
}  # fmt: skip
"""As Faucet's Gauge calls them, with its labels."""


@pytest.fixture(scope="module")
def client() -> Client:
    made = Client()
    made.world.parts.effort.note()
    made.world.advance(3.0)
    made.world.parts.effort.note()
    return made


@pytest.fixture(scope="module")
def families(client: Client) -> dict[str, Any]:
    parsed = list(text_string_to_metric_families(client.ask("/metrics").text))
    assert len({family.name for family in parsed}) == len(parsed)
    return {family.name: family for family in parsed}


def test_every_known_value_of_every_link_is_there_and_no_unknown_one(
    client: Client, families: dict[str, Any]
) -> None:
    wanted = {
        (f"utopia_link_{name}", link["id"]): value["value"]
        for link in client.get(f"{BASE}/links")["links"]
        for name, value in link.items()
        if isinstance(value, dict) and value.get("value") is not None
    }
    shown = {
        (name, sample.labels["link"]): sample.value
        for name, family in families.items()
        if name.startswith("utopia_link_") and not name.endswith(("_low", "_high"))
        for sample in family.samples
    }
    assert shown == pytest.approx(wanted)
    assert ("utopia_link_delay_s", LINK) in shown
    assert ("utopia_link_capacity_bps", LINK) not in shown


def test_the_interval_of_the_loss_is_there(client: Client, families: dict[str, Any]) -> None:
    loss = client.get(f"{BASE}/links/{LINK}")["loss_ratio"]
    for bound in ("low", "high"):
        samples = families[f"utopia_link_loss_ratio_{bound}"].samples
        value = next(sample.value for sample in samples if sample.labels["link"] == LINK)
        assert value == pytest.approx(loss[bound])


def test_what_measuring_costs_is_in_the_metrics_and_in_the_rest(
    client: Client, families: dict[str, Any]
) -> None:
    effort = client.get(f"{BASE}/effort")
    assert effort["over_s"] == pytest.approx(3.0, abs=0.02)
    assert effort["probe_packets_per_s"] > 0
    for name, value in effort.items():
        if isinstance(value, float) and name != "generated_at":
            assert families[f"utopia_effort_{name}"].samples[0].value == pytest.approx(value)
    assert families["utopia_probes_sent"].type == "counter"


def test_pins_are_counted_by_how_they_stand(client: Client) -> None:
    def directions() -> dict[str, float]:
        parsed = text_string_to_metric_families(client.ask("/metrics").text)
        family = next(item for item in parsed if item.name == "utopia_pin_directions")
        return {sample.labels["state"]: sample.value for sample in family.samples}

    assert set(directions().values()) == {0}
    body = json.dumps({"src": H1, "dst": H4, "objective": {"delay": 1}, "both_directions": True}).encode()
    pin = client.ask(f"{BASE}/paths", method="POST", body=body)
    assert pin.status_int == 201, pin.text
    assert sum(directions().values()) == 2
    assert client.ask(f"{BASE}/paths/{pin.json['id']}", method="DELETE").status_int == 200
    assert set(directions().values()) == {0}


def test_port_counters_have_the_names_and_labels_of_gauge(client: Client) -> None:
    class Entry:
        port_no, duration_sec, duration_nsec = 2, 10, 0
        tx_bytes = rx_bytes = tx_packets = rx_packets = 7
        tx_dropped = rx_dropped = tx_errors = rx_errors = 0

    world = client.world
    world.parts.monitor.poll(world.parts.network.switches[1])
    world.parts.monitor.replied(world.now, 1, world.switches[1].polls[-1], [Entry()])
    parsed = list(text_string_to_metric_families(client.ask("/metrics").text))
    ports = {family.name: family.samples for family in parsed if family.name.startswith("of_port_")}
    assert set(ports) == GAUGE_NAMES
    labels = {"dp_id": "0x1", "dp_name": "s1", "port": "2", "port_description": "s1.2"}
    assert any(sample.labels == labels and sample.value == 7 for sample in ports["of_port_tx_bytes"])
