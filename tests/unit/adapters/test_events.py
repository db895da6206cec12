"""The event log: kept, streamed, and rid of readers that vanish or fall behind."""

from __future__ import annotations

import threading

import pytest

from orchestrator.adapters.store import SqlStore
from orchestrator.clock import SystemClock
from orchestrator.events import EventLog
from orchestrator.ports import Record


@pytest.fixture
def log(tmp_path):
    store = SqlStore(f"sqlite:///{tmp_path / 'records.sqlite3'}")
    store.add(Record(id="job-1", kind="job", state="accepted", created_at=1.0, spec={}))
    yield EventLog(store=store, clock=SystemClock())
    store.close()


def texts(entries, count):
    return [next(entries).body["n"] for _ in range(count)]


def test_a_follower_gets_what_was_kept_and_then_what_happens(log):
    log.publish("job-1", "step", {"n": 1})
    entries = log.follow("job-1", quiet_s=5)
    assert texts(entries, 1) == [1]
    log.publish("job-1", "step", {"n": 2})
    assert texts(entries, 1) == [2]


def test_a_follower_that_comes_back_goes_on_where_it_was(log):
    for n in range(1, 4):
        log.publish("job-1", "step", {"n": n})
    assert texts(log.follow("job-1", after=2, quiet_s=5), 1) == [3]


def test_nothing_is_lost_or_twice_while_others_publish(log):
    count = 300

    def publish():
        for n in range(count):
            log.publish("job-1", "step", {"n": n})

    publisher = threading.Thread(target=publish)
    publisher.start()
    seen = []
    for entry in log.follow("job-1", quiet_s=5):
        seen.append(entry.body["n"])
        if len(seen) == count:
            break
    publisher.join(10)
    assert seen == list(range(count))


def test_quiet_times_are_told_so_that_vanished_readers_show(log):
    assert next(log.follow("job-1", quiet_s=0.01)) is None


def test_a_reader_that_closes_is_forgotten(log):
    entries = log.follow("job-1", quiet_s=0.01)
    next(entries)
    assert log.watchers() == 1
    entries.close()
    assert log.watchers() == 0


def test_a_reader_that_falls_too_far_behind_is_dropped_and_others_are_not_held_up(log):
    slow = log.follow("job-1", quiet_s=0.01)
    assert next(slow) is None
    for n in range(1001):
        log.publish("job-1", "step", {"n": n})
    assert log.watchers() == 0
    read = [entry for entry in slow if entry is not None]
    assert len(read) == 1000


def test_closing_ends_every_stream(log):
    ended = threading.Event()

    def read():
        for _ in log.follow("job-1", quiet_s=30):
            pass
        ended.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while log.watchers() == 0:
        assert reader.is_alive()
    log.close()
    assert ended.wait(5)
