"""The controller's error tree."""

from __future__ import annotations


class ControllerError(Exception):
    """Any error of the controller that a caller may want to tell apart."""


class MalformedPacketError(ControllerError):
    """Bytes that claim to be a packet of some protocol and are not."""


class ForgedProbeError(ControllerError):
    """A probe whose authentication code is not ours."""


class StartError(ControllerError):
    """The controller cannot start; the text names the thing, the value and the way out."""


class RequestError(ControllerError):
    """A northbound request that cannot be served; becomes a problem document (RFC 9457)."""

    status = 500
    title = "Internal Server Error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequestError(RequestError):
    """A parameter or body that breaks the contract."""

    status = 400
    title = "Bad Request"


class NotFoundError(RequestError):
    """A thing that the controller does not know."""

    status = 404
    title = "Not Found"


class MethodNotAllowedError(RequestError):
    """A known resource asked in a way it does not offer."""

    status = 405
    title = "Method Not Allowed"

    def __init__(self, detail: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(detail)
        self.allowed = allowed


class OverloadedError(RequestError):
    """More concurrent readers than the controller serves."""

    status = 503
    title = "Service Unavailable"
