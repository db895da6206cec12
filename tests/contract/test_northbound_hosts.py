"""Hosts report the counters of their interfaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from northbound_client import BASE, H1, H4, Client

EXAMPLE = json.loads((Path(__file__).parent / "northbound_examples" / "host_counters.json").read_text())


@pytest.fixture
def client() -> Client:
    return Client()


def put(client: Client, ip: str, body: Any, **how: Any) -> Any:
    return client.ask(f"{BASE}/hosts/{ip}/counters", method="PUT", body=json.dumps(body).encode(), **how)


def test_a_report_is_answered_with_both_directions_of_the_link(client: Client) -> None:
    answer = put(client, H1, {**EXAMPLE["request"], "at": client.world.now})
    assert answer.status_int == 200
    assert sorted(answer.json) == sorted(EXAMPLE["answer"])
    assert [link["id"] for link in answer.json["links"]] == [
        f"{H1}-0000000000000001.11",
        f"0000000000000001.11-{H1}",
    ]
    assert set(EXAMPLE["answer"]["links"][0]) <= set(answer.json["links"][0])


@pytest.mark.parametrize(
    ("ip", "change", "status", "detail"),
    [
        ("198.18.0.99", {}, 404, "host 198.18.0.99 is not known"),
        (H1, {"at": 1.0}, 400, "off the controller's clock"),
        (H1, {"rx_packets": -1}, 400, "rx_packets is -1"),
        (H1, {"rx_packets": 1.5}, 400, "rx_packets is '1.5'"),
        (H1, {"tx_packets": True}, 400, "tx_packets is 'True'"),
        (H1, {"tx_packets": 10**400}, 400, "between 0 and 2^64 - 1"),
        (H1, {"at": 10**400}, 400, "too large"),
        (H1, {"at": float("inf")}, 400, "must be a Unix time"),
        (H1, {"loss": 0}, 400, "a map of at, rx_packets, tx_packets"),
    ],
)
def test_a_wrong_report_gets_one_clear_problem(
    client: Client, ip: str, change: dict[str, Any], status: int, detail: str
) -> None:
    answer = put(client, ip, {**EXAMPLE["request"], "at": client.world.now, **change})
    assert answer.status_int == status
    assert detail in answer.json["detail"]


def test_nobody_reports_without_the_token(client: Client) -> None:
    body = {**EXAMPLE["request"], "at": client.world.now}
    assert put(client, H4, body, token=None).status_int == 401


def test_of_many_reports_each_is_taken_or_refused_by_itself(client: Client) -> None:
    report = {**EXAMPLE["request"], "at": client.world.now}
    body = {"hosts": {H1: report, H4: {**report, "at": 1.0}, "198.18.0.99": report}}
    answer = client.ask(f"{BASE}/hosts/counters", method="PUT", body=json.dumps(body).encode())
    assert (answer.status_int, answer.json["taken"]) == (200, [H1])
    assert "off the controller's clock" in answer.json["refused"][H4]
    assert "198.18.0.99 is not known" in answer.json["refused"]["198.18.0.99"]


@pytest.mark.parametrize("body", [{}, [], {"hosts": []}, {"hosts": {}, "more": 1}])
def test_many_reports_of_another_form_are_refused(client: Client, body: Any) -> None:
    answer = client.ask(f"{BASE}/hosts/counters", method="PUT", body=json.dumps(body).encode())
    assert answer.status_int == 400
    assert "a map of hosts to counters" in answer.json["detail"]
