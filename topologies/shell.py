"""Run system commands: the one place where this package starts `ip`, `tc`, `ovs-vsctl` and the like."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Sequence

from topologies.errors import CommandError

log = logging.getLogger(__name__)

COMMAND_TIMEOUT_S = 30.0

PACKAGES = {
    "ip": "iproute2",
    "tc": "iproute2",
    "ethtool": "ethtool",
    "iptables-legacy-restore": "iptables",
    "mnexec": "mininet",
    "nsenter": "util-linux",
    "ovs-vsctl": "openvswitch-switch",
    "ovs-ofctl": "openvswitch-common",
}
"""Tool to the apt package that brings it."""


def run(command: Sequence[str], *, stdin: str | None = None, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """Run `command` and return what it printed.

    Raises:
        CommandError: it is missing, failed or took too long.
    """
    log.debug("run %s", " ".join(command))
    try:
        done = subprocess.run(
            command,
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandError(f"{command[0]} is not installed; {_install_hint(command[0])}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"{' '.join(command)}: no answer within {timeout_s:g} s") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise CommandError(f"{' '.join(command)[:300]}: status {done.returncode}: {said[-2000:]}")
    return done.stdout


def ip_batch(lines: Sequence[str], *, namespace: str | None = None) -> None:
    """Carry out many `ip` commands in one process, in `namespace` (a name of `ip netns`) or here."""
    if lines:
        where = ["-n", namespace] if namespace else []
        run(["ip", *where, "-batch", "-"], stdin="\n".join(lines) + "\n")


def in_namespace(namespace: str, command: Sequence[str]) -> list[str]:
    """Return the command line that runs `command` in a named network namespace, under the same pid."""
    return ["nsenter", f"--net=/run/netns/{namespace}", "--", *command]


def missing_tools(tools: Sequence[str]) -> list[str]:
    """Return one line for each of `tools` that is not installed, naming its package."""
    return [f"{tool} is not installed; {_install_hint(tool)}" for tool in tools if shutil.which(tool) is None]


def _install_hint(tool: str) -> str:
    package = PACKAGES.get(tool)
    return f"apt-get install {package}" if package else f"install what brings {tool}"
