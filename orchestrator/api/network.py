"""The measured network and the nodes' scores on it."""

from __future__ import annotations

from typing import Annotated

from flask_openapi3 import APIBlueprint, Tag
from pydantic import Field

from orchestrator.api.pages import Page, cut
from orchestrator.api.services import Services
from orchestrator.core.jsonable import to_json
from orchestrator.core.model import ORCHESTRATOR, PathMetrics
from orchestrator.ports import Json

_TAG = Tag(name="network", description="What the controller measures, joined with the nodes")


class WantedPairs(Page):
    """Which of the pairs of nodes."""

    limit: Annotated[int, Field(ge=1, le=5000)] = 1000
    src: Annotated[str, Field(max_length=63)] | None = None
    dst: Annotated[str, Field(max_length=63)] | None = None


def blueprint(services: Services) -> APIBlueprint:
    """Serve /network."""
    routes = APIBlueprint("network", __name__, url_prefix="/api/v1", abp_tags=[_TAG])

    @routes.get("/network", summary="Measured paths: of each node to and from the orchestrator, and of pairs")
    def get_network(query: WantedPairs) -> Json:
        network = services.northbound.network()
        nodes = [record for record in services.pool.nodes() if record.alive]
        pairs = [
            path
            for (src, dst), path in sorted(network.paths.items())
            if ORCHESTRATOR not in (src, dst) and query.src in (None, src) and query.dst in (None, dst)
        ]
        return {
            "generated_at": services.clock.unix_s(),
            "northbound": to_json(services.northbound.status()),
            "nodes": [
                {
                    "node": record.node,
                    "address": record.address,
                    "from_orchestrator": path_json(network.path(ORCHESTRATOR, record.node)),
                    "to_orchestrator": path_json(network.path(record.node, ORCHESTRATOR)),
                }
                for record in nodes
            ],
            "pairs": cut(pairs, query, path_json),
        }

    @routes.get("/network/topology", summary="The controller's topology, as it gave it last")
    def get_topology() -> Json:
        return services.northbound.topology()

    return routes


def path_json(path: PathMetrics) -> Json:
    """Write a path with its measurements as JSON."""
    document = to_json(path)
    assert isinstance(document, dict)
    return document
