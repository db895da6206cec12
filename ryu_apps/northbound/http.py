"""Read requests and write answers; whatever a client sends wrong becomes one clear BadRequestError."""

from __future__ import annotations

import json
from collections.abc import Collection
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from ryu.app.wsgi import Response

from ryu_apps.errors import BadRequestError, RequestError

MAX_BODY_BYTES = 64 * 1024

Request = Any


def document(content: Any, *, status: int = 200, media_type: str = "application/json") -> Response:
    """Return a JSON answer."""
    body = json.dumps(content, allow_nan=False).encode()
    return Response(body=body, status=status, headerlist=[("Content-Type", media_type)])


def problem(error: RequestError) -> Response:
    """Return the problem document (RFC 9457) of an error."""
    content = {"type": "about:blank", "title": error.title, "status": error.status, "detail": error.detail}
    answer = document(content, status=error.status, media_type="application/problem+json")
    answer.headers.update(error.headers)
    return answer


def check_query(request: Request, known: Collection[str]) -> None:
    """Refuse parameters that a resource does not have, and those given twice."""
    try:
        names = list(request.GET)
    except UnicodeDecodeError as error:
        raise BadRequestError(
            f"the query {request.query_string[:80]!r} is not UTF-8 when decoded; percent-encode it as UTF-8"
        ) from error
    for name in names:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise BadRequestError(f"{request.path} has no parameter {name!r}; {has}")
        if names.count(name) > 1:
            raise BadRequestError(f"{name} is given {names.count(name)} times; give it once")


def path_of(request: Request) -> str:
    """Return the percent-encoded path."""
    try:
        return str(request.path)
    except UnicodeDecodeError as error:
        raise BadRequestError("the path is not UTF-8 when decoded; percent-encode it as UTF-8") from error


def address_parameter(request: Request, name: str) -> str | None:
    """Return the IPv4 address that a query parameter holds, None without it."""
    value = request.GET.get(name)
    if value is None:
        return None
    try:
        return str(IPv4Address(value))
    except AddressValueError as error:
        raise BadRequestError(f"{name} is {value!r}, not an IPv4 address such as 198.18.0.1") from error


def json_body(request: Request, *, such_as: str) -> Any:
    """Return the JSON body of a request; `such_as` shows a right one to who sent a wrong one."""
    length = request.content_length
    if length is None:
        raise BadRequestError(f"the body is missing; send JSON such as {such_as}")
    if length > MAX_BODY_BYTES:
        raise BadRequestError(f"the body has {length} bytes; {MAX_BODY_BYTES} are the most")
    try:
        return json.loads(request.body)
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
