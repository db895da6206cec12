"""Errors as answers: RFC 9457 problem documents, and OpenAI's shape under /v1."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, json, make_response, request
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException

from orchestrator import errors
from orchestrator.core.errors import CoreError, Infeasible

log = logging.getLogger(__name__)

_RETRY_AFTER_S = "1"

_STATUS: tuple[tuple[type[Exception], HTTPStatus], ...] = (
    (errors.ImpossibleRequest, HTTPStatus.UNPROCESSABLE_ENTITY),
    (errors.InvalidRequest, HTTPStatus.BAD_REQUEST),
    (errors.ModelError, HTTPStatus.BAD_REQUEST),
    (errors.NotFound, HTTPStatus.NOT_FOUND),
    (errors.Conflict, HTTPStatus.CONFLICT),
    (Infeasible, HTTPStatus.CONFLICT),
    (errors.Unavailable, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.NorthboundError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (errors.WorkerTimeout, HTTPStatus.GATEWAY_TIMEOUT),
    (errors.WorkerError, HTTPStatus.BAD_GATEWAY),
    (CoreError, HTTPStatus.BAD_REQUEST),
)


def register(app: Flask) -> None:
    """Make every error that leaves a route a document of the right kind."""
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(Exception, _any)


def invalid_body(error: ValidationError) -> Response:
    """Answer a request whose path, query or body breaks its schema: 400, naming each field."""
    items = [_invalid_field(dict(item)) for item in error.errors()]
    detail = "; ".join(f"{item['field']}: {item['detail']}" for item in items)
    field = items[0]["field"] if items else None
    return problem(HTTPStatus.BAD_REQUEST, detail, field=field, errors=items)


def problem(status: HTTPStatus, detail: str, *, field: str | None = None, **extra: Any) -> Response:
    """Make the error document for the path that was asked."""
    if request.path.startswith("/v1/"):
        return _openai(status, detail, field)
    document = {"type": "about:blank", "title": status.phrase, "status": status.value, "detail": detail}
    if field is not None:
        document["field"] = field
    response = make_response(json.dumps(document | extra), status.value)
    response.content_type = "application/problem+json"
    return response


def _openai(status: HTTPStatus, detail: str, field: str | None) -> Response:
    kind = "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"
    code = status.phrase.lower().replace(" ", "_")
    document = {"error": {"message": detail, "type": kind, "param": field, "code": code}}
    response = make_response(json.dumps(document), status.value)
    response.content_type = "application/json"
    return response


def _http(error: HTTPException) -> Response:
    if error.response is not None:
        return error.response  # type: ignore[return-value]
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    detail = error.description or status.description
    if status == HTTPStatus.NOT_FOUND and request.url_rule is None:
        detail = f"there is no {request.path}; /openapi/openapi.json lists what there is"
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(set(getattr(error, "valid_methods", None) or ()) - {"OPTIONS", "HEAD"}))
        detail = f"{request.path} does not take {request.method}; it takes {allowed}"
    response = problem(status, detail)
    response.headers.extend([header for header in error.get_headers() if header[0] == "Allow"])
    return response


def _any(error: Exception) -> Response:
    for kind, status in _STATUS:
        if isinstance(error, kind):
            response = problem(status, str(error), field=getattr(error, "field", None))
            if kind is errors.Unavailable:  # being made ready, or busy: clients that try again heed this
                response.headers["Retry-After"] = _RETRY_AFTER_S
            return response
    log.error("%s %s failed", request.method, request.path, exc_info=error)
    return problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        f"{type(error).__name__} while answering; the orchestrator's log has the rest",
    )


def _invalid_field(item: dict[str, Any]) -> dict[str, str]:
    field = ".".join(str(part) for part in item["loc"]) or (
        "(query)" if request.method == "GET" else "(body)"
    )
    if item["type"] == "extra_forbidden":
        return {"field": field, "detail": "unknown key; /openapi/openapi.json lists the known ones"}
    if item["type"] == "missing":
        return {"field": field, "detail": "is missing"}
    if item["type"] == "value_error":
        return {"field": field, "detail": str(item["ctx"]["error"])}
    value = repr(item["input"])
    value = value if len(value) <= 80 else f"{value[:77]}..."
    return {"field": field, "detail": f"{value}: {item['msg'][0].lower()}{item['msg'][1:]}"}
