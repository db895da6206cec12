"""What the orchestrator tells of its own traffic and transfers is what the controller takes."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from northbound_client import BASE, H1, H4, Client

from orchestrator.adapters.goodput_reports import MAX_KEPT, Transfers
from orchestrator.adapters.own_traffic import MAX_CLASSES, OwnTraffic
from orchestrator.client import ApiError
from workers.wire.pace import Receipt

OWN = {"protocol": "tcp", "port": 7000, "host": H1}


class Told:
    """Stands for the orchestrator's HTTP client; the controller is the real one, and can be away."""

    def __init__(self, controller: Client) -> None:
        self.controller = controller
        self.away = False
        self.calls: list[str] = []

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, body)

    def post(self, path: str, body: Any) -> Any:
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: Any) -> Any:
        self.calls.append(method)
        if self.away:
            raise ApiError("the controller does not answer")
        data = None if body is None else json.dumps(body).encode()
        answer = self.controller.ask(path, method=method, body=data)
        if answer.status_int >= 400:
            raise ApiError(answer.json["detail"], status=answer.status_int)
        return answer.json


@pytest.fixture
def told() -> Told:
    return Told(Client())


def declared(told: Told) -> Any:
    return told.controller.get(f"{BASE}/own-traffic")["classes"]


def test_the_data_port_and_the_ports_of_serving_nodes_are_declared(told: Told) -> None:
    ends: list[tuple[str, int]] = []
    own = OwnTraffic(own=(H1, 7000), others=lambda: ends)
    own.tell(told)
    assert declared(told) == [OWN]
    ends.append((H4, 7001))
    own.tell(told)
    assert declared(told) == [OWN, {"protocol": "tcp", "port": 7001, "host": H4}]
    ends.clear()
    own.tell(told)
    assert declared(told) == [OWN]


def test_what_is_declared_already_is_not_declared_again(told: Told) -> None:
    own = OwnTraffic(own=(H1, 7000), others=list)
    own.tell(told)
    own.tell(told)
    assert told.calls == ["GET", "PUT", "GET"]


def test_a_controller_that_was_restarted_is_told_again(told: Told) -> None:
    own = OwnTraffic(own=(H1, 7000), others=list)
    own.tell(told)
    told.controller = Client()
    assert declared(told) == []
    own.tell(told)
    assert declared(told) == [OWN]


def test_in_the_end_the_declaration_is_withdrawn(told: Told) -> None:
    own = OwnTraffic(own=(H1, 7000), others=list)
    own.tell(told)
    assert own.withdraw(told)
    assert declared(told) == []


def test_what_another_has_declared_meanwhile_is_left_alone(told: Told) -> None:
    own = OwnTraffic(own=(H1, 7000), others=list)
    own.tell(told)
    other = {"protocol": "udp", "port": 9}
    told.put(f"{BASE}/own-traffic", {"classes": [other]})
    assert not own.withdraw(told)
    assert declared(told) == [other]


def test_more_ends_than_the_controller_takes_are_left_out_and_wrong_ones_too(told: Told) -> None:
    ends = [(f"198.18.{high}.{low}", 7001) for high in range(2) for low in range(200)]
    own = OwnTraffic(own=(H1, 7000), others=lambda: [("fe80::1", 1), ("h1", 2), *ends])
    own.tell(told)
    assert len(declared(told)) == MAX_CLASSES
    assert OWN in declared(told)


def transfers(told: Told) -> Transfers:
    clock = SimpleNamespace(unix_s=lambda: told.controller.world.now)
    return Transfers(own_address=H1, clock=clock)  # type: ignore[arg-type]


def goodput(told: Told, src: str, dst: str) -> Any:
    return told.controller.get(f"{BASE}/paths?src={src}&dst={dst}")["goodput_bps"]


def test_both_directions_of_a_transfer_show_as_goodput(told: Told) -> None:
    noted = transfers(told)
    noted.sent(H4, {"bytes": 1_000_000, "seconds": 2.0, "ago_s": 5.0}, sent_bytes=2_000_000, took_s=9.0)
    noted.received(H4, Receipt(payload_bytes=500_000, seconds=2.0, ended_s=0.0))
    assert noted.tell(told)
    there, back = goodput(told, H1, H4), goodput(told, H4, H1)
    assert (there["value"], back["value"]) == (4e6, 2e6)
    assert there["age_s"] == pytest.approx(5.0)
    assert told.calls == ["POST"]


def test_without_transfers_nothing_is_told(told: Told) -> None:
    noted = transfers(told)
    noted.received(H4, None)
    noted.sent(H4, {"bytes": 9, "seconds": 2.0, "ago_s": 5.0}, sent_bytes=8, took_s=9.0)
    assert not noted.tell(told)
    assert told.calls == []


def test_transfers_wait_for_a_controller_that_is_away_but_not_without_end(told: Told) -> None:
    noted = transfers(told)
    told.away = True
    for number in range(MAX_KEPT + 50):
        noted.received(H4, Receipt(payload_bytes=500_000 + number, seconds=1.0, ended_s=0.0))
    with pytest.raises(ApiError):
        noted.tell(told)
    told.away = False
    assert noted.tell(told)
    assert goodput(told, H4, H1)["raw"] == (500_000 + MAX_KEPT + 49) * 8
    assert goodput(told, H4, H1)["samples"] == MAX_KEPT
