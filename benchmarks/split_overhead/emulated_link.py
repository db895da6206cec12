"""Two network namespaces and one emulated link between them; what controls the workers goes beside it.

The link is the testbed's (topologies/links): a bridge with a delay line and a shaper for each direction. A
plain veth pair carries commands and tokens, so that the link has the ring's rows alone.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.split_overhead.cores import on_all_cores
from topologies import checks, leftovers, shell, state
from topologies.errors import TestbedError
from topologies.links.emulator import LATE_LIMIT_MS
from topologies.links.wires import NO_OFFLOADS, End
from topologies.processes import die_with_parent, stop_process
from topologies.specs import Impairment, LinkKind, LinkSpec
from topologies.wiring import Wiring, choose_backend, tools
from workers.namespaces import make_inside

PREFIX = "spo"
"""Of what is made on this machine; a start of any testbed removes what a killed run left under it."""
DATA, CONTROL = ("198.18.0.1", "198.18.0.2"), ("198.19.0.1", "198.19.0.2")
_ENDS = ("a", "b")
_FREE_BPS = 10e9
_START_TIMEOUT_S = 5.0
_LOOK_S = 0.02
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What the link does, in both directions."""

    delay_s: float
    rate_bps: float
    loss_ratio: float

    def describe(self) -> str:
        """Write it in a few words."""
        return f"{self.delay_s * 1e3:g} ms, {self.rate_bps / 1e6:g} Mbit/s, {self.loss_ratio:.0%} loss"


class EmulatedLink:
    """The link while it is up; ends are numbered 0 and 1."""

    def __init__(self, wiring: Wiring, pids: tuple[int, ...]) -> None:
        self._wiring = wiring
        self._pids = pids
        self._carried: dict[str, int] = {}

    @property
    def backend(self) -> str:
        """Name what impairs the link."""
        return self._wiring.backend

    def namespace(self, end: int) -> str:
        """Return the path of an end's network namespace."""
        return f"/proc/{self._pids[end]}/ns/net"

    def inside(self, end: int, make: Callable[[], Made]) -> Made:
        """Return what `make` makes in an end's namespace, such as a socket."""
        return make_inside(self.namespace(end), make)

    def become(self, cell: Cell) -> None:
        """Do to packets what `cell` says, from now on."""
        values = {"delay_s": cell.delay_s, "rate_bps": cell.rate_bps, "loss_ratio": cell.loss_ratio}
        for direction in ("a-b", "b-a"):
            self._wiring.change(direction, values)

    def counters(self, end: int) -> tuple[int, int]:
        """Return the bytes that an end has received and sent, with their Ethernet headers."""
        for line in Path(f"/proc/{self._pids[end]}/net/dev").read_text(encoding="ascii").splitlines():
            name, _, values = line.partition(":")
            if name.strip() == "data":
                numbers = values.split()
                return int(numbers[0]), int(numbers[8])
        raise RuntimeError(f"end {_ENDS[end]} of the emulated link has no interface `data` any more")

    def emulation(self) -> dict[str, Any]:
        """Tell how the emulator has kept up since this was asked last.

        It has if it lost no packet for lack of room and passed 99 % within its limit of lateness. Packets
        that are neither delayed nor lost do not pass its delay line and are not counted.
        """
        report = self._wiring.report()
        names = ("packets", "late_packets", "overflow_packets")
        if report["packets"] is None:  # netem does not tell
            return {"emulation_kept_up": report["kept_up"], "emulation_note": report["reason"]}
        now = {name: int(report[name]) for name in names}
        new = {name: now[name] - self._carried.get(name, 0) for name in names}
        self._carried = now
        late_ratio = new["late_packets"] / new["packets"] if new["packets"] else 0.0
        return {
            "emulation_kept_up": new["overflow_packets"] == 0 and late_ratio <= 0.01,
            "emulation_delayed_packets": new["packets"],
            f"emulation_later_than_{LATE_LIMIT_MS:g}_ms_ratio": late_ratio,
            "emulation_overflow_packets": new["overflow_packets"],
        }


def lacking() -> str | None:
    """Say why no link can be emulated here; None if one can."""
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    missing = shell.missing_tools(["ip", "ethtool", "unshare", *tools("nfqueue")])
    return "; ".join(missing) or None


@contextmanager
def emulated_link(*, seed: int) -> Iterator[EmulatedLink]:
    """Have the link up, doing nothing to packets at first.

    Raises:
        TopologyError: it cannot be made.
    """
    checks.check_root()
    with ExitStack() as stack:
        stack.enter_context(leftovers.lock(PREFIX, wait_s=leftovers.PATIENCE_S))
        state.sweep(PREFIX)
        journal = state.Journal.create(PREFIX)
        stack.callback(state.sweep, PREFIX)
        holders = [_hold_namespace() for _ in _ENDS]
        for holder in holders:
            stack.callback(stop_process, holder)
        pids = tuple(holder.pid for holder in holders)
        journal.add_processes({f"end {name}": pid for name, pid in zip(_ENDS, pids, strict=True)})
        wiring = Wiring(
            PREFIX,
            backend=choose_backend("auto"),
            seed=seed,
            state_dir=journal.directory,
            record=journal.add_process,
        )
        stack.callback(wiring.close)
        wiring.open()
        free = Impairment(rate_bps=_FREE_BPS, delay_s=0.0)
        spec = LinkSpec(
            name="a-b", kind=LinkKind.ACCESS, a="a", b="b", a_port=0, b_port=0, a_to_b=free, b_to_a=free
        )
        wiring.add(spec, *(End(interface="data", namespace_pid=pid) for pid in pids))
        wiring.lay()
        _connect_control(pids)
        for pid, data, control in zip(pids, DATA, CONTROL, strict=True):
            _configure(pid, data, control)
        with on_all_cores():
            wiring.start_emulator()
        yield EmulatedLink(wiring, pids)


def _hold_namespace() -> subprocess.Popen[bytes]:
    """Start a process that does nothing but have a network namespace."""
    own = os.readlink("/proc/self/ns/net")
    command = ["unshare", "--net", "--", "sleep", "infinity"]
    holder = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
        if holder.poll() is not None or time.monotonic() > deadline_s:
            stop_process(holder)
            raise TestbedError("unshare made no network namespace; it needs root and util-linux")
        time.sleep(_LOOK_S)
    return holder


def _connect_control(pids: tuple[int, ...]) -> None:
    line = f"ip link add control type veth peer name control netns {pids[1]}"
    shell.run(_within(pids[0], line))


def _configure(pid: int, data: str, control: str) -> None:
    shell.run(
        _within(
            pid,
            "set -e; for f in all default lo; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done; "
            f"ethtool -K data {NO_OFFLOADS} > /dev/null; "
            f"ip addr add {data}/24 dev data; ip addr add {control}/24 dev control; "
            "for i in lo data control; do ip link set $i up; done",
        )
    )


def _within(pid: int, script: str) -> list[str]:
    return ["nsenter", f"--net=/proc/{pid}/ns/net", "--", "sh", "-c", script]
