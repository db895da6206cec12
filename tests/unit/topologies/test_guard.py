"""The guard waits for its supervisor's end, and removes only what nobody looks after then."""

import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from topologies import guard, leftovers, ovs, state
from topologies.processes import identify


@pytest.fixture
def testbed_of(root, monkeypatch):
    """Return what writes the record of testbed `aa`, as its owner would."""

    def write(owner, *processes):
        journal = state.Journal("aa", identify("supervisor", owner.pid))
        state.make_directory(journal.directory / "logs")
        for name, process in processes:
            journal.add_process(name, process.pid)
        journal.set_status({})
        return journal

    return write


def guard_until_the_end_of(process, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["guard", "aa", str(os.pidfd_open(process.pid))])
    process.kill()
    process.wait()
    guard.main()


def test_what_a_killed_supervisor_leaves_is_removed(testbed_of, sleeper, part, monkeypatch):
    testbed_of(sleeper, ("part", part))
    guard_until_the_end_of(sleeper, monkeypatch)
    assert part.wait(5) == -15
    assert state.read("aa") is None


def test_what_has_a_new_owner_by_then_is_left_alone(testbed_of, sleeper, part, monkeypatch):
    testbed_of(part, ("part", part))
    guard_until_the_end_of(sleeper, monkeypatch)
    assert part.poll() is None
    assert asdict(state.read("aa").owner) == asdict(identify("supervisor", part.pid))


def test_what_somebody_else_sweeps_is_left_to_them(testbed_of, sleeper, part, monkeypatch):
    testbed_of(sleeper, ("part", part))
    monkeypatch.setattr(leftovers, "PATIENCE_S", 0.1)
    with leftovers.lock("aa"):
        guard_until_the_end_of(sleeper, monkeypatch)
    assert part.poll() is None


def test_the_guard_goes_last_so_that_nothing_is_ever_without_one(testbed_of, sleeper, part, monkeypatch):
    testbed_of(sleeper, ("guard", part))
    at_bridges = []
    monkeypatch.setattr(ovs, "delete_bridges", lambda names: at_bridges.append(part.poll()))
    assert state.sweep("aa") == [f"process guard ({part.pid})"]
    assert at_bridges == [None]
    assert part.wait(5) == -15


def test_a_guard_that_waits_has_loaded_next_to_nothing():
    heavy = ("pydantic", "subprocess", "json", "logging")
    script = f"import topologies.guard, sys; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
