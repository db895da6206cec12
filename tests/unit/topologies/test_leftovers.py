"""Testbeds whose owner is gone are removed by the next start of any other; those of others are left alone."""

import json
import os

import pytest

from topologies import leftovers, ovs, state
from topologies.processes import start_ticks


@pytest.fixture(autouse=True)
def no_marks(monkeypatch):
    monkeypatch.setattr(ovs, "marked_bridges", lambda: [])


def record(root, prefix, owner_pid, *processes, **changed):
    """Write the record of a testbed; an owner whose start is unknown is dead."""
    state.make_directory(root / prefix / "logs")
    ticks = start_ticks(owner_pid) or 1
    document = {
        "prefix": prefix,
        "boot": state._boot_id(),
        "owner": {"name": "supervisor", "pid": owner_pid, "start_ticks": ticks},
        "processes": [{"name": "part", "pid": pid, "start_ticks": start_ticks(pid)} for pid in processes],
        "status": {},
        **changed,
    }
    (root / prefix / "state.json").write_text(json.dumps(document))


@pytest.fixture
def dead_pid():
    return 2**22 + 1  # above the kernel's highest pid


def test_a_testbed_whose_owner_is_dead_is_removed_and_its_logs_stay(root, sleeper, dead_pid):
    record(root, "aa", dead_pid, sleeper.pid)
    told = []
    leftovers.sweep_orphans("zz", told.append)
    assert told == [f"Removed testbed aa, which nobody looked after: process part ({sleeper.pid})"]
    assert sleeper.wait(5) == -15
    assert os.listdir(root / "aa") == ["logs"]


def test_a_testbed_whose_owner_lives_is_left_alone(root, sleeper):
    record(root, "aa", os.getpid(), sleeper.pid)
    told = []
    leftovers.sweep_orphans("zz", told.append)
    assert told == []
    assert sleeper.poll() is None
    assert state.read("aa") is not None


def test_a_testbed_that_somebody_starts_or_stops_just_now_is_left_alone(root, sleeper, dead_pid):
    record(root, "aa", dead_pid, sleeper.pid)
    told = []
    with leftovers.lock("aa"):
        leftovers.sweep_orphans("zz", told.append)
    assert told == []
    assert sleeper.poll() is None


def test_the_own_prefix_is_not_for_this_sweep(root, dead_pid):
    record(root, "zz", dead_pid)
    leftovers.sweep_orphans("zz", pytest.fail)
    assert state.read("zz") is not None


def test_what_cannot_be_removed_is_told_and_the_next_is_removed_all_the_same(root, dead_pid):
    state.make_directory(root / "aa")
    (root / "aa" / "state.json").write_text("{")
    record(root, "bb", dead_pid)
    told = []
    leftovers.sweep_orphans("zz", told.append)
    assert len(told) == 1
    assert "Testbed aa, which nobody looks after, cannot be removed" in told[0]
    assert state.read("bb") is None


def test_bridges_that_outlived_a_restart_of_the_machine_are_removed(root, dead_pid, sleeper, monkeypatch):
    """Their record is of another boot, whose pids say nothing, or gone altogether."""
    record(root, "aa", sleeper.pid, sleeper.pid, boot="another")
    bridges = ["aa-c1", "bb-g1", "odd"]
    monkeypatch.setattr(ovs, "marked_bridges", lambda: list(bridges))
    monkeypatch.setattr(ovs, "bridges", lambda prefix: [name for name in bridges if name.startswith(prefix)])
    monkeypatch.setattr(ovs, "delete_bridges", lambda names: [bridges.remove(name) for name in names])
    told = []
    leftovers.sweep_orphans("zz", told.append)
    assert [text.rpartition(": ")[2] for text in told] == ["bridge aa-c1", "bridge bb-g1"]
    assert bridges == ["odd"]
    assert sleeper.poll() is None
    assert not (root / "aa" / "state.json").exists()


def test_a_lock_that_another_holds_is_waited_for_only_so_long(root):
    wanted = pytest.raises(leftovers.Held, match="testbed aa is being started or stopped")
    with leftovers.lock("aa"), wanted, leftovers.lock("aa", wait_s=0.1):
        pytest.fail("two hold one lock")
    with leftovers.lock("aa"):
        pass
