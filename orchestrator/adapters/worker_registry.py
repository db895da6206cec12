"""Which workers are attached, by which connections, and what they last said of themselves.

A node is alive while both of its connections are open and something was heard on one of them of late.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.adapters.certificates import NodeTrust
from orchestrator.errors import WorkerLost
from orchestrator.ports import ChannelName, Clock, Json, NodeEvent, NodeRecord
from workers.wire import link

log = logging.getLogger(__name__)


class Profile(BaseModel):
    """What a worker tells of its device; docs/wire_protocol.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    device: str = Field(max_length=64)
    cpu_count: int = Field(ge=1)
    memory_bytes: int = Field(gt=0)
    compute_flops: float = Field(gt=0)
    layer_overhead_s: float = Field(ge=0)
    power: float | None = Field(default=None, gt=0)
    emulated: bool
    pacing: bool
    torch: str = Field(max_length=64)
    pid: int


class Attach(BaseModel):
    """What a worker says when it attaches a connection; `session` is of one run of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channel: ChannelName
    session: str = Field(min_length=1, max_length=128)
    address: str = Field(min_length=1, max_length=64)
    port: int = Field(ge=1, le=65535)
    profile: Profile


class _Packets(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    at: float = Field(ge=0)
    rx_packets: int = Field(ge=0, lt=1 << 64)
    tx_packets: int = Field(ge=0, lt=1 << 64)


class _Caches(BaseModel):
    model_config = ConfigDict(frozen=True)

    used_bytes: dict[str, Annotated[int, Field(ge=0)]] = Field(max_length=1024)
    free_bytes: int = Field(ge=0)
    limit_bytes: dict[str, Annotated[int, Field(ge=0)]] = Field(default={}, max_length=1024)
    waiting: dict[str, Annotated[int, Field(ge=0)]] = Field(default={}, max_length=1024)
    put_back: dict[str, Annotated[int, Field(ge=0)]] = Field(default={}, max_length=1024)


class Heartbeat(BaseModel):
    """What a worker says every so often."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    sent_at: float
    cpu_utilisation: float | None = Field(default=None, ge=0)
    rss_bytes: int | None = Field(default=None, ge=0)
    free_memory_bytes: int | None = Field(default=None, ge=0)
    busy: str | None = Field(default=None, max_length=256)
    shards: tuple[str, ...] = ()
    packets: _Packets | None = None
    caches: _Caches | None = None


@dataclass(slots=True, kw_only=True)
class _Session:
    """One run of one worker: its two connections and what it last said. Guarded by the registry's lock."""

    node: str
    session: str
    address: str
    port: int
    profile: Profile
    attached_at: float
    heard_at_s: float
    heard_bytes: int = 0
    channels: dict[ChannelName, link.Channel] = field(default_factory=dict)
    heartbeat: Heartbeat | None = None
    joined: bool = False

    @property
    def complete(self) -> bool:
        return len(self.channels) == 2


