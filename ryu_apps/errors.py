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
        self.headers: dict[str, str] = {}


class BadRequestError(RequestError):
    """A parameter or body that breaks the contract."""

    status = 400
    title = "Bad Request"


class UnauthorizedError(RequestError):
    """A request that needs the token and does not have it; `error` is a code of RFC 6750, section 3.1."""

    status = 401
    title = "Unauthorized"

    def __init__(self, detail: str, *, error: str | None) -> None:
        super().__init__(detail)
        code = "" if error is None else f', error="{error}"'
        self.headers = {"WWW-Authenticate": f'Bearer realm="utopia northbound"{code}'}


class ForbiddenError(RequestError):
    """A request that nobody may make here."""

    status = 403
    title = "Forbidden"


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
        self.headers = {"Allow": ", ".join(allowed)}


class OverloadedError(RequestError):
    """More concurrent readers than the controller serves."""

    status = 503
    title = "Service Unavailable"


class ConflictError(RequestError):
    """A request that the state of things forbids now."""

    status = 409
    title = "Conflict"
