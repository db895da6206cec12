"""Which packets a route carries, and the rules of a way: pure.

A route belongs to a pair of hosts in one direction, or to one traffic class of it. A place is a port of a
switch as (datapath id, port).
"""

from __future__ import annotations

from dataclasses import dataclass

from ryu_apps.paths import Hop

PROTOCOLS = {"tcp": 6, "udp": 17}
MAX_PORT = 65535
MAX_DSCP = 63

Place = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficClass:
    """A part of a pair's packets: by protocol and ports, by DSCP, or by both; None matches anything."""

    protocol: str | None = None
    src_port: int | None = None
    dst_port: int | None = None
    dscp: int | None = None

    def __post_init__(self) -> None:
        if self.protocol is None and self.dscp is None and self.src_port is None and self.dst_port is None:
            raise ValueError("a traffic class names a protocol or a DSCP")
        if self.protocol is not None and self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol is {self.protocol!r}; it is tcp or udp")
        for name, port in (("src_port", self.src_port), ("dst_port", self.dst_port)):
            if port is not None and self.protocol is None:
                raise ValueError(f"{name} is {port} without a protocol; say tcp or udp")
            if port is not None and not 1 <= port <= MAX_PORT:
                raise ValueError(f"{name} is {port}; it is between 1 and {MAX_PORT}")
        if self.dscp is not None and not 0 <= self.dscp <= MAX_DSCP:
            raise ValueError(f"dscp is {self.dscp}; it is between 0 and {MAX_DSCP}")

    def reversed(self) -> TrafficClass:
        """Return the class of the answers: source and destination port change places."""
        return TrafficClass(
            protocol=self.protocol, src_port=self.dst_port, dst_port=self.src_port, dscp=self.dscp
        )

    @property
    def precedence(self) -> int:
        """Return 1 to 15, different for classes that overlap, so that every switch prefers the same one."""
        named = (self.dst_port, self.src_port, self.dscp, self.protocol)
        return sum(1 << bit for bit, value in enumerate(reversed(named)) if value is not None)

    def as_json(self) -> dict[str, str | int]:
        """Return what is set, by name."""
        named = {
            "protocol": self.protocol,
            "src_port": self.src_port,
            "dst_port": self.dst_port,
            "dscp": self.dscp,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The packets from one host to another, all of them or one class."""

    src: str
    dst: str
    traffic_class: TrafficClass | None = None

    def __str__(self) -> str:
        names = () if self.traffic_class is None else self.traffic_class.as_json().items()
        return " ".join([f"{self.src} -> {self.dst}", *(f"{name} {value}" for name, value in names)])

    def as_json(self) -> dict[str, object]:
        """Return the flow as the northbound API shows it."""
        part = self.traffic_class
        return {
            "src": self.src,
            "dst": self.dst,
            "traffic_class": None if part is None else part.as_json(),
        }

    @property
    def pair(self) -> Flow:
        """Return the flow of all packets of the pair."""
        return Flow(src=self.src, dst=self.dst)

    def reversed(self) -> Flow:
        """Return the flow of the answers."""
        answers = None if self.traffic_class is None else self.traffic_class.reversed()
        return Flow(src=self.dst, dst=self.src, traffic_class=answers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """A loop-free way from the port where a host's packets come in to the port of another host."""

    start: Place
    hops: tuple[Hop, ...]
    end: Place

    def rules(self) -> list[tuple[Place, int]]:
        """Return (where packets come in, output port) from the first switch to the last.

        Rules name the port where packets come in, so that the rules of two ways differ wherever packets
        come in differently, and both ways can be in place at once.
        """
        places = [self.start, *((hop.dst, hop.dst_port) for hop in self.hops)]
        outputs = [*(hop.src_port for hop in self.hops), self.end[1]]
        return list(zip(places, outputs, strict=True))


def back(hop: Hop) -> Hop:
    """Return the other direction of a link between switches."""
    return Hop(src=hop.dst, src_port=hop.dst_port, dst=hop.src, dst_port=hop.src_port)


def back_along(hops: tuple[Hop, ...]) -> tuple[Hop, ...]:
    """Return the same way in the other direction."""
    return tuple(back(hop) for hop in reversed(hops))
