"""The OpenAPI 3.1 document, made from the routes: it cannot say anything else than what is served."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from ryu_apps.northbound.routes import Answer, Parameter, Route, Schema

ALWAYS = (400,)
GUARDED = (401,)
WRITING = (401, 403)
"""What any route may refuse with: an unknown parameter, a missing token, and writes where there are none."""
_PROBLEM = Answer(
    summary="Refused", schema={"$ref": "#/components/schemas/Problem"}, media_type="application/problem+json"
)


def make(routes: Iterable[Route], schemas: dict[str, Schema]) -> dict[str, Any]:
    """Return the document."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Utopia northbound API",
            "version": "1",
            "description": "The network as the controller sees and measures it; docs/northbound_api.md",
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.method.lower() + "_" + re.sub(r"\W+", "_", route.path).strip("_"),
        "summary": route.summary,
        "security": [{"token": []}] if route.writes else [{}, {"token": []}],
        "responses": _responses(route),
    }
    parameters = [_parameter(item, "path") for item in route.in_path]
    parameters += [_parameter(item, "query") for item in route.query]
    if parameters:
        operation["parameters"] = parameters
    if route.body is not None:
        content = {route.body_type: {"schema": route.body}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameter(parameter: Parameter, where: str) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": where,
        "required": parameter.required or where == "path",
        "description": parameter.summary,
        "schema": parameter.schema,
    }


def _responses(route: Route) -> dict[str, Any]:
    problems = {*route.problems, *ALWAYS, *(WRITING if route.writes else GUARDED)}
    responses = {str(answer.status): _response(answer.summary, [answer]) for answer in route.answers}
    for status in sorted({*problems, *(refusal.status for refusal in route.refusals)}):
        forms = [refusal for refusal in route.refusals if refusal.status == status]
        forms += [_PROBLEM] if status in problems else []
        responses[str(status)] = _response(HTTPStatus(status).phrase, forms)
    return responses


def _response(summary: str, answers: list[Answer]) -> dict[str, Any]:
    return {
        "description": summary,
        "content": {answer.media_type: {"schema": answer.schema} for answer in answers},
    }
