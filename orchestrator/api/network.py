"""The measured network and the nodes' scores on it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from flask_openapi3 import APIBlueprint, Tag
from pydantic import Field, create_model, model_validator

from orchestrator import nodes as node_states
from orchestrator.api.pages import Body, Page, cut, epochs
from orchestrator.api.services import Services
from orchestrator.core.criteria import criteria_now
from orchestrator.core.jsonable import to_json
from orchestrator.core.model import ORCHESTRATOR, PathMetrics
from orchestrator.core.scoring import CRITERIA, Weights, score_nodes
from orchestrator.ports import Json

_TAG = Tag(name="network", description="What the controller measures, joined with the nodes")


class WantedPairs(Page):
    """Which of the pairs of nodes."""

    limit: Annotated[int, Field(ge=1, le=5000)] = 1000
    src: Annotated[str, Field(max_length=63)] | None = None
    dst: Annotated[str, Field(max_length=63)] | None = None


class _Scoring(Body):
    score: Literal["projection", "euclidean", "printed"] = "euclidean"

    @model_validator(mode="after")
    def _weights_are_valid(self) -> Self:
        self.weights()
        return self

    def weights(self) -> Weights:
        """Return the weights of the criteria."""
        return Weights(**{name: getattr(self, name) for name in CRITERIA})


WantedScores = create_model(
    "WantedScores",
    __base__=_Scoring,
    __doc__="How to score: the variant, and the weights of the criteria (they sum to 1).",
    **{name: (float, value) for name, value in asdict(Weights()).items()},  # type: ignore[call-overload]
)


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

    @routes.get(
        "/scores", summary="Each alive node's distance to the utopia point now, criterion by criterion"
    )
    def get_scores(query: WantedScores) -> Json:  # type: ignore[valid-type]
        wanted: Any = query
        states = [node_states.state(record) for record in services.pool.nodes() if record.alive]
        network = services.northbound.network()
        criteria = criteria_now(states, network, round_times(services))
        weights = wanted.weights()
        return {
            "score": wanted.score,
            "weights": to_json(weights),
            "items": [to_json(score) for score in score_nodes(criteria, weights, wanted.score)],
        }

    @routes.get("/network/topology", summary="The controller's topology, as it gave it last")
    def get_topology() -> Json:
        return services.northbound.topology()

    return routes


def round_times(services: Services) -> dict[str, float | None]:
    """Give each alive node's last round time, of the newest job since it attached that has any.

    Times of before are another process's: the device behind the name may have changed.
    """
    attached = {node.node: node.attached_at for node in services.pool.nodes() if node.alive}
    records, _ = services.store.records(kind="job", limit=20, offset=0)
    for record in records:
        times: dict[str, float | None] = {}
        for report in epochs(services.store, record.id):
            times |= report["node_round_s"]
        known = {node: time for node, time in times.items() if _since(attached.get(node), record.created_at)}
        if known:
            return known
    return {}


def _since(attached_at: float | None, at: float) -> bool:
    return attached_at is not None and at >= attached_at


def path_json(path: PathMetrics) -> Json:
    """Write a path with its measurements as JSON."""
    document = to_json(path)
    assert isinstance(document, dict)
    return document
