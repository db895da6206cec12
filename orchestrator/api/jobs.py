"""Fine-tuning jobs."""

from __future__ import annotations

from flask import Response
from flask_openapi3 import APIBlueprint, Tag

from orchestrator.api import streams
from orchestrator.api.document import answer
from orchestrator.api.pages import ById, Following, Page, decisions, epochs, kept, page, record_json
from orchestrator.api.services import Services
from orchestrator.finetune.request import JobRequest
from orchestrator.ports import Json, Record

_TAG = Tag(name="jobs", description="Fine-tuning jobs (Pekel 2025, Algorithm 1)")


def blueprint(services: Services) -> APIBlueprint:
    """Serve /jobs."""
    routes = APIBlueprint("jobs", __name__, url_prefix="/api/v1", abp_tags=[_TAG])

    @routes.post("/jobs", summary="Start a job; one runs at a time", responses=answer(202))
    def submit(body: JobRequest) -> tuple[Json, int, dict[str, str]]:
        record = services.jobs.submit(body)
        return record_json(record), 202, {"Location": f"/api/v1/jobs/{record.id}"}

    @routes.get("/jobs", summary="List jobs, newest first, those of earlier runs of the process too")
    def list_jobs(query: Page) -> Json:
        records, total = services.store.records(kind="job", limit=query.limit, offset=query.offset)
        return page([record_json(record) for record in records], total=total, wanted=query)

    @routes.get("/jobs/<id>", summary="Show a job with its epochs so far")
    def get_job(path: ById) -> Json:
        record = _job(services, path.id)
        return {**record_json(record), "epochs": epochs(services.store, record.id)}

    @routes.delete("/jobs/<id>", summary="Cancel a job", responses=answer(202))
    def cancel(path: ById) -> tuple[Json, int]:
        _job(services, path.id)
        return record_json(services.jobs.cancel(path.id)), 202

    @routes.get("/jobs/<id>/decisions", summary="List what was decided in a job, and why")
    def list_decisions(path: ById, query: Page) -> Json:
        return decisions(services.store, _job(services, path.id).id, query)

    @routes.get(
        "/jobs/<id>/events",
        summary="Follow a job (server-sent events)",
        responses=answer(content_type=streams.CONTENT_TYPE),
    )
    def events(path: ById, query: Following) -> Response:
        _job(services, path.id)
        return streams.events(services.events.follow(path.id, after=query.after))

    return routes


def _job(services: Services, job: str) -> Record:
    return kept(services.store, "job", job)
