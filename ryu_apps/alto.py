"""ALTO (RFC 7285) with the performance metrics of RFC 9439: maps, filters and errors; pure.

The network map has one PID per edge switch, with its hosts. Costs are those of the paths that traffic takes
now; one that is not known is left out of its map (RFC 7285, section 11.2.3.6).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ryu_apps.errors import RequestError

NETWORK_MAP = "network-map"
PID_PROPERTY = f"{NETWORK_MAP}.pid"
NUMERICAL = "numerical"
ESTIMATION = {"cost-source": "estimation"}
"""RFC 9439, section 3.1: the values come from measurements, not from a plan or a promise."""
MAX_PAIRS = 4000
"""So many paths are looked at for one map at most; see `sample`."""

Json = dict[str, Any]
Pids = dict[str, list[str]]
Costs = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostType:
    """A cost metric in numerical mode: which value of a path it is, and times what."""

    metric: str
    path_value: str
    factor: float
    description: str

    def as_json(self) -> Json:
        """Return the CostType object (RFC 7285, section 10.7; RFC 9439, section 3.1)."""
        context = {} if self.metric == "routingcost" else {"cost-context": ESTIMATION}
        return {
            "cost-metric": self.metric,
            "cost-mode": NUMERICAL,
            **context,
            "description": self.description,
        }

    def cost(self, path: Json) -> float | None:
        """Return the cost of a path as the northbound API shows it."""
        value = path[self.path_value]["value"]
        return None if value is None else value * self.factor


COST_TYPES = {
    cost_type.metric: cost_type
    for cost_type in (
        CostType(
            metric="routingcost",
            path_value="delay_s",
            factor=1e3,
            description="what forwarding keeps small: one-way delay, in milliseconds",
        ),
        CostType(
            metric="delay-ow",
            path_value="delay_s",
            factor=1e6,
            description="one-way delay of small packets, smoothed, in microseconds",
        ),
        CostType(
            metric="delay-variation",
            path_value="jitter_s",
            factor=1e6,
            description="variation of the one-way delay, smoothed, in microseconds",
        ),
        CostType(
            metric="lossrate", path_value="loss_ratio", factor=100.0, description="packets lost, in percent"
        ),
        CostType(
            metric="bw-residual",
            path_value="capacity_bps",
            factor=1 / 8,
            description="capacity of the narrowest link (nothing is reserved), in bytes per second",
        ),
        CostType(
            metric="bw-available",
            path_value="available_bps",
            factor=1 / 8,
            description="smallest unused capacity of a link on the path, in bytes per second",
        ),
    )
}
"""By metric. Units are those of RFC 9439, sections 4 and 5."""


class AltoError(RequestError):
    """A request that breaks RFC 7285; becomes an ALTO error document (section 8.5)."""

    status = 400
    title = "Bad Request"

    def __init__(self, code: str, **more: str) -> None:
        super().__init__(", ".join([code, *more.values()]))
        self.document = {"meta": {"code": code, **{key.replace("_", "-"): more[key] for key in more}}}


# --- what may be asked for

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "gt": operator.gt,
    "lt": operator.lt,
    "ge": operator.ge,
    "le": operator.le,
    "eq": operator.eq,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CostQuery:
    """A request for costs: which, between what, and which values to leave out."""

    cost_type: CostType
    srcs: tuple[str, ...]
    dsts: tuple[str, ...]
    constraints: tuple[tuple[str, float], ...]

    def allows(self, cost: float) -> bool:
        """Tell whether a cost meets all constraints (RFC 7285, section 11.3.2.3)."""
        return all(OPERATORS[name](cost, limit) for name, limit in self.constraints)


# --- maps


def pids(hosts: Iterable[tuple[str, str]]) -> Pids:
    """Group hosts, given as (address, id of the edge switch), by PID."""
    groups: Pids = {}
    for address, switch in hosts:
        groups.setdefault(f"switch-{switch}", []).append(address)
    return {pid: sorted(groups[pid], key=ipaddress.ip_address) for pid in sorted(groups)}


def tag(groups: Pids) -> str:
    """Return the version tag of a network map: another one exactly when the map is another one."""
    return hashlib.sha256(json.dumps(groups, sort_keys=True).encode()).hexdigest()


def network_map(groups: Pids, shown: Iterable[str], *, ipv4: bool = True) -> Json:
    """Return the network map document, or the part of it with the PIDs that are `shown`."""
    return {
        "meta": {"vtag": {"resource-id": NETWORK_MAP, "tag": tag(groups)}},
        NETWORK_MAP: {
            pid: {"ipv4": [f"{address}/32" for address in groups[pid]]} if ipv4 else {} for pid in shown
        },
    }


def sample(groups: Pids) -> Pids:
    """Return so many hosts of each PID (the lowest addresses) that there are at most MAX_PAIRS pairs.

    With more PIDs than that allows, one host stands for each.
    """
    each = max(1, math.isqrt(MAX_PAIRS) // max(1, len(groups)))
    return {pid: hosts[:each] for pid, hosts in groups.items()}


def between(groups: Pids, srcs: Iterable[str], dsts: Iterable[str]) -> list[tuple[str, str]]:
    """Return the pairs of different hosts between PIDs."""
    targets = [host for pid in dsts for host in groups[pid]]
    return [(one, other) for pid in srcs for one in groups[pid] for other in targets if one != other]


def cost_map(
    groups: Pids, sampled: Pids, costs: Costs, cost_type: CostType, query: CostQuery | None = None
) -> Json:
    """Return the cost map document: the median over the pairs of hosts between two PIDs."""
    srcs = groups if query is None else query.srcs
    dsts = groups if query is None else query.dsts
    found: dict[str, dict[str, float]] = {}
    for src in srcs:
        row = {}
        for dst in dsts:
            known = [costs[pair] for pair in between(sampled, [src], [dst]) if pair in costs]
            if known and (query is None or query.allows(median(known))):
                row[dst] = median(known)
        if row:
            found[src] = row
    meta = {
        "dependent-vtags": [{"resource-id": NETWORK_MAP, "tag": tag(groups)}],
        "cost-type": cost_type.as_json(),
    }
    return {"meta": meta, "cost-map": found}


def endpoint_cost_map(costs: Costs, query: CostQuery) -> Json:
    """Return the answer of the endpoint cost service (RFC 7285, section 11.5.1.6)."""
    found: dict[str, dict[str, float]] = {}
    for (src, dst), cost in costs.items():
        if query.allows(cost):
            found.setdefault(f"ipv4:{src}", {})[f"ipv4:{dst}"] = cost
    return {"meta": {"cost-type": query.cost_type.as_json()}, "endpoint-cost-map": found}


def endpoint_properties(groups: Pids, addresses: Iterable[str]) -> Json:
    """Return the PID of each endpoint that has one (RFC 7285, section 11.4.1.6)."""
    pid_of = {f"ipv4:{host}": pid for pid, hosts in groups.items() for host in hosts}
    return {
        "meta": {"dependent-vtags": [{"resource-id": NETWORK_MAP, "tag": tag(groups)}]},
        "endpoint-properties": {
            address: {PID_PROPERTY: pid_of[address]} for address in addresses if address in pid_of
        },
    }


# --- directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Resource:
    """An entry of the directory (RFC 7285, section 9.2.2); `uri` is relative to the directory's."""

    name: str
    uri: str
    media_type: str
    accepts: str | None = None
    capabilities: Json | None = None
    uses: Sequence[str] = ()

    def as_json(self) -> Json:
        """Return the IRDResourceEntry object."""
        entry: Json = {"uri": self.uri, "media-type": f"application/alto-{self.media_type}+json"}
        if self.accepts is not None:
            entry["accepts"] = f"application/alto-{self.accepts}+json"
        if self.capabilities is not None:
            entry["capabilities"] = self.capabilities
        if self.uses:
            entry["uses"] = list(self.uses)
        return entry


_COSTS = {"cost-constraints": True, "cost-type-names": list(COST_TYPES)}
RESOURCES = (
    Resource(name=NETWORK_MAP, uri="networkmap", media_type="networkmap"),
    Resource(
        name="filtered-network-map",
        uri="filtered/networkmap",
        media_type="networkmap",
        accepts="networkmapfilter",
        uses=[NETWORK_MAP],
    ),
    *(
        Resource(
            name=f"cost-map-{metric}",
            uri=f"costmap/{metric}",
            media_type="costmap",
            capabilities={"cost-type-names": [metric]},
            uses=[NETWORK_MAP],
        )
        for metric in COST_TYPES
    ),
    Resource(
        name="filtered-cost-map",
        uri="filtered/costmap",
        media_type="costmap",
        accepts="costmapfilter",
        capabilities=_COSTS,
        uses=[NETWORK_MAP],
    ),
    Resource(
        name="endpoint-cost",
        uri="endpointcost",
        media_type="endpointcost",
        accepts="endpointcostparams",
        capabilities=_COSTS,
    ),
    Resource(
        name="endpoint-property",
        uri="endpointprop",
        media_type="endpointprop",
        accepts="endpointpropparams",
        capabilities={"prop-types": [PID_PROPERTY]},
        uses=[NETWORK_MAP],
    ),
)


def directory() -> Json:
    """Return the information resource directory (RFC 7285, section 9.2)."""
    return {
        "meta": {
            "cost-types": {metric: cost_type.as_json() for metric, cost_type in COST_TYPES.items()},
            "default-alto-network-map": NETWORK_MAP,
        },
        "resources": {resource.name: resource.as_json() for resource in RESOURCES},
    }
