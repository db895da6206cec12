"""Find out, before anything is started, what would stop a testbed half-way."""

from __future__ import annotations

import os
import socket

import psutil

from scenarios.schema import Scenario
from topologies import shell, wiring
from topologies.errors import TestbedError

_TOOLS = ("ip", "ethtool", "mnexec", "bash", "ovs-vsctl", "ovs-appctl")


def check_root() -> None:
    """Refuse to go on without root.

    Raises:
        TestbedError: this process is not root.
    """
    if os.geteuid() != 0:
        raise TestbedError("making network namespaces and switches needs root; use sudo")


def check_tools(backend: str) -> None:
    """Refuse to go on without the commands that a network needs.

    Raises:
        TestbedError: some are missing; the text names them and their packages.
    """
    missing = shell.missing_tools([*_TOOLS, *wiring.tools(backend)])
    if missing:
        raise TestbedError("; ".join(dict.fromkeys(missing)))


def check_ports(scenario: Scenario, stages: tuple[str, ...]) -> None:
    """Refuse to go on when a port on this machine is taken.

    Raises:
        TestbedError: the text names port, holder and the key to change.
    """
    network = scenario.network
    wanted = []
    if "controller" in stages:
        wanted += [("openflow_port", network.openflow_port), ("northbound_port", network.northbound_port)]
    if "orchestrator" in stages:
        wanted.append(("api_port", network.api_port))
    seen: dict[int, str] = {}
    for key, port in wanted:
        if port in seen:
            raise TestbedError(
                f"network.{key} and network.{seen[port]} are both {port}; choose another for one"
            )
        seen[port] = key
        if not _is_free(port):
            raise TestbedError(
                f"port {port} (network.{key}) is in use{_holder(port)}; "
                f"stop that, or choose another network.{key} in the scenario"
            )


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            local = connection.laddr
            if local and local.port == port and connection.status == psutil.CONN_LISTEN and connection.pid:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f" by process {connection.pid} ({command[:120]})"
    except psutil.Error:
        pass
    return ""
