"""Serve REST to many at once, some of whom do nothing or next to nothing.

Ryu starts eventlet's server without a limit of time: connections that say nothing, or send their headers
byte by byte, would pile up until nobody else gets in. Sizes are bounded by eventlet: 8 KiB for a line, 64 KiB
for all headers.
"""

from __future__ import annotations

import logging
from typing import Any

from eventlet import wsgi
from ryu.lib import hub

LOG = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
FIRST_LINE_S = 10.0
"""A connection that asks nothing for so long is closed."""
NEXT_LINE_S = 75.0
HEADERS_S = 10.0
SOCKET_S = 30.0
"""A client that takes, or sends, no byte for so long in the middle of a request is cut off."""


class Protocol(wsgi.HttpProtocol):  # type: ignore[misc]
    """One client's connection, with limits of time for what it has to say."""

    _has_asked = False

    def _read_request_line(self) -> Any:
        limit_s = NEXT_LINE_S if self._has_asked else FIRST_LINE_S
        with hub.Timeout(limit_s, TimeoutError(f"no request within {limit_s:g} s")):
            line = super()._read_request_line()
        self._has_asked = True
        return line

    def parse_request(self) -> Any:
        """Read the headers; TimeoutError closes the connection."""
        with hub.Timeout(HEADERS_S, TimeoutError(f"the headers did not come within {HEADERS_S:g} s")):
            return super().parse_request()


def install() -> None:
    """Have Ryu serve REST this way from now on."""
    hub.WSGIServer.serve_forever = _serve


def _serve(server: Any) -> None:
    wsgi.server(
        server.server,
        server.handle,
        log=logging.getLogger("ryu.lib.hub"),
        max_size=MAX_CONNECTIONS,
        protocol=Protocol,
        socket_timeout=SOCKET_S,
        debug=False,
    )
