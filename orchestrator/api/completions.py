"""The OpenAI-compatible part: models and completions, streamed or whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from flask import Response
from flask_openapi3 import APIBlueprint, Tag
from pydantic import BaseModel, ConfigDict, Field

from orchestrator.api.services import Generation, Services
from orchestrator.errors import InvalidRequest, NotFound, Unavailable
from orchestrator.ports import Json

_TAG = Tag(name="completions", description="OpenAI-compatible")


class CompletionRequest(BaseModel):
    """OpenAI's completion request, as far as it is served."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str, Field(min_length=1, max_length=64, description="a deployment's id")]
    prompt: Annotated[str, Field(min_length=1, max_length=1_000_000)]
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stream: bool = False
    n: int | None = None
    user: str | None = None


def blueprint(services: Services) -> APIBlueprint:
    """Serve /v1."""
    routes = APIBlueprint("completions", __name__, url_prefix="/v1", abp_tags=[_TAG])

    @routes.get("/models", summary="List the deployments that serve")
    def models() -> Json:
        live = set(services.deployments.live())
        records = [services.store.get(deployment) for deployment in sorted(live)]
        return {
            "object": "list",
            "data": [
                {"id": record.id, "object": "model", "created": int(record.created_at), "owned_by": "utopia"}
                for record in records
            ],
        }

    @routes.post("/completions", summary="Complete a prompt; greedy decoding")
    def complete(body: CompletionRequest) -> Response | Json:
        _check(services, body)
        generation = services.deployments.complete(body.model, prompt=body.prompt, max_tokens=body.max_tokens)
        created = int(services.clock.unix_s())
        if body.stream:
            lines = _streamed(generation, body.model, created)
            return Response(lines, content_type="text/event-stream; charset=utf-8")
        return _whole(generation, body.model, created)

    return routes


def _check(services: Services, body: CompletionRequest) -> None:
    if body.temperature:
        raise InvalidRequest(
            f"temperature is {body.temperature:g}; only greedy decoding is served: leave it out or set 0",
            field="temperature",
        )
    if body.n not in (None, 1):
        raise InvalidRequest(f"n is {body.n}; one completion per request is served", field="n")
    live = services.deployments.live()
    if body.model not in live:
        names = ", ".join(live) or "none; POST /api/v1/deployments makes one"
        raise NotFound(f"there is no deployment {body.model!r}; serving: {names}")


def _whole(generation: Generation, model: str, created: int) -> Json:
    text: list[str] = []
    tokens: list[int] = []
    margins: list[float | None] = []
    epochs: list[int] = []
    last: Json = {}
    for chunk in generation.chunks():
        if "finish_reason" in chunk:
            last = chunk
        else:
            text.append(chunk["text"])
            tokens.append(chunk["token"])
            margins.append(chunk.get("margin"))
            epochs.append(chunk["epoch"])
    if last.get("finish_reason") == "error":
        raise Unavailable(f"the completion could not be finished: {last.get('detail')}")
    choice = {"index": 0, "text": "".join(text), "finish_reason": last.get("finish_reason"), "logprobs": None}
    document = _document(generation.request, model, created, choice)
    document["usage"] = {
        "prompt_tokens": generation.prompt_tokens,
        "completion_tokens": len(tokens),
        "total_tokens": generation.prompt_tokens + len(tokens),
    }
    document["utopia"] = {"tokens": tokens, "margins": margins, "epochs": epochs}
    return document


def _streamed(generation: Generation, model: str, created: int) -> Iterator[str]:
    """Give the completion token by token; a reader that vanishes ends it on the nodes, too."""
    finished = False
    try:
        for chunk in generation.chunks():
            finished = "finish_reason" in chunk
            if chunk.get("finish_reason") == "error":
                error = {"message": chunk.get("detail"), "type": "server_error", "param": None, "code": None}
                yield _data({"error": error})
                continue
            choice = {
                "index": 0,
                "text": chunk.get("text", ""),
                "finish_reason": chunk.get("finish_reason"),
                "logprobs": None,
            }
            document = _document(generation.request, model, created, choice)
            if not finished:
                document["utopia"] = {key: value for key, value in chunk.items() if key != "text"}
            yield _data(document)
        yield "data: [DONE]\n\n"
    finally:
        if not finished:
            generation.cancel()


def _document(request: str, model: str, created: int, choice: Json) -> dict[str, Any]:
    return {
        "id": request,
        "object": "text_completion",
        "created": created,
        "model": model,
        "choices": [choice],
    }


def _data(document: Json) -> str:
    return f"data: {json.dumps(document, separators=(',', ':'))}\n\n"
