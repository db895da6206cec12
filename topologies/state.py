"""Remember what was started under a prefix, and remove it, also when whoever started it is gone.

`/run/utopia/<prefix>/state.json` names the owner (the process that looks after the network) and every other
process; it is written before or as each thing is made. Bridges, interfaces and the namespace are found by
their names, which only this package gives. Nothing else is touched.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from topologies import ovs, shell
from topologies.errors import CommandError, TestbedError
from topologies.links import wires
from topologies.processes import Process, identify, stop_all

log = logging.getLogger(__name__)

ROOT = Path("/run/utopia")
GUARD = "guard"
"""The process that takes over when the owner is killed: it goes last."""
_STATE = "state.json"
_KEPT = ("logs", "orchestrator")
"""What stays in the directory when all is down: logs, and the orchestrator's records."""


def directory(prefix: str) -> Path:
    """Return the directory of the network called `prefix`."""
    return ROOT / prefix


def make_directory(path: Path) -> None:
    """Make a directory that only this user may read; one that is there is kept.

    Raises:
        TestbedError: it cannot be had; the text names it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise TestbedError(
            f"the directory {path} cannot be made: {error.strerror}; what is in its way must go, "
            "and the disk must be writable"
        ) from error


class Journal:
    """The record of one network. Only its owner writes it."""

    def __init__(self, prefix: str, owner: Process) -> None:
        self.directory = directory(prefix)
        self.prefix = prefix
        self._owner = owner
        self._processes: list[Process] = []
        self._status: dict[str, Any] = {}

    @classmethod
    def create(cls, prefix: str) -> Journal:
        """Begin a record that this process owns.

        Raises:
            TestbedError: another owner lives.
        """
        have = read(prefix)
        if have and have.owner.alive() and have.owner.pid != os.getpid():
            raise TestbedError(
                f"network {prefix!r} is up already (process {have.owner.pid}); take it down first, "
                "or choose another network.prefix"
            )
        owner = identify("supervisor", os.getpid())
        assert owner is not None
        journal = cls(prefix, owner)
        make_directory(journal.directory / "logs")
        journal._write()
        return journal

    def add_process(self, name: str, pid: int) -> None:
        """Record a process that was just started; one that is gone already needs no record."""
        process = identify(name, pid)
        if process is not None:
            self._processes.append(process)
            self._write()

    def add_processes(self, pids: dict[str, int]) -> None:
        """Record several processes that were just started."""
        found = [identify(name, pid) for name, pid in pids.items()]
        self._processes += [process for process in found if process is not None]
        self._write()

    def pids(self) -> dict[str, int]:
        """Return the recorded processes by name."""
        return {process.name: process.pid for process in self._processes}

    def set_status(self, status: dict[str, Any]) -> None:
        """Keep what the network is, for those who ask when its owner is gone."""
        self._status = status
        self._write()

    def _write(self) -> None:
        document = {
            "prefix": self.prefix,
            "boot": _boot_id(),
            "owner": asdict(self._owner),
            "processes": [asdict(process) for process in self._processes],
            "status": self._status,
        }
        path = self.directory / _STATE
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(document), encoding="utf-8")
        temporary.replace(path)


class Record:
    """What a journal says, as read by others."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.owner = Process(**document["owner"])
        self.processes = [Process(**item) for item in document["processes"]]
        self.status: dict[str, Any] = document["status"]


def read(prefix: str) -> Record | None:
    """Read the record of `prefix`; None if there is none of this boot."""
    path = directory(prefix) / _STATE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["boot"] != _boot_id():
            return None
        return Record(document)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TestbedError(f"{path} cannot be read ({error}); remove it and try again") from error


def recorded() -> list[str]:
    """List the prefixes that have a record, of whatever boot."""
    return [path.parent.name for path in ROOT.glob(f"*/{_STATE}")]


def inventory(prefix: str) -> list[str]:
    """List, in words, what there is of `prefix`: processes, bridges, namespace, interfaces."""
    record = read(prefix)
    known = [] if record is None else [record.owner, *record.processes]
    found = [f"process {item.name} ({item.pid})" for item in known if item.alive()]
    bridges = _our_bridges(prefix)
    found += [f"bridge {name}" for name in bridges]
    if Path("/run/netns", wires.namespace(prefix)).exists():
        found.append(f"namespace {wires.namespace(prefix)}")
    ports = [name for name in interfaces() if _is_ours(prefix, name) and name not in bridges]
    return found + [f"interface {name}" for name in ports]


def _our_bridges(prefix: str) -> list[str]:
    try:
        return [name for name in ovs.bridges(prefix) if _is_ours(prefix, name)]
    except CommandError as error:
        log.debug("Open vSwitch does not answer, so it has no bridges: %s", error)
        return []


def sweep(prefix: str) -> list[str]:
    """Remove everything that is left of `prefix` and return what that was, in words.

    The owner must be gone, or be this process.
    """
    record = read(prefix)
    others = [] if record is None else [item for item in record.processes if item.pid != os.getpid()]
    removed = _stop(item for item in others if item.name != GUARD)
    removed += _remove_bridges(prefix)
    removed += _remove_namespace(prefix)
    removed += _remove_interfaces(prefix)
    removed += _stop(item for item in others if item.name == GUARD)
    _tidy(directory(prefix))
    return removed


def _stop(processes: Iterable[Process]) -> list[str]:
    return [f"process {item.name} ({item.pid})" for item in stop_all(processes)]


def _remove_bridges(prefix: str) -> list[str]:
    names = _our_bridges(prefix)
    ovs.delete_bridges(names)
    return [f"bridge {name}" for name in names]


def _remove_namespace(prefix: str) -> list[str]:
    name = wires.namespace(prefix)
    if not Path("/run/netns", name).exists():
        return []
    shell.run(["ip", "netns", "del", name])
    return [f"namespace {name}"]


def _remove_interfaces(prefix: str) -> list[str]:
    """Remove switch ports that are left; most go with the namespace of their other ends, a bit later."""
    names = [name for name in interfaces() if _is_ours(prefix, name)]
    removed = []
    for name in names:
        try:
            shell.run(["ip", "link", "del", name])
            removed.append(f"interface {name}")
        except CommandError as error:
            log.debug("%s went by itself: %s", name, error)
    return removed


def interfaces() -> list[str]:
    """List the network interfaces of this namespace."""
    return os.listdir("/sys/class/net")


def _is_ours(prefix: str, name: str) -> bool:
    return prefix_of(name) == prefix


def prefix_of(name: str) -> str | None:
    """Return the prefix in a name that this package gave (`ut-c1`, `ut-g12`, `ut-g12.3`), None in others."""
    found = re.fullmatch(r"([a-z][a-z0-9]*)-[cg]\d+(\.\d+)?", name)
    return found and found[1]


def _tidy(path: Path) -> None:
    if not path.exists():
        return
    for item in path.iterdir():
        if item.name in _KEPT:
            continue
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
