"""The token with which a testbed, its tests and its operator write to the testbed's controller.

It lies in the testbed's state directory, readable by root only, and goes with it; the controller is told the
file, so that the token is in no command line and no log.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from topologies import state
from topologies.errors import TestbedError

_NAME = "northbound.token"


def path(prefix: str) -> Path:
    """Return where the token of a testbed lies."""
    return state.directory(prefix) / _NAME


def make(prefix: str) -> Path:
    """Write a new token and return its file."""
    target = path(prefix)
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    return target


def headers(prefix: str) -> dict[str, str]:
    """Return the HTTP headers that let a request write.

    Raises:
        TestbedError: the testbed has no token, most likely because it is not up.
    """
    try:
        token = path(prefix).read_text(encoding="ascii").strip()
    except OSError as error:
        raise TestbedError(
            f"testbed {prefix}: its controller's token {path(prefix)} cannot be read: {error.strerror}; "
            "is it up, with its controller, and are you root?"
        ) from error
    return {"Authorization": f"Bearer {token}"}
