"""What every worker pool and every store must do, the real ones and the doubles that tests stand on."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from orchestrator_worlds import PROFILE, Heard, LinkWorker, LiveWorld, MemoryStore, answer, world

from orchestrator.adapters.store import SqlStore
from orchestrator.errors import NotFound, WorkerLost, WorkerRefused, WorkerTimeout
from orchestrator.ports import Record
from workers.errors import ChannelClosed, RemoteError
from workers.wire import connections, tls


@pytest.fixture(params=["live", "fake"])
def pooled(request, tmp_path):
    with world(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def live(tmp_path):
    made = LiveWorld(tmp_path, heartbeat_limit_s=0.6)
    yield made
    made.close()


def test_a_node_is_invited_then_joins_and_is_alive(pooled):
    heard = Heard()
    pooled.pool.subscribe(heard)
    pooled.pool.create_token("h2", trusted=False)
    pooled.join("h1", trusted=True)
    (event,) = heard.wait_for(1)
    assert (event.kind, event.node) == ("node_joined", "h1")
    h1, h2 = pooled.pool.nodes()
    assert (h1.node, h1.alive, h1.trusted, h1.enrolled, h1.reason) == ("h1", True, True, True, None)
    assert (h2.node, h2.alive, h2.trusted, h2.enrolled) == ("h2", False, False, False)
    assert h2.reason == "has not enrolled yet"
    assert h1.profile["compute_flops"] == 1e9


def test_an_unknown_node_is_not_found(pooled):
    with pytest.raises(NotFound, match="h9"):
        pooled.pool.node("h9")


def test_a_node_that_leaves_is_lost_at_once_with_a_reason(pooled):
    pooled.join("h1")
    heard = Heard()
    pooled.pool.subscribe(heard)
    pooled.leave("h1")
    (event,) = heard.wait_for(1)
    assert (event.kind, event.node) == ("node_lost", "h1")
    record = pooled.pool.node("h1")
    assert not record.alive
    assert "connection ended" in record.reason
    with pytest.raises(WorkerLost, match="h1"):
        pooled.pool.request("h1", "bulk", "train.end", {}, timeout_s=1)


def test_a_reply_is_put_where_the_request_says(pooled):
    pooled.join("h1")
    delta = np.arange(500_000, dtype=np.float32)
    pooled.answers["train.run"] = lambda node, fields, tensors: answer({"epoch": 3}, {"delta": delta})
    taken = []

    def sink(header):
        assert [(spec.name, spec.dtype, spec.shape) for spec in header.tensors] == [
            ("delta", np.float32, (500_000,))
        ]
        for size in (1_999_999, 1):
            taken.append(bytearray(size))
            yield memoryview(taken[-1])

    got = pooled.pool.request("h1", "bulk", "train.run", {}, timeout_s=5, into=sink)
    assert (got.fields, got.tensors) == ({"epoch": 3}, {})
    assert b"".join(taken) == delta.tobytes()


def test_a_request_is_answered_with_fields_and_tensors(pooled):
    pooled.join("h1")
    pooled.answers["train.run"] = lambda node, fields, tensors: answer(
        {"node": node, "epoch": fields["epoch"]}, {"delta": 2 * tensors["w"]}
    )
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    got = pooled.pool.request("h1", "bulk", "train.run", {"epoch": 3}, {"w": weights}, timeout_s=5)
    assert got.fields == {"node": "h1", "epoch": 3}
    np.testing.assert_array_equal(got.tensors["delta"], 2 * weights)


def test_nobody_hears_anything_after_unsubscribing(pooled):
    gone, stays = Heard(), Heard()
    stop = pooled.pool.subscribe(gone)
    pooled.pool.subscribe(stays)
    stop()
    pooled.join("h1")
    stays.wait_for(1)
    assert gone.items == []


def test_notifications_reach_those_who_asked_for_their_kind(pooled):
    pooled.join("h1")
    tokens, ends = Heard(), Heard()
    pooled.pool.on_notification("tokens", tokens)
    pooled.pool.on_notification("done", ends)
    pooled.notify("tokens", "h1", {"request": "r", "token": 5})
    assert tokens.wait_for(1) == [("h1", {"request": "r", "token": 5})]
    assert ends.items == []


def test_a_revoked_node_is_cut_off(pooled):
    pooled.join("h1")
    heard = Heard()
    pooled.pool.subscribe(heard)
    pooled.pool.revoke("h1")
    (event,) = heard.wait_for(1)
    assert (event.kind, event.reason) == ("node_lost", "revoked by the operator")
    record = pooled.pool.node("h1")
    assert (record.alive, record.revoked, record.reason) == (False, True, "revoked by the operator")


# The real pool only: what a double has no use for.


def test_a_revoked_worker_cannot_attach_again_and_is_told_why(live):
    live.join("h1")
    live.pool.revoke("h1")
    with pytest.raises((RemoteError, ChannelClosed), match="revoked"):
        live.workers["h1"].attach()
    assert not live.pool.node("h1").alive


def test_a_certificate_that_was_replaced_is_turned_away(live):
    live.join("h1")
    old = live.workers["h1"]
    live.join("h1")
    assert live.pool.node("h1").alive
    with pytest.raises(RemoteError, match="replaced"):
        old.attach()
    assert live.pool.node("h1").alive


def test_a_worker_that_falls_silent_is_lost_and_one_that_beats_is_not(live):
    live.join("h1")
    live.join("h2")
    heard, beating = Heard(), Heard()
    live.pool.subscribe(heard)
    live.pool.on_notification("heartbeat", beating)
    for beats in range(1, 200):
        live.workers["h2"].beat()
        beating.wait_for(beats)
        if heard.items:
            break
        live.pool._stopping.wait(0.02)
    (event,) = heard.wait_for(1)
    assert (event.kind, event.node) == ("node_lost", "h1")
    assert "nothing was heard of it for 0." in event.reason
    assert live.pool.node("h2").alive
    assert live.pool.node("h2").cpu_utilisation == 0.5


def test_a_worker_that_attaches_anew_replaces_its_older_session(live):
    live.join("h1")
    heard = Heard()
    live.pool.subscribe(heard)
    worker = live.workers["h1"]
    worker.session = "another"
    older = dict(worker.channels)
    worker.attach()
    assert [event.kind for event in heard.wait_for(2)] == ["node_lost", "node_joined"]
    assert all(channel.wait_closed(5) for channel in older.values())
    assert live.pool.node("h1").alive


def test_a_worker_that_takes_too_long_times_out_and_others_are_served(live):
    release = threading.Event()
    live.answers["train.run"] = lambda *_: answer({"late": release.wait(10)})
    live.answers["train.end"] = lambda *_: answer({"ok": True})
    live.join("h1")
    try:
        with pytest.raises(WorkerTimeout, match=r"h1 did not answer train.run within 0.2 s"):
            live.pool.request("h1", "bulk", "train.run", {}, timeout_s=0.2)
        assert live.pool.request("h1", "bulk", "train.end", {}, timeout_s=5).fields == {"ok": True}
    finally:
        release.set()


def test_a_worker_that_refuses_says_why(live):
    live.join("h1")
    with pytest.raises(WorkerRefused, match=r"h1 refused train\.start") as refusal:
        live.pool.request("h1", "bulk", "train.start", {}, timeout_s=5)
    assert refusal.value.code == "not-served"


@pytest.mark.parametrize(
    "profile",
    [
        {},
        {"compute_flops": float("inf")},
        {"memory_bytes": -1},
        {"power": "strong"},
        {"trusted": True},
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(live, profile):
    token = live.pool.create_token("h1", trusted=False)
    worker = LinkWorker(live.port, "h1", token, live.tmp_path / "h1", {})
    wrong = {**PROFILE, **profile} if profile else {}
    with pytest.raises(RemoteError, match="profile"):
        worker.attach(profile=wrong)
    assert not live.pool.node("h1").alive
    worker.close()


def test_a_notification_before_attach_closes_the_connection_that_it_came_on(live):
    live.join("h1")
    channel = connections.connect(
        "127.0.0.1",
        live.port,
        context=live.workers["h1"].identity.client_context(),
        expected_name="orchestrator",
    )
    channel.notify("tokens", {"request": "r"})
    assert channel.wait_closed(5)
    assert live.pool.node("h1").alive


def test_without_a_certificate_nothing_but_enrolment_is_served(live):
    channel = connections.connect(
        "127.0.0.1", live.port, context=tls.client_context(ca_path=None), expected_name=None
    )
    assert "BEGIN CERTIFICATE" in channel.request("ca", timeout_s=5).fields["ca_pem"]
    for kind, fields in (("attach", {}), ("enrol", {"node": 5}), ("enrol", {})):
        with pytest.raises(RemoteError):
            channel.request(kind, fields, timeout_s=5)
    channel.close()


# Stores


@pytest.fixture(params=["sql", "memory"])
def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryStore()
        return
    made = SqlStore(f"sqlite:///{tmp_path / 'records.sqlite3'}")
    yield made
    made.close()


def record(name, created_at=1.0, kind="job"):
    return Record(id=name, kind=kind, state="running", created_at=created_at, spec={"a": [1, None]})


def test_a_record_comes_back_as_it_was_kept(store):
    store.add(record("job-1"))
    assert store.get("job-1") == record("job-1")
    with pytest.raises(NotFound, match="job-2"):
        store.get("job-2")


def test_an_update_changes_what_it_names_only(store):
    store.add(record("job-1"))
    store.update("job-1", state="completed", summary={"loss": 2.0})
    changed = store.get("job-1")
    assert (changed.state, changed.summary, changed.spec) == ("completed", {"loss": 2.0}, {"a": [1, None]})
    with pytest.raises(NotFound):
        store.update("job-2", state="completed")


def test_records_are_listed_newest_first_by_kind_and_page(store):
    for number in range(4):
        store.add(record(f"job-{number}", created_at=float(number)))
    store.add(record("dep-1", created_at=9.0, kind="deployment"))
    found, total = store.records(kind="job", limit=2, offset=1)
    assert ([item.id for item in found], total) == (["job-2", "job-1"], 4)
    assert store.records(limit=1, offset=0)[0][0].id == "dep-1"
    assert store.count_records("job") == {"running": 4}


def test_entries_are_kept_in_order_and_found_by_type_and_place(store):
    store.add(record("job-1"))
    store.add(record("job-2"))
    first = store.append("job-1", at=1.0, type="epoch", body={"epoch": 0})
    store.append("job-2", at=1.5, type="epoch", body={"epoch": 7})
    store.append("job-1", at=2.0, type="decision", body={"verdict": "keep"})
    assert [entry.type for entry in store.entries("job-1", limit=9)[0]] == ["epoch", "decision"]
    assert store.entries("job-1", type="decision", limit=9)[0][0].body == {"verdict": "keep"}
    assert [entry.type for entry in store.entries("job-1", after=first.sequence, limit=9)[0]] == ["decision"]
    assert store.entries("job-1", limit=1, offset=1) == (
        store.entries("job-1", type="decision", limit=9)[0],
        2,
    )
    assert store.count_entries("epoch") == 2


def test_what_has_not_ended_is_found_again(store):
    store.add(record("job-1"))
    store.add(record("job-2"))
    store.update("job-2", state="completed", ended_at=5.0)
    store.add(record("dep-1", kind="deployment"))
    assert [item.id for item in store.unfinished("job")] == ["job-1"]
    assert [item.id for item in store.unfinished("deployment")] == ["dep-1"]


def test_the_sql_store_survives_a_restart(tmp_path):
    url = f"sqlite:///{tmp_path / 'records.sqlite3'}"
    before = SqlStore(url)
    before.add(record("job-1"))
    before.append("job-1", at=1.0, type="epoch", body={"epoch": 0})
    before.close()
    after = SqlStore(url)
    assert after.get("job-1").id == "job-1"
    assert after.entries("job-1", limit=9)[1] == 1
    after.close()
