"""The switch daemon is looked after: started again if it stays away, and given again what it needs."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from topologies import network, userspace_switch
from topologies.network import Network

PORTS = {"zz-c1.1", "zz-c1.2"}
HAPPENED = "ended and was started again; packets were lost meanwhile"


class World:
    """The daemon as the machine shows it; `opened` are the ports it has opened so far."""

    def __init__(self) -> None:
        self.pid: int | None = 100
        self.opened = set(PORTS)
        self.started = 0
        self.deepened: list[int | None] = []

    def ensure_running(self) -> bool:
        self.started += 1
        self.pid = 300
        return True

    def deepen(self, interfaces: set[str]) -> set[str]:
        self.deepened.append(self.pid)
        return self.opened & interfaces


@pytest.fixture
def world(monkeypatch):
    world = World()
    monkeypatch.setattr(network.userspace_switch, "alive", lambda: world.pid)
    monkeypatch.setattr(network.userspace_switch, "deepen", world.deepen)
    monkeypatch.setattr(network.userspace_switch, "hurry", lambda: None)
    monkeypatch.setattr(network.ovs, "ensure_running", world.ensure_running)
    monkeypatch.setattr(network.ovs, "missing_bridges", list)
    return world


@pytest.fixture
def net(world):
    net = Network.__new__(Network)
    net.datapath = "user"
    net.switches = [SimpleNamespace(name="zz-c1", ports={name: i for i, name in enumerate(sorted(PORTS), 1)})]
    net._daemon, net._daemon_gone_at_s = 100, None
    return net


def test_nothing_is_done_while_the_daemon_lives(net, world):
    assert [net.tend(float(now)) for now in range(5)] == [None] * 5
    assert (world.started, world.deepened) == (0, [])


def test_a_daemon_that_its_monitor_started_again_gets_its_buffers_once_its_ports_are_open(net, world):
    world.pid, world.opened = 200, set()
    assert net.tend(1.0) is None
    world.opened = set(PORTS)
    assert net.tend(2.0) == HAPPENED
    assert net.tend(3.0) is None
    assert (world.started, world.deepened) == (0, [200, 200])


def test_a_daemon_that_stays_away_is_started_after_its_monitor_had_its_chance(net, world):
    world.pid = None
    assert [net.tend(now) for now in (1.0, 2.0, 3.0)] == [None] * 3
    assert world.started == 0
    assert net.tend(4.1) == HAPPENED
    assert (world.started, world.deepened) == (1, [300])


def test_bridges_are_not_called_removed_by_others_while_the_daemon_is_away(net, world):
    assert net.missing() == ["zz-c1"]
    world.pid = None
    net.tend(1.0)
    assert net.missing() == []


def test_a_process_of_another_name_is_not_the_switch(tmp_path, monkeypatch):
    pid_file = tmp_path / "ovs-vswitchd.pid"
    pid_file.write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(userspace_switch, "_PID_FILES", (tmp_path / "none.pid", pid_file))
    assert userspace_switch.alive() is None
    monkeypatch.setattr(userspace_switch, "_NAME", "py")
    assert userspace_switch.alive() == os.getpid()