class WorkerRegistry:
    """The attached workers; thread-safe. Tells who listens when a node has joined or is lost."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self._sessions: dict[str, _Session] = {}
        self._losses: dict[str, str] = {}
        self._listeners: list[Callable[[NodeEvent], None]] = []

    def attach(self, node: str, channel: link.Channel, wanted: Attach) -> None:
        """Take a connection of `node`; one of another run of it ends what it had before."""
        with self._lock:
            stale = self._sessions.get(node)
            replaced = stale is not None and stale.session != wanted.session
        if replaced:
            self.end(node, "the worker attached anew")
        with self._lock:
            session = self._sessions.get(node) or self._open(node, wanted)
            session.channels[wanted.channel] = channel
            joined = session.complete and not session.joined
            session.joined = session.joined or joined
            session.heard_at_s = self._clock.monotonic_s()
        if joined:
            log.info("node %s joined at %s:%d", node, wanted.address, wanted.port)
            self._tell("node_joined", node, "attached")

    def end(self, node: str, reason: str) -> None:
        """Forget the node's session and close its connections; tells once."""
        with self._lock:
            session = self._sessions.pop(node, None)
            if session is None:
                return
            self._losses[node] = reason
        for channel in session.channels.values():
            channel.close(reason)
        if session.joined:
            log.info("node %s lost: %s", node, reason)
            self._tell("node_lost", node, reason)

    def closed(self, node: str, channel: link.Channel, reason: str) -> None:
        """End the node's session if this connection was one of it."""
        with self._lock:
            session = self._sessions.get(node)
            ours = session is not None and channel in session.channels.values()
        if ours:
            self.end(node, f"its connection ended: {reason}")

    def controls(self, node: str, channel: link.Channel) -> bool:
        """Tell whether this is the node's control connection."""
        with self._lock:
            session = self._sessions.get(node)
            return session is not None and session.channels.get("control") is channel

    def hear(self, node: str, channel: link.Channel, heartbeat: Heartbeat) -> None:
        """Keep what a node said of itself on its control connection."""
        with self._lock:
            session = self._sessions.get(node)
            if session is not None and session.channels.get("control") is channel:
                session.heartbeat = heartbeat
                session.heard_at_s = self._clock.monotonic_s()

    def connection(self, node: str, channel: ChannelName) -> tuple[link.Channel, str]:
        """Give a connection of a node, and its address.

        Raises:
            WorkerLost: it is not attached.
        """
        with self._lock:
            session = self._sessions.get(node)
            if session is None or not session.joined:
                raise WorkerLost(f"node {node} is not attached: {self._losses.get(node, 'it never was')}")
            return session.channels[channel], session.address

    def silences(self) -> dict[str, float]:
        """Give for how long each node has been silent; any byte counts, not only whole heartbeats.

        A heartbeat can wait behind the node's own large answer on a thin link; the answer's bytes show
        just as well that the node lives.
        """
        now_s = self._clock.monotonic_s()
        with self._lock:
            for session in self._sessions.values():
                heard_bytes = sum(channel.bytes_received for channel in session.channels.values())
                if heard_bytes != session.heard_bytes:
                    session.heard_bytes, session.heard_at_s = heard_bytes, now_s
            return {node: now_s - session.heard_at_s for node, session in self._sessions.items()}

    def records(self, known: Iterable[NodeTrust]) -> tuple[NodeRecord, ...]:
        """Give the records of the nodes that the authority knows, in order of name."""
        with self._lock:
            records = [self._record(trust) for trust in known]
        return tuple(sorted(records, key=lambda record: _natural(record.node)))

    def addresses(self) -> dict[str, str]:
        """Give the node of each data-plane address; one that two nodes claim is nobody's."""
        with self._lock:
            sessions = [session for session in self._sessions.values() if session.joined]
        claims = Counter(session.address for session in sessions)
        return {session.address: session.node for session in sessions if claims[session.address] == 1}

    def packet_counters(self) -> dict[str, Json]:
        """Give the packet counters that nodes told last, by data-plane address (see `addresses`)."""
        with self._lock:
            told = {node: session.heartbeat for node, session in self._sessions.items()}
        found = {}
        for address, node in self.addresses().items():
            heartbeat = told.get(node)
            if heartbeat is not None and heartbeat.packets is not None:
                found[address] = heartbeat.packets.model_dump()
        return found

    def serving_ends(self) -> tuple[tuple[str, int], ...]:
        """Give address and data port of the nodes that hold shards: their activations go there."""
        with self._lock:
            sessions = tuple(self._sessions.values())
        named = self.addresses()
        return tuple(
            (session.address, session.port)
            for session in sessions
            if named.get(session.address) == session.node
            and session.heartbeat is not None
            and session.heartbeat.shards
        )

    def subscribe(self, listener: Callable[[NodeEvent], None]) -> Callable[[], None]:
        """Call `listener` on each node event; answers how to stop."""
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def _open(self, node: str, wanted: Attach) -> _Session:
        session = _Session(
            node=node,
            session=wanted.session,
            address=wanted.address,
            port=wanted.port,
            profile=wanted.profile,
            attached_at=self._clock.unix_s(),
            heard_at_s=self._clock.monotonic_s(),
        )
        self._sessions[node] = session
        self._losses.pop(node, None)
        return session

    def _record(self, trust: NodeTrust) -> NodeRecord:
        session = self._sessions.get(trust.node)
        if session is None or not session.joined:
            return NodeRecord(
                node=trust.node,
                trusted=trust.trusted,
                enrolled=bool(trust.serials),
                alive=False,
                reason=self._absence(trust),
                revoked=trust.revoked,
            )
        heartbeat = session.heartbeat
        caches = heartbeat.caches if heartbeat else None
        return NodeRecord(
            node=trust.node,
            trusted=trust.trusted,
            enrolled=True,
            alive=True,
            reason=None,
            address=session.address,
            port=session.port,
            heartbeat_age_s=self._clock.monotonic_s() - session.heard_at_s,
            cpu_utilisation=heartbeat.cpu_utilisation if heartbeat else None,
            rss_bytes=heartbeat.rss_bytes if heartbeat else None,
            free_memory_bytes=heartbeat.free_memory_bytes if heartbeat else None,
            busy=heartbeat.busy if heartbeat else None,
            shards=heartbeat.shards if heartbeat else (),
            cache_bytes=caches.used_bytes if caches else {},
            cache_free_bytes=caches.free_bytes if caches else None,
            cache_limit_bytes=caches.limit_bytes if caches else {},
            requests_waiting=caches.waiting if caches else {},
            requests_put_back=caches.put_back if caches else {},
            profile=session.profile.model_dump(),
            attached_at=session.attached_at,
            revoked=trust.revoked,
        )

    def _absence(self, trust: NodeTrust) -> str:
        if trust.revoked:
            return "revoked by the operator"
        if not trust.serials:
            return "has not enrolled yet"
        return self._losses.get(trust.node, "enrolled, but not attached since the orchestrator started")

    def _tell(self, kind: Literal["node_joined", "node_lost"], node: str, reason: str) -> None:
        event = NodeEvent(kind=kind, node=node, reason=reason, at=self._clock.unix_s())
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(event)


def _natural(name: str) -> tuple[str, int, str]:
    """Order h2 before h10."""
    stem = name.rstrip("0123456789")
    number = name[len(stem) :]
    return stem, int(number) if number else -1, name
