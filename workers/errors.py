"""The errors of the workers package, one tree.

WorkersError
├── WireError               a frame breaks the wire protocol
│   └── EndOfStream         the peer closed the connection between two frames
├── LinkError               a connection or a request on it failed
│   ├── ConnectFailed       no connection could be made (may pass: try again)
│   ├── IdentityMismatch    the peer is not who it should be (will not pass)
│   ├── ChannelClosed       the channel is closed, or was while a request waited
│   ├── RequestTimeout      the peer did not answer in time
│   └── RemoteError         the peer answered with an error
├── RequestRefused          raised by a handler: becomes an error reply
├── EnrolmentError          no certificate could be had with this token
├── ModelError              a model folder, its configuration or its parameters cannot be used
├── DataError               a text cannot be read or used
└── ConfigError             a worker's configuration cannot be used
"""

from __future__ import annotations


class WorkersError(Exception):
    """Anything that this package raises on purpose."""


class WireError(WorkersError):
    """A frame that breaks a rule of docs/wire_protocol.md, or cannot be put on the wire."""


class EndOfStream(WireError):
    """The peer closed the connection at the boundary of two frames."""


class LinkError(WorkersError):
    """A connection, or a request on it, failed."""


class ConnectFailed(LinkError):
    """No connection could be made: refused, unreachable, timed out or the handshake failed."""


class IdentityMismatch(LinkError):
    """The peer's certificate is not what was asked for; trying again will not help."""


class ChannelClosed(LinkError):
    """The channel is closed; the text says why."""


class RequestTimeout(LinkError):
    """The peer did not answer within the request's time."""


class _Coded(WorkersError):
    """An error with a short code for programs and a detail for people."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class RemoteError(_Coded, LinkError):
    """The peer answered a request with an error: its `code` and `detail`."""


class RequestRefused(_Coded):
    """A handler refuses a request: the requester gets `code` and `detail`."""


class EnrolmentError(WorkersError):
    """The token is malformed, or the orchestrator refused the enrolment."""


class ModelError(WorkersError):
    """A model folder, its configuration or its parameters cannot be used; the text says why."""


class DataError(WorkersError):
    """A text or a folder of texts cannot be read or used; the text names file, line and way out."""


class ConfigError(WorkersError):
    """A worker's configuration cannot be used; the text names key, value and way out."""
