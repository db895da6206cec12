"""Start Open vSwitch, find out what it can do, and remove its bridges."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

from topologies import shell, userspace_switch
from topologies.errors import CommandError, TopologyError

log = logging.getLogger(__name__)

LOG = Path("/var/log/openvswitch/ovs-vswitchd.log")
_LOCK = Path("/run/utopia/openvswitch.lock")
_SCRIPTS = (
    Path("/usr/share/openvswitch/scripts/ovs-ctl"),
    Path("/usr/local/share/openvswitch/scripts/ovs-ctl"),
    Path("/usr/lib/openvswitch/scripts/ovs-ctl"),
)
_PORT_COLUMNS = "--columns=name,ofport,error"
MARK = "external-ids:made-by=utopia"
"""On every bridge of ours: bridges outlive a restart of the machine, our records may not."""
_FAMILY = b"ovs_datapath\0"


def running() -> bool:
    """Tell whether Open vSwitch answers."""
    try:
        shell.run(["ovs-vsctl", "--timeout=3", "get", "Open_vSwitch", ".", "ovs_version"])
        shell.run(["ovs-appctl", "--timeout=3", "-t", "ovs-vswitchd", "version"])
    except CommandError:
        return False
    return True


def ensure_running() -> bool:
    """Start Open vSwitch if it is not running; return whether it had to be started.

    Raises:
        TopologyError: it cannot be started.
    """
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if running():
            return False
        if os.path.isdir("/run/systemd/system"):
            shell.run(["systemctl", "start", "openvswitch-switch"], timeout_s=60)
        else:
            script = next((path for path in _SCRIPTS if path.exists()), None)
            if script is None:
                raise TopologyError("ovs-ctl is not installed; apt-get install openvswitch-switch")
            shell.run([str(script), "start", "--system-id=random"], timeout_s=60)
        if not running():
            raise TopologyError("Open vSwitch was started but does not answer; see /var/log/openvswitch")
        return True


def has_kernel_datapath() -> bool:
    """Ask the kernel for the netlink family of Open vSwitch's datapath (it loads the module if any)."""
    attribute = struct.pack("=HH", 4 + len(_FAMILY), 2) + _FAMILY + bytes(-len(_FAMILY) % 4)
    body = struct.pack("=BBH", 3, 1, 0) + attribute
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16) as netlink:
        netlink.settimeout(5)
        netlink.send(struct.pack("=IHHII", 16 + len(body), 0x10, 1, 1, 0) + body)
        answer = netlink.recv(65536)
    (kind,) = struct.unpack_from("=H", answer, 4)
    return kind != 2


def choose_datapath(wanted: str) -> str:
    """Return `kernel` or `user`: what is wanted, or for `auto` the kernel's where there is one.

    Raises:
        TopologyError: the kernel's is wanted and missing.
    """
    if wanted == "user":
        return "user"
    if has_kernel_datapath():
        return "kernel"
    if wanted == "kernel":
        raise TopologyError(
            "network.datapath is kernel, but this kernel has no Open vSwitch datapath; "
            "use auto or user, or load the module (modprobe openvswitch)"
        )
    return "user"


def bridges(prefix: str) -> list[str]:
    """List the bridges whose names begin with `<prefix>-`."""
    listed = shell.run(["ovs-vsctl", "--timeout=5", "list-br"]).split()
    return [name for name in listed if name.startswith(f"{prefix}-")]


def marked_bridges() -> list[str]:
    """List all bridges that this package made, under whatever prefix.

    Raises:
        CommandError: Open vSwitch does not answer.
    """
    find = ["ovs-vsctl", "--timeout=5", "--bare", "--columns=name", "find", "Bridge", MARK]
    return shell.run(find).split()


def missing_bridges(names: Iterable[str], *, interfaces: Path = Path("/sys/class/net")) -> list[str]:
    """Return those of `names` that are no bridge any more; cheap: every bridge has a port of its name."""
    return [name for name in names if not (interfaces / name).exists()]


def broken_ports(wanted: set[str]) -> list[str]:
    """Return those of the `wanted` ports and bridges that Open vSwitch does not run, with its reason."""
    document = json.loads(
        shell.run(["ovs-vsctl", "--timeout=5", "--format=json", _PORT_COLUMNS, "list", "Interface"])
    )
    found = {name: (number, error) for name, number, error in document["data"]}
    broken = []
    for name in sorted(wanted):
        number, error = found.get(name, (None, "it is not in the database"))
        if not isinstance(number, int) or number < 1:
            broken.append(f"{name}: {error}" if isinstance(error, str) else name)
    return broken


def delete_bridges(names: Sequence[str]) -> None:
    """Delete bridges, in one transaction; those that are gone already are skipped.

    With the last bridge of the machine goes what was done to have the switch keep up.
    """
    if names:
        words: Iterable[str] = (word for name in names for word in ("--", "--if-exists", "del-br", name))
        shell.run(["ovs-vsctl", "--timeout=20", *words])
        if not shell.run(["ovs-vsctl", "--timeout=5", "list-br"]).split():
            userspace_switch.rest()
