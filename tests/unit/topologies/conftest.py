"""What tests of a testbed's records share: a directory for them, and a process to own or to be recorded."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from topologies import ovs, state
from topologies.links import wires


@pytest.fixture
def no_openvswitch(monkeypatch):
    monkeypatch.setattr(ovs, "bridges", lambda prefix: [])


@pytest.fixture
def root(tmp_path, monkeypatch, no_openvswitch):
    monkeypatch.setattr(state, "ROOT", tmp_path)
    monkeypatch.setattr(state, "interfaces", lambda: ["lo", "eth0", "zz-g1.1x", "zz-other", "z-g1.1"])
    monkeypatch.setattr(wires, "namespace", lambda prefix: f"{prefix}-no-such-namespace")
    return tmp_path


@pytest.fixture
def sleeper():
    with _sleeping() as process:
        yield process


@pytest.fixture
def part():
    """Another one, as part of a testbed."""
    with _sleeping() as process:
        yield process


@contextmanager
def _sleeping():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()
