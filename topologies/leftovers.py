"""Remove testbeds that nobody looks after any more, whoever started them.

A prefix belongs to who holds its lock (`/run/utopia/<prefix>.lock`). What another process holds, or what a
living owner looks after, is left alone.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from topologies import ovs, state
from topologies.errors import CommandError, TestbedError, TopologyError

log = logging.getLogger(__name__)

PATIENCE_S = 20.0
"""How long who must have a prefix waits for who sweeps it; that takes a few seconds."""
_POLL_S = 0.05


class Held(TestbedError):
    """Another process starts or stops this testbed, or looks after it."""


@contextmanager
def lock(prefix: str, *, wait_s: float = 0.0) -> Iterator[None]:
    """Make sure that nobody else looks after this prefix; a process that dies holds no lock.

    Raises:
        Held: somebody else does so still after `wait_s`.
    """
    state.ROOT.mkdir(parents=True, exist_ok=True)
    deadline_s = time.monotonic() + wait_s
    with (state.ROOT / f"{prefix}.lock").open("w") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    raise Held(f"testbed {prefix} is being started or stopped by another process") from None
            time.sleep(_POLL_S)
        yield


def sweep_orphan(prefix: str, *, wait_s: float = 0.0) -> list[str]:
    """Remove what is left of `prefix` if its owner is dead, and return what that was, in words.

    Raises:
        Held: somebody else starts or stops it, also after `wait_s`.
        TopologyError: something cannot be removed.
    """
    with lock(prefix, wait_s=wait_s):
        record = state.read(prefix)
        if record is not None and record.owner.alive():
            return []
        return state.sweep(prefix)


def sweep_orphans(mine: str, tell: Callable[[str], None]) -> None:
    """Remove all testbeds but `mine` whose owner is dead; `tell` what was removed and what cannot be."""
    for prefix in sorted(_remembered() - {mine}):
        try:
            removed = sweep_orphan(prefix)
        except Held as error:
            log.debug("%s", error)
        except (TopologyError, OSError) as error:  # it is somebody else's; this start does not depend on it
            log.exception("removing testbed %s", prefix)
            tell(f"Testbed {prefix}, which nobody looks after, cannot be removed: {error}")
        else:
            if removed:
                tell(f"Removed testbed {prefix}, which nobody looked after: {', '.join(removed)}")


def _remembered() -> set[str]:
    """Return the prefixes that have a record, or bridges: those outlive a restart of the machine."""
    found = set(state.recorded())
    try:
        found |= {prefix for name in ovs.marked_bridges() if (prefix := state.prefix_of(name)) is not None}
    except CommandError as error:
        log.warning("Open vSwitch does not tell its bridges: %s", error)
    return found
