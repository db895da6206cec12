"""Take down what a killed supervisor leaves: wait for its end, and remove its testbed.

`python -m topologies.guard PREFIX DESCRIPTOR` waits for the process behind an inherited pidfd. One that took
everything down itself has ended this process before, or left no record. A lock that somebody else holds means
that there is somebody to remove what is left. While this process waits it costs a bare interpreter: what the
removal needs is imported only then.
"""

from __future__ import annotations

import os
import select
import sys


def main() -> None:
    """Run from the command line; see the module's text."""
    prefix, descriptor = sys.argv[1], int(sys.argv[2])
    _wait_for_end(descriptor)
    _sweep(prefix)


def _wait_for_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    os.close(pidfd)


def _sweep(prefix: str) -> None:
    import logging

    from topologies import leftovers

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log = logging.getLogger(__name__)
    try:
        removed = leftovers.sweep_orphan(prefix, wait_s=leftovers.PATIENCE_S)
    except leftovers.Held as error:
        log.info("nothing to do: %s", error)
    else:
        log.info("removed what the supervisor left: %s", ", ".join(removed) or "nothing")


if __name__ == "__main__":
    main()
