"""The OpenAPI document and its page."""

from __future__ import annotations

from typing import Any

from flask_openapi3 import Info, OpenAPI

from orchestrator.ports import Json

_DESCRIPTION = """
Lists come in pages (`limit`, `offset`). Errors are RFC 9457 problem documents; under `/v1` they have
OpenAI's shape. Jobs and deployments are accepted at once (202) and followed by `GET` or by their
server-sent events. Ids of nodes, links and runs are those that the lists give.
"""

_PROBLEM: Json = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "const": "about:blank"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what is wrong, with which value, and the way out"},
        "field": {"type": "string", "description": "the field to change"},
        "errors": {
            "type": "array",
            "description": "every field that breaks the schema",
            "items": {
                "type": "object",
                "properties": {"field": {"type": "string"}, "detail": {"type": "string"}},
            },
        },
    },
}
_OPENAI_ERROR: Json = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}

_TO_SWAGGER = '<!doctype html><title>Utopia</title><meta http-equiv="refresh" content="0; url=swagger">'


def answer(status: int = 200, content_type: str = "application/json") -> dict[Any, Any]:
    """Tell the document what a route answers where that is not 200 and JSON."""
    schema = {"type": "object"} if content_type == "application/json" else {"type": "string"}
    return {status: {"content": {content_type: {"schema": schema}}}}


class DocumentedApi(OpenAPI):
    """A Flask application whose OpenAPI document tells its answers and errors as they are."""

    def __init__(self, name: str, *, version: str, **options: Any) -> None:
        """Serve the document at /openapi/openapi.json and the page to read and try it at /openapi."""
        super().__init__(
            name,
            info=Info(title="Utopia orchestrator", version=version, description=_DESCRIPTION),
            operation_id_callback=lambda *, name, path, method: name,
            **options,
        )
        self.config["OPENAPI_HTML_STRING"] = _TO_SWAGGER
        self.config["SWAGGER_CONFIG"] = {"validatorUrl": None, "docExpansion": "list"}

    @property
    def api_doc(self) -> Json:
        """Give the document."""
        document: Json = super().api_doc
        schemas = document["components"]["schemas"]
        schemas.pop("ValidationErrorModel", None)
        schemas |= {"Problem": _PROBLEM, "OpenAiError": _OPENAI_ERROR}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                given = operation["responses"]
                right = {code: what for code, what in given.items() if code.startswith("2")}
                operation["responses"] = {**(right or _described(answer())), "default": _error(path)}
        return document


def _described(responses: dict[Any, Any]) -> Json:
    return {str(code): {"description": "OK", **what} for code, what in responses.items()}


def _error(path: str) -> Json:
    kind, schema = (
        ("application/json", "OpenAiError")
        if path.startswith("/v1/")
        else ("application/problem+json", "Problem")
    )
    return {
        "description": "Refused or failed; the text says why",
        "content": {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }
