"""Whether the process lives, is ready, and how it is doing."""

from __future__ import annotations

from collections.abc import Iterable

from flask import Response
from flask_openapi3 import APIBlueprint, Tag
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from orchestrator.api.document import answer
from orchestrator.api.services import Services
from orchestrator.ports import Json, NodeRecord, RecordKind

_TAG = Tag(name="health", description="Liveness, readiness and metrics")


def blueprint(services: Services, registry: CollectorRegistry) -> APIBlueprint:
    """Serve /healthz, /readyz, and /metrics with what is registered."""
    routes = APIBlueprint("health", __name__, abp_tags=[_TAG])
    registry.register(_Collector(services))

    @routes.get("/healthz", summary="Is the process alive?")
    def healthz() -> Json:
        return {"status": "ok"}

    @routes.get("/readyz", summary="Can it work? 503 with the reasons if not")
    def readyz() -> tuple[Json, int]:
        checks = {"workers": services.pool.ready(), "store": services.store.ready()}
        ready = not any(checks.values())
        northbound = services.northbound.status()
        answer = {
            "ready": ready,
            "checks": {name: {"ok": reason is None, "reason": reason} for name, reason in checks.items()},
            "northbound": {
                "url": northbound.url,
                "reachable": northbound.reachable,
                "age_s": northbound.age_s,
                "reason": northbound.reason,
            },
        }
        return answer, 200 if ready else 503

    @routes.get(
        "/metrics", summary="Metrics in Prometheus' text format", responses=answer(content_type="text/plain")
    )
    def metrics() -> Response:
        return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

    return routes


class _Collector:
    """Reads the figures at the moment they are asked for."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterable[Metric]:
        """Give every metric as it is now."""
        nodes = self._services.pool.nodes()
        yield _gauge("utopia_nodes", "Nodes that were ever invited", len(nodes))
        yield _gauge("utopia_nodes_alive", "Nodes that are attached now", sum(node.alive for node in nodes))
        northbound = self._services.northbound.status()
        yield _gauge("utopia_northbound_reachable", "Whether the controller answers", northbound.reachable)
        if northbound.age_s is not None:
            yield _gauge("utopia_northbound_age_seconds", "Age of the measurements", northbound.age_s)
        kinds: tuple[RecordKind, ...] = ("job", "deployment")
        for kind in kinds:
            yield self._records(kind)
        yield from _caches(nodes)
        tokens = CounterMetricFamily("utopia_generated_tokens", "Tokens generated since the start")
        tokens.add_metric([], self._services.deployments.tokens_generated())
        yield tokens
        decisions = CounterMetricFamily("utopia_decisions", "Decisions on record")
        decisions.add_metric([], self._services.store.count_entries("decision"))
        yield decisions

    def _records(self, kind: RecordKind) -> Metric:
        family = GaugeMetricFamily(f"utopia_{kind}s", f"Records of {kind}s by state", labels=["state"])
        for state, count in self._services.store.count_records(kind).items():
            family.add_metric([state], count)
        return family


def _caches(nodes: Iterable[NodeRecord]) -> Iterable[Metric]:
    """Give what keys and values take, as far as the nodes say."""
    used = GaugeMetricFamily(
        "utopia_kv_cache_bytes",
        "What keys and values of running requests take",
        labels=["node", "deployment"],
    )
    usage = GaugeMetricFamily(
        "utopia_kv_cache_usage_ratio", "Share of the memory for keys and values in use", labels=["node"]
    )
    limit = GaugeMetricFamily(
        "utopia_kv_cache_limit_bytes",
        "The most that keys and values of a deployment may take of a node, where that is limited",
        labels=["node", "deployment"],
    )
    waiting = GaugeMetricFamily(
        "utopia_requests_waiting_for_kv_cache",
        "Requests that were put back until there is room for their keys and values",
        labels=["node", "deployment"],
    )
    put_back = CounterMetricFamily(
        "utopia_requests_put_back", "How often a request was put back so", labels=["node", "deployment"]
    )
    for node in nodes:
        for deployment, size_bytes in node.cache_bytes.items():
            used.add_metric([node.node, deployment], size_bytes)
        told = (limit, node.cache_limit_bytes), (waiting, node.requests_waiting)
        for family, values in (*told, (put_back, node.requests_put_back)):
            for deployment, value in values.items():
                family.add_metric([node.node, deployment], value)
        taken = sum(node.cache_bytes.values())
        if node.alive and node.cache_free_bytes is not None and taken + node.cache_free_bytes > 0:
            usage.add_metric([node.node], taken / (taken + node.cache_free_bytes))
    yield from (used, usage, limit, waiting, put_back)


def _gauge(name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], float(value))
    return family
