"""What operators ask steering for, checked, and the file that keeps it over a restart of the controller."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from itertools import pairwise
from pathlib import Path
from typing import Any

from ryu_apps.discovery import Host, dpid_text, from_host_id, hop_id, to_host_id
from ryu_apps.errors import BadRequestError, ConflictError, NotFoundError, RequestError, StartError
from ryu_apps.flows import Flow, TrafficClass, back_along
from ryu_apps.objectives import MAX_ALTERNATIVES, Hops, Objective
from ryu_apps.paths import Hop

MAX_PINS = 256
MAX_PATH = 64
EXAMPLE = '{"src": "198.18.0.1", "dst": "198.18.0.2", "objective": "delay"}'

_HOP = re.compile(r"([0-9a-f]{16})\.(\d{1,10})-([0-9a-f]{16})\.(\d{1,10})")
_DPID = re.compile(r"[0-9a-f]{16}")
_PIN_KEYS = ("src", "dst", "both_directions", "traffic_class", "path", "objective")
_CLASS_KEYS = ("protocol", "src_port", "dst_port", "dscp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a request asks for; one of `path` (link ids or datapath ids) and `objective`."""

    flow: Flow
    both_directions: bool = False
    path: tuple[str, ...] | None = None
    objective: Objective | None = None
    k: int | None = None
    preview: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A flow, and its answers if asked for, pinned to a way or to an objective."""

    id: str
    flow: Flow
    both_directions: bool
    hops: Hops | None
    objective: Objective | None
    created_at: float

    def hops_of(self, flow: Flow) -> Hops | None:
        """Return the way of one of the directions, None for an objective."""
        if self.hops is None or flow == self.flow:
            return self.hops
        return back_along(self.hops)

    @property
    def flows(self) -> list[Flow]:
        """Return the directions of the pin."""
        return [self.flow, self.flow.reversed()] if self.both_directions else [self.flow]

    def as_json(self) -> dict[str, Any]:
        """Return what was asked for, in the words of the request; a path by the ids of its links."""
        return {
            "id": self.id,
            **self.flow.as_json(),
            "both_directions": self.both_directions,
            "path": None if self.hops is None else [hop_id(hop) for hop in self.hops],
            "objective": None if self.objective is None else dict(self.objective.weights),
            "created_at": self.created_at,
        }


def read_wish(body: object) -> Wish:
    """Return what the body of a request asks for.

    Raises:
        BadRequestError: it breaks the contract; the text says where.
    """
    fields = _map(body, (*_PIN_KEYS, "k", "preview"), "the body")
    src, dst = _address(fields, "src"), _address(fields, "dst")
    if src == dst:
        raise BadRequestError(f"src and dst are both {src}; a path leads from one host to another")
    if ("path" in fields) == ("objective" in fields):
        raise BadRequestError("a pin has either a path or an objective; give exactly one of them")
    return Wish(
        flow=Flow(src=src, dst=dst, traffic_class=_traffic_class(fields.get("traffic_class"))),
        both_directions=_flag(fields, "both_directions"),
        path=_path(fields["path"]) if "path" in fields else None,
        objective=_objective(fields["objective"]) if "objective" in fields else None,
        k=check_k(fields["k"]) if "k" in fields else None,
        preview=_flag(fields, "preview"),
    )


def check_k(value: object) -> int:
    """Return how many alternatives were asked for."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_ALTERNATIVES:
        raise BadRequestError(
            f"k is {_shown(value)}; it is a whole number of alternatives between 1 and {MAX_ALTERNATIVES}"
        )
    return value


