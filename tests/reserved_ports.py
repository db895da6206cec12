"""A port that nobody else is given until something listens on it.

To look for a free port and to use it later is a race that is lost now and then: the system gives ports of the
same range to every connection that is made meanwhile.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reserved_port(address: str = "127.0.0.1") -> Iterator[int]:
    """Give a port on which nobody listens, and which a server may listen on and leave again meanwhile.

    A socket that is bound to it and does not listen keeps the system from giving it away, and does not keep
    a server from binding to it, too, that sets SO_REUSEADDR, as all of ours do (socket(7)).
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((address, 0))
        yield int(holder.getsockname()[1])
