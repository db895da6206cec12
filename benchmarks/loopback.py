"""Running a program where there is no network but `lo`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

_WITH_LO = 'ip link set lo up && exec "$0" "$@"'


def alone(command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` in a network namespace of its own, in which only `lo` is up.

    Raises:
        RuntimeError: a tool for that is not on this machine.
    """
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2")):
        if shutil.which(tool) is None:
            raise RuntimeError(f"{tool} ({package}) is needed for a network namespace")
    as_user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *as_user, "--net", "--", "sh", "-c", _WITH_LO, *command]
