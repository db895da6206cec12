"""Enter a host's network namespace, or make a socket there without going: Linux, root.

A socket belongs to the namespace it was made in, and a thread may enter one alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_CLONE_NEWNET = 0x40000000
Made = TypeVar("Made")


def enter(descriptor: int) -> None:
    """Move the calling thread into the network namespace that an open `/proc/<pid>/ns/net` stands for.

    Raises:
        OSError: it cannot be entered.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def make_inside(netns: str | os.PathLike[str], make: Callable[[], Made]) -> Made:
    """Return what `make` makes in the namespace at `netns`, such as a socket; this thread stays where it is.

    Raises:
        OSError: the namespace cannot be entered; and what `make` raises.
    """

    def work() -> Made:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            enter(descriptor)
        finally:
            os.close(descriptor)
        return make()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="make-inside") as executor:
        return executor.submit(work).result()
