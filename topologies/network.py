"""Build a whole network from a spec: Mininet hosts, switches and emulated links, all wires laid at once."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mininet.log import setLogLevel
from mininet.net import Mininet
from mininet.node import RemoteController

from topologies import ovs, userspace_switch
from topologies.edge_cloud import EdgeCloud
from topologies.errors import TestbedError
from topologies.processes import tail
from topologies.specs import NetworkSpec
from topologies.wiring import Wiring

log = logging.getLogger(__name__)

_OPEN_FILES = 65536
_PATIENCE_S = 3.0
"""Open vSwitch's own monitor starts it again after most crashes within a second, but not after SIGKILL."""


class Network(Mininet):  # type: ignore[misc]
    """A running network; `spec` is what it was made from. `stop` removes it."""

    def __init__(self, spec: NetworkSpec, wiring: Wiring, *, datapath: str, openflow_port: int) -> None:
        self.spec = spec
        self.wiring = wiring
        self.datapath = datapath
        self._daemon: int | None = None
        self._daemon_gone_at_s: float | None = None
        _allow_open_files()
        # Mininet's own initialisation rewrites system-wide kernel settings and would not put them back
        Mininet.inited = True
        setLogLevel("warning")
        super().__init__(
            topo=EdgeCloud(spec=spec, wiring=wiring, datapath=datapath, batch=True),
            controller=_controller(openflow_port),
            build=False,
        )

    def buildFromTopo(self, topo: Any = None) -> None:
        """Make the nodes, then all wires in one go."""
        super().buildFromTopo(topo)
        self.wiring.lay()

    def start_all(self, record: Callable[[dict[str, int]], None]) -> None:
        """Build and start; `record` is told the processes of hosts and switches.

        Raises:
            TestbedError: a switch did not come up.
        """
        self.wiring.open()
        self.build()
        record(self.shells())
        self.start()
        self._check_bridges()
        self._favour_daemon()

    def _favour_daemon(self) -> bool:
        """Give the daemon what it needs to keep up; False while it has not opened all ports yet."""
        if self.datapath == "user":
            userspace_switch.hurry()
            if userspace_switch.deepen(self._port_names()) < self._port_names():
                return False
        self._daemon = userspace_switch.alive()
        return True

    def tend(self, now_s: float) -> str | None:
        """See that the switch daemon runs; return what happened to it, None if nothing did.

        One that its own monitor has started again is given again what it was given at first. One that stays
        away is started. `now_s` is of any monotonic clock.

        Raises:
            TopologyError: it cannot be started.
        """
        daemon = userspace_switch.alive()
        if daemon is None:
            self._daemon_gone_at_s = now_s if self._daemon_gone_at_s is None else self._daemon_gone_at_s
            if now_s - self._daemon_gone_at_s < _PATIENCE_S:
                return None
            ovs.ensure_running()
        elif daemon == self._daemon:
            return None
        self._daemon_gone_at_s = None
        return "ended and was started again; packets were lost meanwhile" if self._favour_daemon() else None

    def shells(self) -> dict[str, int]:
        """Return the process that holds each node."""
        return {f"node {node.name}": node.pid for node in (*self.hosts, *self.switches, *self.controllers)}

    def _port_names(self) -> set[str]:
        return {str(port) for switch in self.switches for port in switch.ports if switch.ports[port]}

    def _check_bridges(self) -> None:
        wanted = self._port_names() | {switch.name for switch in self.switches}
        trouble = ovs.broken_ports(wanted)
        if trouble:
            raise TestbedError(
                f"Open vSwitch did not take up {trouble[0]} ({len(trouble)} of {len(wanted)} ports and "
                f"bridges are missing); {ovs.LOG} says why; it ends:\n{tail(ovs.LOG, lines=5)}"
            )

    def missing(self) -> list[str]:
        """Name the switches that somebody else has removed (`mn -c` removes every bridge there is)."""
        if self._daemon_gone_at_s is not None:
            return []
        return ovs.missing_bridges([switch.name for switch in self.switches])

    def stop(self) -> None:
        """Remove all: bridges first, so that Open vSwitch does not see its ports vanish."""
        ovs.delete_bridges([switch.name for switch in self.switches])
        self.wiring.close()
        for node in (*self.hosts, *self.switches, *self.controllers):
            with suppress(ProcessLookupError):
                node.terminate()

    def netns(self, host: str) -> str:
        """Return the path of a host's network namespace."""
        return f"/proc/{self.nameToNode[host].pid}/ns/net"


def _controller(port: int) -> type[RemoteController]:
    class LocalController(RemoteController):  # type: ignore[misc]
        """The controller on this machine; switches go on trying until it is there."""

        def __init__(self, name: str, **params: Any) -> None:
            super().__init__(name, ip="127.0.0.1", port=port, **params)

        def checkListening(self) -> None:
            """Do not wait for it: who needs it, waits for its REST."""

    return LocalController


def _allow_open_files() -> None:
    """Raise the limit of open files: every node takes a few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    log.debug("process %d may open %d files", os.getpid(), max(soft, wanted))
