"""Make and remove the wires of one network, and run the process that impairs them."""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from topologies import rpc, shell
from topologies.errors import CommandError, EmulationError, TopologyError
from topologies.links import emulator, wires
from topologies.processes import die_with_parent, stop_process, tail
from topologies.rpc import Json
from topologies.specs import Impairment, LinkSpec

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 15.0
_REMOVAL_TIMEOUT_S = 10.0
_REPOSITORY = Path(__file__).resolve().parent.parent
Record = Callable[[str, int], None]
"""Called with name and pid of every process as soon as it has been started."""


def tools(backend: str) -> list[str]:
    """Return the commands that a back end needs."""
    return ["ip", "tc", "nsenter", *(["iptables-legacy-restore"] if backend == "nfqueue" else [])]


def probe_netem() -> bool:
    """Tell whether the kernel has netem, by trying it in a namespace made for that."""
    name = f"utopia-probe-{secrets.token_hex(4)}"
    shell.run(["ip", "netns", "add", name])
    try:
        shell.run(["tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
    except CommandError as error:
        log.info("no netem: %s", error)
        return False
    finally:
        shell.run(["ip", "netns", "del", name])
    return True


def choose_backend(wanted: str) -> str:
    """Return the back end to use: `wanted`, or for `auto` the one that the kernel can do.

    Raises:
        EmulationError: netem is wanted and missing.
    """
    if wanted == "nfqueue":
        return "nfqueue"
    if probe_netem():
        return "netem"
    if wanted == "netem":
        raise EmulationError(
            "links.emulator is netem, which this kernel does not have; use auto or nfqueue, "
            "or load the module (modprobe sch_netem)"
        )
    return "nfqueue"


class Wiring:
    """All wires of one network: `open`, `add` and `lay`, then `start_emulator`; `close` at any time."""

    def __init__(self, prefix: str, *, backend: str, seed: int, state_dir: Path, record: Record) -> None:
        self.backend = backend
        self.namespace = wires.namespace(prefix)
        self._seed = seed
        self._state_dir = state_dir
        self._record = record
        self._links: list[LinkSpec] = []
        self._waiting: list[tuple[LinkSpec, wires.End, wires.End]] = []
        self._ends_here: list[str] = []
        self._opened = False
        self._emulator: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        """Return where the emulator listens."""
        return self._state_dir / "emulator.sock"

    @property
    def log_path(self) -> Path:
        """Return where the emulator logs."""
        return self._state_dir / "logs" / "emulator.log"

    def open(self) -> None:
        """Make the namespace that holds the wires."""
        shell.run(["ip", "netns", "add", self.namespace])
        self._opened = True
        writes = [f"echo {value} > {path}" for path, value in wires.namespace_settings().items()]
        script = "set -e; cd /proc/sys/net; " + "; ".join(writes)
        shell.run(shell.in_namespace(self.namespace, ["sh", "-c", script]))

    def add(self, link: LinkSpec, a: wires.End, b: wires.End) -> None:
        """Plan a wire; `lay` makes it."""
        self._waiting.append((link, a, b))

    def lay(self) -> None:
        """Make all wires planned since the last time, and bring up their ends in this namespace."""
        lines = [line for link, a, b in self._waiting for line in wires.wire_lines(link, a, b)]
        shell.ip_batch(lines, namespace=self.namespace)
        ends = [end for _, a, b in self._waiting for end in (a, b) if end.namespace_pid == os.getpid()]
        self._ends_here += [end.interface for end in ends]
        for end in ends:
            _keep_this_machine_out(end.interface)
        shell.ip_batch([f"link set {end.interface} up" for end in ends])
        self._links += [link for link, _, _ in self._waiting]
        self._waiting.clear()

    def ensure_started(self) -> None:
        """Start the emulator unless it has been."""
        if self._emulator is None:
            self.start_emulator()

    def start_emulator(self) -> None:
        """Impair all wires, and run the emulator.

        Raises:
            TopologyError: it does not come up; the text has the end of its log.
        """
        directions = wires.directions(tuple(self._links))
        for command, text in emulator.setup_commands(self.backend, directions):
            shell.run(shell.in_namespace(self.namespace, command), stdin=text)
        plan = emulator.Plan(backend=self.backend, seed=self._seed, directions=tuple(directions))
        plan_path = self._state_dir / "links.json"
        plan_path.write_text(plan.to_json(), encoding="utf-8")
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        module = [sys.executable, "-m", "topologies.links.emulator"]
        command = [*module, "--plan", str(plan_path), "--socket", str(self.socket)]
        with self.log_path.open("wb") as output:
            self._emulator = subprocess.Popen(
                shell.in_namespace(self.namespace, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=_REPOSITORY,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._record("emulator", self._emulator.pid)
        self._wait_for_emulator()

    def _wait_for_emulator(self) -> None:
        assert self._emulator is not None
        deadline_s = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._emulator.poll() is not None:
                break
            with suppress(TopologyError):
                self.report()
                return
            time.sleep(0.02)
        raise EmulationError(f"the link emulator did not start; its log ends:\n{tail(self.log_path)}")

    def emulator_status(self) -> int | None:
        """Return the exit status of the emulator, None while it runs or before it started."""
        return self._emulator.poll() if self._emulator else None

    def _ended(self, status: int) -> str:
        return (
            f"the link emulator ended with status {status}, so no packet passes any more; see {self.log_path}"
        )

    def change(self, direction: str, values: dict[str, float | int]) -> Impairment:
        """Change what one direction (`h1-g1`) does to packets; what is not in `values` stays.

        Raises:
            TopologyError: there is no such direction, the values are bad or the emulator is gone.
        """
        if (status := self.emulator_status()) is not None:
            raise EmulationError(f"{self._ended(status)}; take the testbed down and start it again")
        answer = rpc.call(self.socket, {"call": "set", "direction": direction, "impairment": values})
        return Impairment(**answer["impairment"])

    def report(self) -> Json:
        """Return the emulator's report (topologies/links/emulator.py); a dead one did not keep up."""
        if (status := self.emulator_status()) is not None:
            return emulator.no_report(self.backend, reason=self._ended(status))
        return rpc.call(self.socket, {"call": "report"}, timeout_s=5.0)

    def close(self) -> None:
        """Stop the emulator and remove the namespace with all that is in it."""
        if self._emulator is not None:
            stop_process(self._emulator)
            self._emulator = None
        if self._opened:
            self._opened = False
            shell.run(["ip", "netns", "del", self.namespace])
            self._wait_for_removal()

    def _wait_for_removal(self) -> None:
        """Wait for the switch ports to vanish: the kernel takes namespaces apart after `del` has returned."""
        deadline_s = time.monotonic() + _REMOVAL_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if not any(Path("/sys/class/net", end).exists() for end in self._ends_here):
                return
            time.sleep(0.01)
        log.warning("switch ports of %s are still there", self.namespace)


def _keep_this_machine_out(interface: str) -> None:
    """Stop this machine's own network stack from speaking on a switch port."""
    Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").write_text("1", encoding="ascii")
    Path(f"/proc/sys/net/ipv4/conf/{interface}/arp_ignore").write_text("8", encoding="ascii")
