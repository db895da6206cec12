"""A small ALTO client that knows one URI, that of the directory, and is strict about what RFC 7285 demands.

The tests let it read the examples of the RFCs as well as our answers, so that it is no stricter or laxer than
they are.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

Json = dict[str, Any]
Send = Callable[[str, str, Json | None, str | None], tuple[int, str, Json]]
"""(method, URI, body, its media type) to (status, media type, body)."""

PID = re.compile(r"[A-Za-z0-9\-:@_.]{1,64}")
TAG = re.compile(r"[!-~]{1,64}")
RESOURCE_ID = re.compile(r"[A-Za-z0-9\-:@_.]{1,64}")
METRICS = {
    "routingcost", "delay-ow", "delay-rt", "delay-variation", "lossrate", "hopcount", "tput", "bw-residual",
    "bw-available",
}  # fmt: skip
"""The registry of cost metrics: RFC 7285, section 14.2, and RFC 9439, section 6."""
SOURCES = {"nominal", "sla", "estimation"}
CODES = {"E_SYNTAX", "E_MISSING_FIELD", "E_INVALID_FIELD_TYPE", "E_INVALID_FIELD_VALUE"}
SERVICES = {
    "networkmap": "networkmapfilter",
    "costmap": "costmapfilter",
    "endpointcost": "endpointcostparams",
    "endpointprop": "endpointpropparams",
}


class NotAlto(AssertionError):
    """What was read breaks the RFC."""


def need(holds: object, what: str) -> None:
    if not holds:
        raise NotAlto(what)


def read_cost_type(document: Json) -> str:
    """Return the metric (RFC 7285, section 10.7; RFC 9439, section 3.1)."""
    need(document["cost-mode"] in ("numerical", "ordinal"), f"cost mode {document['cost-mode']}")
    metric = document["cost-metric"]
    need(metric in METRICS or metric.startswith("priv:"), f"cost metric {metric} is not registered")
    if "cost-context" in document:
        need(document["cost-context"]["cost-source"] in SOURCES, "cost source")
    need(isinstance(document.get("description", ""), str), "description")
    return str(metric)


def read_directory(document: Json) -> Json:
    """Return the resources by id (RFC 7285, section 9.2)."""
    types, resources = document["meta"]["cost-types"], document["resources"]
    for cost_type in types.values():
        read_cost_type(cost_type)
    default = resources[document["meta"]["default-alto-network-map"]]
    need(default["media-type"] == "application/alto-networkmap+json", "the default network map is none")
    for name, entry in resources.items():
        need(RESOURCE_ID.fullmatch(name), f"resource id {name}")
        kind = re.fullmatch(r"application/alto-(\w+)\+json", entry["media-type"])
        need(kind and kind[1] in SERVICES, f"media type {entry['media-type']}")
        if "accepts" in entry:
            need(entry["accepts"] == f"application/alto-{SERVICES[kind[1]]}+json", f"{name} accepts")
        for used in entry.get("uses", []):
            need(used in resources, f"{name} uses {used}")
        names = entry.get("capabilities", {}).get("cost-type-names", [])
        need(set(names) <= set(types), f"{name} has cost types that are not in meta")
        if kind[1] == "costmap":
            need(entry.get("uses"), f"{name} does not say which network map it uses")
            need(
                "accepts" in entry or len(names) == 1,
                f"{name} is not filtered and has {len(names)} cost types",
            )
    return dict(resources)


def read_vtag(document: Json) -> tuple[str, str]:
    need(RESOURCE_ID.fullmatch(document["resource-id"]) and TAG.fullmatch(document["tag"]), "version tag")
    return document["resource-id"], document["tag"]


def read_network_map(document: Json) -> dict[str, list[Any]]:
    """Return the prefixes by PID (RFC 7285, section 11.2.1.6)."""
    read_vtag(document["meta"]["vtag"])
    found: dict[str, list[Any]] = {}
    for pid, groups in document["network-map"].items():
        need(PID.fullmatch(pid), f"PID {pid}")
        need(set(groups) <= {"ipv4", "ipv6"}, f"address types {set(groups)}")
        found[pid] = [ipaddress.ip_network(prefix) for prefixes in groups.values() for prefix in prefixes]
    everything = [prefix for prefixes in found.values() for prefix in prefixes]
    need(len(everything) == len(set(everything)), "a prefix belongs to two PIDs")
    return found


def read_cost_map(document: Json) -> tuple[str, dict[tuple[str, str], float]]:
    """Return the metric and the costs by pair of PIDs (RFC 7285, section 11.2.3.6)."""
    for vtag in document["meta"]["dependent-vtags"]:
        read_vtag(vtag)
    need(document["meta"]["dependent-vtags"], "no dependent version tag")
    return read_cost_type(document["meta"]["cost-type"]), _costs(document["cost-map"], PID.fullmatch)


def read_endpoint_costs(document: Json) -> tuple[str, dict[tuple[str, str], float]]:
    """Return the metric and the costs by pair of endpoints (RFC 7285, section 11.5.1.6)."""
    need("dependent-vtags" not in document["meta"], "endpoint costs depend on no map")
    costs = _costs(document["endpoint-cost-map"], read_address)
    return read_cost_type(document["meta"]["cost-type"]), costs


def read_endpoint_properties(document: Json) -> dict[str, Json]:
    """Return the properties by endpoint (RFC 7285, section 11.4.1.6)."""
    for vtag in document["meta"].get("dependent-vtags", []):
        read_vtag(vtag)
    for address in document["endpoint-properties"]:
        read_address(address)
    return dict(document["endpoint-properties"])


def read_address(text: str) -> Any:
    kind, _, address = text.partition(":")
    need(kind in ("ipv4", "ipv6"), f"address {text}")
    return ipaddress.ip_address(address)


def read_error(document: Json) -> str:
    """Return the code of an error (RFC 7285, section 8.5.2)."""
    meta = document["meta"]
    need(meta["code"] in CODES, f"code {meta['code']}")
    need(set(meta) <= {"code", "syntax-error", "field", "value"}, f"fields {set(meta)}")
    return str(meta["code"])


def _costs(rows: Json, is_end: Callable[[str], object]) -> dict[tuple[str, str], float]:
    costs = {(src, dst): cost for src, row in rows.items() for dst, cost in row.items()}
    for ends, cost in costs.items():
        need(all(is_end(end) for end in ends), f"ends {ends}")
        need(isinstance(cost, int | float) and not isinstance(cost, bool), f"cost {cost!r} is no number")
        need(cost >= 0, f"cost {cost} is negative")
    return costs


class AltoClient:
    """Finds every service through the directory."""

    def __init__(self, send: Send, directory: str) -> None:
        self._send, self._base = send, directory
        document = self._ask("GET", directory, None, None, "application/alto-directory+json")
        self.resources = read_directory(document)
        self.cost_types: Json = document["meta"]["cost-types"]
        self.default_map: str = document["meta"]["default-alto-network-map"]

    def network_map(self, pids: list[str] | None = None) -> tuple[dict[str, list[Any]], tuple[str, str]]:
        """Return prefixes by PID, and the version tag."""
        query = {"pids": pids}
        document = self._get(self.default_map) if pids is None else self._post("networkmap", query)
        return read_network_map(document), read_vtag(document["meta"]["vtag"])

    def cost_map(self, metric: str) -> tuple[dict[tuple[str, str], float], list[tuple[str, str]]]:
        """Return the unfiltered costs, and the version tags that they depend on."""
        name = next(
            name
            for name, entry in self.resources.items()
            if entry["media-type"] == "application/alto-costmap+json"
            and "accepts" not in entry
            and self._metrics(entry) == [metric]
        )
        document = self._get(name)
        return self._of(metric, read_cost_map(document)), [
            read_vtag(vtag) for vtag in document["meta"]["dependent-vtags"]
        ]

    def filtered_costs(self, metric: str, **query: Any) -> dict[tuple[str, str], float]:
        """Return some costs between PIDs."""
        return self._of(metric, read_cost_map(self._post("costmap", self._query(metric, query))))

    def endpoint_costs(self, metric: str, **query: Any) -> dict[tuple[str, str], float]:
        """Return costs between endpoints."""
        return self._of(metric, read_endpoint_costs(self._post("endpointcost", self._query(metric, query))))

    def pids_of(self, endpoints: list[str]) -> dict[str, Json]:
        """Return the PIDs of endpoints."""
        query = {"properties": [f"{self.default_map}.pid"], "endpoints": endpoints}
        return read_endpoint_properties(self._post("endpointprop", query))

    def refused(self, kind: str, body: Json) -> Json:
        """Send a wrong request; return the error."""
        entry = self._service(kind)
        status, media_type, document = self._send(
            "POST", urljoin(self._base, entry["uri"]), body, entry["accepts"]
        )
        need((status, media_type) == (400, "application/alto-error+json"), f"{status} {media_type}")
        read_error(document)
        return dict(document["meta"])

    def _of(
        self, metric: str, found: tuple[str, dict[tuple[str, str], float]]
    ) -> dict[tuple[str, str], float]:
        need(found[0] == metric, f"asked for {metric}, got {found[0]}")
        return found[1]

    def _metrics(self, entry: Json) -> list[str]:
        return [self.cost_types[name]["cost-metric"] for name in entry["capabilities"]["cost-type-names"]]

    def _query(self, metric: str, query: Json) -> Json:
        known = next(item for item in self.cost_types.values() if item["cost-metric"] == metric)
        return {"cost-type": {name: known[name] for name in ("cost-metric", "cost-mode")}, **query}

    def _service(self, kind: str) -> Json:
        return next(
            entry
            for entry in self.resources.values()
            if entry["media-type"] == f"application/alto-{kind}+json" and "accepts" in entry
        )

    def _get(self, name: str) -> Json:
        entry = self.resources[name]
        return self._ask("GET", urljoin(self._base, entry["uri"]), None, None, entry["media-type"])

    def _post(self, kind: str, body: Json) -> Json:
        entry = self._service(kind)
        uri = urljoin(self._base, entry["uri"])
        return self._ask("POST", uri, body, entry["accepts"], entry["media-type"])

    def _ask(self, method: str, uri: str, body: Json | None, sent: str | None, wanted: str) -> Json:
        status, media_type, document = self._send(method, uri, body, sent)
        need(status == 200 and media_type == wanted, f"{method} {uri}: {status} {media_type} {document}")
        return document