def _map(value: object, known: Collection[str], what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise BadRequestError(f"{what} is not a map; send such as {EXAMPLE}")
    for name in value:
        if name not in known:
            raise BadRequestError(f"{what} has no {_shown(name)}; it has {', '.join(known)}")
    return value


def _address(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise BadRequestError(f"{name} is {_shown(value)}, not an IPv4 address such as 198.18.0.1")
    try:
        return str(IPv4Address(value))
    except AddressValueError as error:
        raise BadRequestError(f"{name} is {_shown(value)}, not an IPv4 address such as 198.18.0.1") from error


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name, False)
    if not isinstance(value, bool):
        raise BadRequestError(f"{name} is {_shown(value)}; it is true or false")
    return value


def _traffic_class(value: object) -> TrafficClass | None:
    if value is None:
        return None
    fields = _map(value, _CLASS_KEYS, "traffic_class")
    for name, part in fields.items():
        if name == "protocol" and not isinstance(part, str):
            raise BadRequestError(f"traffic_class: protocol is {_shown(part)}; it is tcp or udp")
        if name != "protocol" and (isinstance(part, bool) or not isinstance(part, int)):
            raise BadRequestError(f"traffic_class: {name} is {_shown(part)}, not a whole number")
    try:
        return TrafficClass(**fields)
    except ValueError as error:
        raise BadRequestError(f"traffic_class: {_shorter(str(error))}") from error


def _path(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PATH:
        raise BadRequestError(f"path is not a list of 1 to {MAX_PATH} link ids or datapath ids of switches")
    for item in value:
        if not isinstance(item, str) or len(item) > 100:
            raise BadRequestError(f"path holds {_shown(item)}, neither a link id nor a datapath id")
    return tuple(value)


def _objective(value: object) -> Objective:
    weights = {value: 1.0} if isinstance(value, str) else value
    if not isinstance(weights, dict):
        raise BadRequestError(f"objective is {_shown(value)}, neither a name nor a map of weights")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or abs(weight) > 1e6:
            raise BadRequestError(
                f"objective: the weight of {_shown(name)} is {_shown(weight)}, not a number"
            )
    total = math.fsum(weights.values())
    if not 0 < total < math.inf:
        raise BadRequestError(f"objective: the sum of the weights is {total}; it must be above 0")
    try:
        return Objective(weights={name: weight / total for name, weight in weights.items()})
    except ValueError as error:
        raise BadRequestError(f"objective: {_shorter(str(error))}") from error


def _shown(value: object) -> str:
    return _shorter(repr(value))


def _shorter(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def resolve(
    path: Collection[str], *, up: Collection[Hop], dpids: Collection[int], src: Host, dst: Host
) -> Hops:
    """Return the links of a path that was given by the ids of its links or of its switches.

    Between switches with several links the one with the smallest port is taken. The links of the hosts may
    be in it or not.

    Raises:
        BadRequestError: it is not one loop-free way between the hosts' switches.
        NotFoundError, ConflictError: a switch is not known, a link is not up.
    """
    if all(_DPID.fullmatch(item) for item in path):
        hops = _over_switches([int(item, 16) for item in path], up, dpids)
        ends = int(next(iter(path)), 16), int(list(path)[-1], 16)
    else:
        hops = _over_links(list(path), up, src, dst)
        ends = (hops[0].src, hops[-1].dst) if hops else (src.dpid, dst.dpid)
    for name, host, end in (("start", src, ends[0]), ("end", dst, ends[1])):
        if end != host.dpid:
            raise BadRequestError(
                f"the path {name}s at switch {dpid_text(end)}, "
                f"but host {host.ip} is at {dpid_text(host.dpid)}"
            )
    for before, after in pairwise(hops):
        if before.dst != after.src:
            raise BadRequestError(f"the path is not contiguous: after {hop_id(before)} comes {hop_id(after)}")
    passed = [ends[0], *(hop.dst for hop in hops)]
    for dpid in passed:
        if passed.count(dpid) > 1:
            raise BadRequestError(
                f"the path passes switch {dpid_text(dpid)} more than once; leave the loop out"
            )
    return hops


def _over_switches(switches: list[int], up: Collection[Hop], dpids: Collection[int]) -> Hops:
    for dpid in switches:
        if dpid not in dpids:
            known = ", ".join(dpid_text(each) for each in sorted(dpids)[:50]) or "none"
            raise NotFoundError(f"switch {dpid_text(dpid)} is not connected; connected: {known}")
    hops = []
    for one, other in pairwise(switches):
        between = sorted(hop for hop in up if (hop.src, hop.dst) == (one, other))
        if not between:
            raise ConflictError(
                f"no link from switch {dpid_text(one)} to {dpid_text(other)} is up; "
                "GET /northbound/v1/links lists those that are"
            )
        hops.append(between[0])
    return tuple(hops)


def _over_links(ids: list[str], up: Collection[Hop], src: Host, dst: Host) -> Hops:
    if ids and ids[0] == from_host_id(src):
        ids = ids[1:]
    if ids and ids[-1] == to_host_id(dst):
        ids = ids[:-1]
    hops = []
    for item in ids:
        hop = hop_of(item)
        if hop is None:
            raise BadRequestError(
                f"path holds {_shown(item)}, which is no id of a link between switches (such as "
                "00000000000000c1.3-0000000000000011.1), nor do all items name switches"
            )
        if hop not in up:
            raise ConflictError(
                f"link {item} is not up in both directions; GET /northbound/v1/links lists the links"
            )
        hops.append(hop)
    return tuple(hops)


def hop_of(link_id: str) -> Hop | None:
    """Return the link between switches that an id names, None if it names none."""
    found = _HOP.fullmatch(link_id)
    if found is None:
        return None
    src, src_port, dst, dst_port = found.groups()
    return Hop(src=int(src, 16), src_port=int(src_port), dst=int(dst, 16), dst_port=int(dst_port))


class PinFile:
    """Keep the pins in a file that survives a restart; without a path, nowhere."""

    def __init__(self, path: str | None) -> None:
        self._path = None if path is None else Path(path)

    def read(self) -> list[Pin]:
        """Return the pins of the file.

        Raises:
            StartError: it cannot be read.
        """
        if self._path is None or not self._path.exists():
            return []
        way_out = "mend it, remove it, or give another one with --pins"
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            if not isinstance(document, list) or len(document) > MAX_PINS:
                raise ValueError(f"it holds no list of at most {MAX_PINS} pins")
            return [_pin(item) for item in document]
        except (OSError, ValueError, RecursionError) as error:
            raise StartError(f"pins file {self._path} cannot be read ({error}); {way_out}") from error
        except RequestError as error:
            raise StartError(f"pins file {self._path} is wrong: {error.detail}; {way_out}") from error

    def write(self, pins: Collection[Pin]) -> None:
        """Replace the file at once, so that a crash leaves the old one or the new one.

        Raises:
            RequestError: it cannot be written.
        """
        if self._path is None:
            return
        try:
            with tempfile.NamedTemporaryFile(
                "w", dir=self._path.parent, prefix=self._path.name, delete=False
            ) as file:
                json.dump([pin.as_json() for pin in pins], file, indent=1)
            os.replace(file.name, self._path)
        except OSError as error:
            raise RequestError(
                f"the pins cannot be kept in {self._path}: {error.strerror}; nothing was changed"
            ) from error


def _pin(item: object) -> Pin:
    document = _map(item, (*_PIN_KEYS, "id", "created_at"), "a pin")
    fields = {name: part for name, part in document.items() if part is not None}
    name, created_at = fields.pop("id", None), fields.pop("created_at", None)
    if not isinstance(name, str) or re.fullmatch(r"p[1-9]\d{0,8}", name) is None:
        raise BadRequestError(f"the id of a pin is {_shown(name)}, not such as p1")
    if isinstance(created_at, bool) or not isinstance(created_at, int | float):
        raise BadRequestError(f"created_at of pin {name} is {_shown(created_at)}, not a Unix time")
    hops: Hops | None = None
    if fields.get("path") == []:
        hops = ()
        fields["path"] = ["between two ports of one switch"]
    wish = read_wish(fields)
    if wish.path is not None and hops is None:
        hops = tuple(hop for link in wish.path if (hop := hop_of(link)) is not None)
        if len(hops) < len(wish.path):
            raise BadRequestError(f"the path of pin {name} is {_shown(wish.path)}, not of link ids")
    return Pin(
        id=name,
        flow=wish.flow,
        both_directions=wish.both_directions,
        hops=hops,
        objective=wish.objective,
        created_at=float(created_at),
    )
