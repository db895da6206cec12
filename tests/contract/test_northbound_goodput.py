"""What transfers achieved is reported over the northbound API, and shows in the path."""

from __future__ import annotations

import json
from typing import Any

import pytest
from northbound_client import BASE, H1, H4, Client

PATH = f"{BASE}/paths?src={H1}&dst={H4}"


@pytest.fixture
def client() -> Client:
    return Client()


def report(client: Client, *, token: str | None = "a-token-of-the-tests", **fields: Any) -> Any:
    body = {"src": H1, "dst": H4, "bytes": 1_000_000, "seconds": 2.0, "at": client.world.now, **fields}
    return client.ask(f"{BASE}/goodput", method="POST", body=json.dumps(body).encode(), token=token)


def test_a_reported_transfer_shows_in_its_path_and_in_no_other(client: Client) -> None:
    answer = report(client)
    assert answer.status_int == 200
    assert answer.json["goodput_bps"]["value"] == 4e6
    shown = client.get(PATH)["goodput_bps"]
    assert (shown["value"], shown["samples"], shown["source"]) == (4e6, 1, "transfers")
    back = client.get(f"{BASE}/paths?src={H4}&dst={H1}")["goodput_bps"]
    assert back["reason"] == "no transfer was reported"


def test_goodput_is_smoothed_and_its_last_sample_kept(client: Client) -> None:
    report(client)
    client.world.now += 10.0
    report(client, seconds=1.0)
    shown = client.get(PATH)["goodput_bps"]
    assert shown["value"] == pytest.approx(4e6 + 0.3 * 4e6)
    assert (shown["raw"], shown["samples"]) == (8e6, 2)


def test_goodput_grows_old_and_is_unknown_after_ten_minutes(client: Client) -> None:
    report(client)
    client.world.now += 590.0
    goodputs = client.world.parts.views._goodputs
    assert goodputs.goodput(client.world.now, H1, H4).age_s == 590.0
    assert goodputs.goodput(client.world.now + 20.0, H1, H4).reason == "no transfer was reported for 610 s"


def test_reports_that_come_late_do_not_undo_newer_ones(client: Client) -> None:
    report(client)
    report(client, seconds=20.0, at=client.world.now - 60.0)
    assert client.get(PATH)["goodput_bps"]["value"] == 4e6


def report_many(client: Client, body: Any) -> Any:
    return client.ask(f"{BASE}/goodputs", method="POST", body=json.dumps(body).encode())


def test_of_many_transfers_each_is_taken_or_refused_by_itself(client: Client) -> None:
    good = {"src": H1, "dst": H4, "bytes": 1_000_000, "seconds": 2.0, "at": client.world.now}
    answer = report_many(
        client, {"transfers": [7, good, {**good, "dst": "198.18.0.99"}, {**good, "bytes": 0}]}
    )
    assert answer.status_int == 200
    assert answer.json["taken"] == 1
    assert [item["number"] for item in answer.json["refused"]] == [0, 2, 3]
    assert "host 198.18.0.99 is not known" in answer.json["refused"][1]["reason"]
    assert client.get(PATH)["goodput_bps"]["value"] == 4e6


@pytest.mark.parametrize("body", [[], {}, {"transfers": {}}, {"transfers": [], "more": 1}])
def test_many_transfers_come_as_a_list(client: Client, body: Any) -> None:
    assert report_many(client, body).status_int == 400


def test_too_many_transfers_at_once_are_refused(client: Client) -> None:
    answer = report_many(client, {"transfers": [0] * 501})
    assert answer.status_int == 400
    assert answer.json["detail"] == "501 transfers are reported; 500 are the most"


@pytest.mark.parametrize(
    ("fields", "status", "detail"),
    [
        ({"seconds": 0}, 400, "seconds is 0; it must be between 0.001 and 86400"),
        ({"seconds": -1.5}, 400, "seconds is -1.5"),
        ({"bytes": 10**30}, 400, "bytes is beyond all bounds"),
        ({"bytes": "many"}, 400, "bytes is 'many'; it must be a number"),
        ({"bytes": True}, 400, "bytes is 'True'; it must be a number"),
        ({"bytes": float("nan")}, 400, "bytes is nan"),
        ({"at": 5.0}, 400, "at is 5; it must be between"),
        ({"at": None}, 400, "at is 'None'; it must be a number"),
        ({"src": "h1"}, 400, "src is 'h1', not an IPv4 address"),
        ({"src": [1]}, 400, "src is '[1]', not an IPv4 address"),
        ({"dst": H1}, 400, "src and dst are both"),
        ({"dst": "198.18.0.99"}, 404, "host 198.18.0.99 is not known"),
        ({"colour": "red"}, 400, "exactly the keys"),
    ],
)
def test_wrong_reports_get_one_clear_problem(
    client: Client, fields: dict[str, Any], status: int, detail: str
) -> None:
    answer = report(client, **fields)
    assert answer.status_int == status
    assert detail in answer.json["detail"]
    assert client.get(PATH)["goodput_bps"]["value"] is None


def test_only_who_has_the_token_reports(client: Client) -> None:
    assert report(client, token=None).status_int == 401


def test_more_pairs_than_can_be_kept_push_out_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    from ryu_apps import goodputs

    monkeypatch.setattr(goodputs, "MAX_PAIRS", 3)
    kept = goodputs.Goodputs()
    for number in range(5):
        kept.add("a", f"b{number}", goodputs.Transfer(payload_bytes=1e6, seconds=1.0, at=float(number)))
    assert [kept.goodput(5.0, "a", f"b{number}").value is None for number in range(5)] == [
        True,
        True,
        False,
        False,
        False,
    ]
