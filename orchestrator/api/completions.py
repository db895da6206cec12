"""The OpenAI-compatible part: models, completions and chats, streamed or whole."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Response, request
from flask_openapi3 import APIBlueprint, Tag

from orchestrator.api.openai_answers import Answering, ChatShape, Shape, TextShape
from orchestrator.api.openai_requests import MOST_ANSWERS, Asking, ChatRequest, CompletionRequest
from orchestrator.api.pages import ById
from orchestrator.api.services import Services
from orchestrator.api.serving_metrics import ServingMetrics
from orchestrator.errors import InvalidRequest, NotFound
from orchestrator.inference.asking import Asked
from orchestrator.ports import Json

_TAG = Tag(name="completions", description="OpenAI-compatible")


def blueprint(services: Services, metrics: ServingMetrics) -> APIBlueprint:
    """Serve /v1."""
    routes = APIBlueprint("completions", __name__, url_prefix="/v1", abp_tags=[_TAG])

    @routes.get("/models", summary="List what serves: deployments by id, and the names that they share")
    def models() -> Json:
        serving = services.deployments.models()
        return {"object": "list", "data": [_model(services, name, serving[name]) for name in sorted(serving)]}

    @routes.get("/models/<id>", summary="Show one of them")
    def model(path: ById) -> Json:
        return _model(services, path.id, _check_model(services, path.id))

    @routes.post("/completions", summary="Continue a text")
    def complete(body: CompletionRequest) -> Response | Json:
        _check_model(services, body.model)
        return _answer(services, metrics, body, body.asked(), TextShape())

    @routes.post("/chat/completions", summary="Answer a conversation, written by the model's chat template")
    def chat(body: ChatRequest) -> Response | Json:
        _check_model(services, body.model)
        messages = [message.plain() for message in body.messages]
        prompt = services.deployments.chat_prompt(body.model, messages)
        return _answer(services, metrics, body, body.asked(prompt), ChatShape())

    return routes


def _model(services: Services, name: str, deployments: Sequence[str]) -> Json:
    created = min(services.store.get(deployment).created_at for deployment in deployments)
    return {
        "id": name,
        "object": "model",
        "created": int(created),
        "owned_by": "utopia",
        "utopia": {"deployments": list(deployments)},
    }


def _check_model(services: Services, model: str) -> Sequence[str]:
    """Return the deployments of that name; raises NotFound where there is none."""
    serving = services.deployments.models()
    if model not in serving:
        names = ", ".join(serving) or "none; POST /api/v1/deployments makes one"
        raise NotFound(f"there is no deployment {model!r}; serving: {names}")
    return serving[model]


def _answer(
    services: Services, metrics: ServingMetrics, body: Asking, asked: Sequence[Asked], shape: Shape
) -> Response | Json:
    if len(asked) > MOST_ANSWERS:
        raise InvalidRequest(
            f"{len(asked)} answers are asked for; a request may have {MOST_ANSWERS}", field="n"
        )
    completion = metrics.started(
        body.model, lambda: services.deployments.complete(body.model, asked), choices=body.choices
    )
    answering = Answering(
        completion=completion,
        shape=shape,
        model=body.model,
        created=int(services.clock.unix_s()),
        choices=body.choices,
    )
    if not body.stream:
        return answering.whole(gone=request.environ.get("waitress.client_disconnected", lambda: False))
    events = answering.streamed(usage=body.tells_usage)
    return Response(events, content_type="text/event-stream; charset=utf-8")
