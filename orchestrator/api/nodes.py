"""Nodes: inviting, listing, cutting off."""

from __future__ import annotations

from typing import Annotated

from flask_openapi3 import APIBlueprint, Tag
from pydantic import Field

from orchestrator.api.document import answer
from orchestrator.api.pages import Body, ByNode, Page, cut
from orchestrator.api.services import Services
from orchestrator.ports import Json, NodeRecord

_TAG = Tag(name="nodes", description="Nodes and their enrolment")


class Invitation(Body):
    """Whom a token is for, and whether the operator trusts that node with prompts and outputs.

    Without `trusted` a known node stays as it was, and a new one is not trusted.
    """

    node: Annotated[str, Field(min_length=1, max_length=63)]
    trusted: bool | None = None


def blueprint(services: Services) -> APIBlueprint:
    """Serve enrolment tokens and nodes."""
    routes = APIBlueprint("nodes", __name__, url_prefix="/api/v1", abp_tags=[_TAG])

    @routes.post(
        "/enrolment-tokens", summary="Make the one-time token with which a node enrols", responses=answer(201)
    )
    def create_token(body: Invitation) -> tuple[Json, int]:
        token = services.pool.create_token(body.node, trusted=body.trusted)
        return {"node": body.node, "trusted": services.pool.node(body.node).trusted, "token": token}, 201

    @routes.get("/nodes", summary="List every node that was ever invited")
    def list_nodes(query: Page) -> Json:
        return cut(services.pool.nodes(), query, node_json)

    @routes.get("/nodes/<node>", summary="Show one node")
    def get_node(path: ByNode) -> Json:
        return node_json(services.pool.node(path.node))

    @routes.post("/nodes/<node>/revoke", summary="Cut a node off and refuse its certificate from now on")
    def revoke(path: ByNode) -> Json:
        services.pool.revoke(path.node)
        return node_json(services.pool.node(path.node))

    return routes


def node_json(record: NodeRecord) -> Json:
    """Write a node as JSON."""
    return {
        "node": record.node,
        "trusted": record.trusted,
        "enrolled": record.enrolled,
        "alive": record.alive,
        "revoked": record.revoked,
        "reason": record.reason,
        "address": record.address,
        "port": record.port,
        "heartbeat_age_s": record.heartbeat_age_s,
        "attached_at": record.attached_at,
        "cpu_utilisation": record.cpu_utilisation,
        "rss_bytes": record.rss_bytes,
        "free_memory_bytes": record.free_memory_bytes,
        "busy": record.busy,
        "shards": list(record.shards),
        "profile": record.profile,
    }
