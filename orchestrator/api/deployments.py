"""Split deployments, and the list of all runs."""

from __future__ import annotations

from flask import Response
from flask_openapi3 import APIBlueprint, Tag

from orchestrator.api import streams
from orchestrator.api.document import answer
from orchestrator.api.pages import ById, Following, Page, decisions, kept, page, record_json
from orchestrator.api.services import Services
from orchestrator.inference.request import DeploymentRequest
from orchestrator.ports import Json, Record

_TAG = Tag(name="deployments", description="Models served split over the nodes (Koch 2025, Algorithm 1)")


def blueprint(services: Services) -> APIBlueprint:
    """Serve /deployments and /runs."""
    routes = APIBlueprint("deployments", __name__, url_prefix="/api/v1", abp_tags=[_TAG])

    @routes.post(
        "/deployments",
        summary="Place and start a model; embedding and head stay on a trusted node",
        responses=answer(202),
    )
    def deploy(body: DeploymentRequest) -> tuple[Json, int, dict[str, str]]:
        record = services.deployments.deploy(body)
        return _shown(services, record), 202, {"Location": f"/api/v1/deployments/{record.id}"}

    @routes.get("/deployments", summary="List deployments, newest first, those of earlier runs too")
    def list_deployments(query: Page) -> Json:
        records, total = services.store.records(kind="deployment", limit=query.limit, offset=query.offset)
        return page([_shown(services, record) for record in records], total=total, wanted=query)

    @routes.get("/deployments/<id>", summary="Show a deployment and where its layers run")
    def get_deployment(path: ById) -> Json:
        return _shown(services, _deployment(services, path.id))

    @routes.delete("/deployments/<id>", summary="Take a deployment down", responses=answer(202))
    def undeploy(path: ById) -> tuple[Json, int]:
        _deployment(services, path.id)
        return _shown(services, services.deployments.undeploy(path.id)), 202

    @routes.get(
        "/deployments/<id>/decisions", summary="List what was decided, on what, with which alternatives"
    )
    def list_decisions(path: ById, query: Page) -> Json:
        return decisions(services.store, _deployment(services, path.id).id, query)

    @routes.get(
        "/deployments/<id>/events",
        summary="Follow a deployment (server-sent events)",
        responses=answer(content_type=streams.CONTENT_TYPE),
    )
    def events(path: ById, query: Following) -> Response:
        _deployment(services, path.id)
        return streams.events(services.events.follow(path.id, after=query.after))

    @routes.post("/deployments/<id>/preview", summary="Say where it would be placed now; changes nothing")
    def preview(path: ById) -> Json:
        _deployment(services, path.id)
        return services.deployments.preview(path.id)

    @routes.post(
        "/deployments/<id>/migrate", summary="Have the placement reconsidered now", responses=answer(202)
    )
    def migrate(path: ById) -> tuple[Json, int]:
        record = _deployment(services, path.id)
        services.deployments.migrate(path.id)
        return _shown(services, record), 202

    @routes.get("/runs", summary="List jobs and deployments of all runs of the process, newest first")
    def runs(query: Page) -> Json:
        records, total = services.store.records(limit=query.limit, offset=query.offset)
        return page([record_json(record) for record in records], total=total, wanted=query)

    return routes


def _shown(services: Services, record: Record) -> Json:
    live = services.deployments.describe(record.id) if record.id in services.deployments.live() else {}
    return {**record_json(record), **record.summary, **live}


def _deployment(services: Services, deployment: str) -> Record:
    return kept(services.store, "deployment", deployment)
