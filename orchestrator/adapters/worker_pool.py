"""The live workers: enrolment, attached connections, heartbeats, requests and notifications.

A node is alive while both of its connections are open and something was heard on one of them within
`heartbeat_limit_s`. Whether it is trusted is the operator's word alone.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.adapters.certificates import Authority, NodeTrust
from orchestrator.adapters.goodput_reports import Transfers
from orchestrator.errors import (
    EnrolmentRefused,
    NotFound,
    WorkerError,
    WorkerLost,
    WorkerRefused,
    WorkerTimeout,
)
from orchestrator.ports import Answer, ChannelName, Clock, Json, NodeEvent, NodeRecord, Tensors
from workers import connections, link
from workers.errors import ChannelClosed, RemoteError, RequestRefused, RequestTimeout, WireError
from workers.wire import BodySink, Frame, Header

log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 0.5
HEARTBEAT_LIMIT_S = 5.0
_WATCH_INTERVAL_S = 0.25
_SERIALS_LIMIT = 8192
_REFUSAL_S = 1.0
_NOTIFICATIONS = ("heartbeat", "tokens", "done", "stalled")


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


class _Attach(BaseModel):
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


class _Heartbeat(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    sent_at: float
    cpu_utilisation: float | None = Field(default=None, ge=0)
    rss_bytes: int | None = Field(default=None, ge=0)
    free_memory_bytes: int | None = Field(default=None, ge=0)
    busy: str | None = Field(default=None, max_length=256)
    shards: tuple[str, ...] = ()
    packets: _Packets | None = None


@dataclass(slots=True, kw_only=True)
class _Session:
    """One run of one worker: its two connections and what it last said. Guarded by the pool's lock."""

    node: str
    session: str
    address: str
    port: int
    profile: Profile
    attached_at: float
    heard_at_s: float
    heard_bytes: int = 0
    channels: dict[ChannelName, link.Channel] = field(default_factory=dict)
    heartbeat: _Heartbeat | None = None
    joined: bool = False

    @property
    def complete(self) -> bool:
        return len(self.channels) == 2


class LiveWorkerPool:
    """Serves the data-plane listener; see `orchestrator.ports.WorkerPool`."""

    def __init__(
        self,
        *,
        authority: Authority,
        clock: Clock,
        transfers: Transfers | None = None,
        heartbeat_interval_s: float = HEARTBEAT_INTERVAL_S,
        heartbeat_limit_s: float = HEARTBEAT_LIMIT_S,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._transfers = transfers
        self._heartbeat_interval_s = heartbeat_interval_s
        self._heartbeat_limit_s = heartbeat_limit_s
        self._lock = threading.RLock()
        self._sessions: dict[str, _Session] = {}
        self._losses: dict[str, str] = {}
        self._listeners: list[Callable[[NodeEvent], None]] = []
        self._notified: dict[str, list[Callable[[str, Json], None]]] = defaultdict(list)
        self._serials: dict[str, int] = {}
        self._server: connections.Server | None = None
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watch-workers", daemon=True)

    def start(self, listening_socket: socket.socket) -> None:
        """Serve workers on a socket that listens already."""
        self._server = connections.serve(
            listening_socket,
            self._authority.server_context(self._note_serial),
            handler=self._handle,
            on_close=self._on_close,
            inline_kinds=_NOTIFICATIONS,
        )
        self._watcher.start()

    def stop(self) -> None:
        """Close the listener and every connection."""
        self._stopping.set()
        if self._server is not None:
            self._server.close("the orchestrator stops")
            self._server = None
        if self._watcher.is_alive():
            self._watcher.join(timeout=2 * _WATCH_INTERVAL_S + 1)

    def ready(self) -> str | None:
        """Answer None when workers can attach, else why not."""
        return None if self._server is not None else "the data-plane listener is not up"

    def create_token(self, node: str, *, trusted: bool | None) -> str:
        """Make the one-time enrolment token of `node`."""
        return self._authority.create_token(node, trusted=trusted)

    def revoke(self, node: str) -> None:
        """Cut `node` off at once and refuse its certificate from now on."""
        self._authority.revoke(node)
        self._end(node, "revoked by the operator")

    def nodes(self) -> tuple[NodeRecord, ...]:
        """List every node that was ever invited, in order of name."""
        known = self._authority.known()
        with self._lock:
            records = [self._record(trust) for trust in known]
        return tuple(sorted(records, key=lambda record: _natural(record.node)))

    def node(self, name: str) -> NodeRecord:
        """Give one node."""
        records = self.nodes()
        for record in records:
            if record.node == name:
                return record
        names = ", ".join(record.node for record in records) or "none yet"
        raise NotFound(f"node {name!r} is not known; known nodes: {names}")

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

    def request(
        self,
        node: str,
        channel: ChannelName,
        kind: str,
        fields: Json,
        tensors: Tensors | None = None,
        *,
        timeout_s: float,
        into: BodySink | None = None,
    ) -> Answer:
        """Ask `node` and wait; byte counts are those of the tensors."""
        connection, address = self._connection(node, channel)
        tensors = tensors or {}
        counted = _Counted(into) if into is not None else None
        started_s = self._clock.monotonic_s()
        try:
            reply = connection.request(kind, fields, tensors, timeout_s=timeout_s, into=counted)
        except ChannelClosed as error:
            raise WorkerLost(f"node {node} was lost during {kind}: {error}") from error
        except RequestTimeout as error:
            raise WorkerTimeout(f"node {node} did not answer {kind} within {timeout_s:g} s") from error
        except RemoteError as error:
            raise WorkerRefused(f"node {node} refused {kind}: {error.detail}", code=error.code) from error
        except WireError as error:
            raise WorkerError(f"{kind} cannot be sent to node {node}: {error}") from error
        fields, sent_bytes = dict(reply.fields), _size(tensors)
        told = fields.pop("received", None)
        if self._transfers is not None:
            took_s = self._clock.monotonic_s() - started_s
            self._transfers.sent(address, told, sent_bytes=sent_bytes, took_s=took_s)
            self._transfers.received(address, reply.receipt)
        return Answer(
            fields=fields,
            tensors=dict(reply.tensors),
            sent_bytes=sent_bytes,
            received_bytes=counted.size_bytes if counted is not None else _size(reply.tensors),
        )

    def subscribe(self, listener: Callable[[NodeEvent], None]) -> Callable[[], None]:
        """Call `listener` on each node event, from the pool's threads; answers how to stop."""
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def on_notification(self, kind: str, listener: Callable[[str, Json], None]) -> Callable[[], None]:
        """Call `listener(node, fields)` for each notification of this kind; answers how to stop."""
        with self._lock:
            self._notified[kind].append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._notified[kind]:
                    self._notified[kind].remove(listener)

        return stop

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

    def _connection(self, node: str, channel: ChannelName) -> tuple[link.Channel, str]:
        with self._lock:
            session = self._sessions.get(node)
            if session is None or not session.joined:
                raise WorkerLost(f"node {node} is not attached: {self._losses.get(node, 'it never was')}")
            return session.channels[channel], session.address

    def _handle(self, channel: link.Channel, frame: Frame) -> link.Reply | None:
        if channel.peer_name is None:
            return self._welcome(frame)
        if frame.kind == "attach":
            return self._attach(channel, frame)
        if frame.kind in _NOTIFICATIONS and frame.id is None:
            self._notice(channel, frame)
            return None
        raise RequestRefused("not-served", f"{frame.kind!r} is not served by the orchestrator")

    def _welcome(self, frame: Frame) -> link.Reply:
        """Serve a worker without a certificate: the authority's certificate, and enrolment."""
        if frame.kind == "ca":
            return link.Reply({"ca_pem": self._authority.ca_pem})
        if frame.kind != "enrol":
            raise RequestRefused("no-certificate", f"{frame.kind!r} needs a certificate; enrol first")
        values = {name: frame.fields.get(name) for name in ("node", "secret", "csr_pem")}
        wrong = [name for name, value in values.items() if not isinstance(value, str)]
        if wrong:
            raise RequestRefused("bad-fields", f"enrol needs the strings {', '.join(wrong)}")
        try:
            return link.Reply({"certificate_pem": self._authority.enrol(**values)})  # type: ignore[arg-type]
        except EnrolmentRefused as error:
            log.warning("enrolment refused: %s", error)
            raise RequestRefused("enrolment-refused", str(error)) from error

    def _attach(self, channel: link.Channel, frame: Frame) -> link.Reply:
        node = channel.peer_name
        assert node is not None
        try:
            wanted = _Attach.model_validate(dict(frame.fields))
        except ValidationError as error:
            item = error.errors()[0]
            where = ".".join(str(part) for part in item["loc"])
            raise RequestRefused("bad-fields", f"attach: {where}: {item['msg']}") from error
        self._check_serial(channel, node)
        with self._lock:
            stale = self._sessions.get(node)
            replaced = stale is not None and stale.session != wanted.session
        if replaced:
            self._end(node, "the worker attached anew")
        with self._lock:
            session = self._sessions.get(node) or self._open(node, wanted)
            session.channels[wanted.channel] = channel
            joined = session.complete and not session.joined
            session.joined = session.joined or joined
            session.heard_at_s = self._clock.monotonic_s()
        if joined:
            log.info("node %s joined at %s:%d", node, wanted.address, wanted.port)
            self._tell("node_joined", node, "attached")
        return link.Reply({"heartbeat_interval_s": self._heartbeat_interval_s})

    def _note_serial(self, where: str, serial: int) -> None:
        with self._lock:
            self._serials[where] = serial
            while len(self._serials) > _SERIALS_LIMIT:  # of connections that never asked for anything
                del self._serials[next(iter(self._serials))]

    def _check_serial(self, channel: link.Channel, node: str) -> None:
        """Turn a worker away whose certificate was revoked or replaced; the connection ends soon after."""
        with self._lock:
            serial = self._serials.get(channel.peer_address)
        if serial is not None and self._authority.accepts(node, serial):
            return
        ending = threading.Timer(_REFUSAL_S, channel.close, args=("its certificate is not in force",))
        ending.daemon = True
        ending.start()
        raise RequestRefused(
            "revoked",
            f"the certificate of {node} was revoked or replaced; have the operator make a new token",
        )

    def _open(self, node: str, wanted: _Attach) -> _Session:
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

    def _notice(self, channel: link.Channel, frame: Frame) -> None:
        node = channel.peer_name
        assert node is not None
        with self._lock:
            session = self._sessions.get(node)
            known = session is not None and session.channels.get("control") is channel
            listeners = tuple(self._notified.get(frame.kind, ()))
        if not known or session is None:
            raise WireError(f"{frame.kind!r} before attach, or not on the control connection")
        if frame.kind == "heartbeat":
            self._hear(session, frame)
        for listener in listeners:
            listener(node, dict(frame.fields))

    def _hear(self, session: _Session, frame: Frame) -> None:
        try:
            heartbeat = _Heartbeat.model_validate(dict(frame.fields))
        except ValidationError as error:
            raise WireError(f"heartbeat of {session.node}: {error.errors()[0]['msg']}") from error
        with self._lock:
            session.heartbeat = heartbeat
            session.heard_at_s = self._clock.monotonic_s()

    def _on_close(self, channel: link.Channel, reason: str) -> None:
        node = channel.peer_name
        with self._lock:
            self._serials.pop(channel.peer_address, None)
            session = self._sessions.get(node) if node is not None else None
            ours = session is not None and channel in session.channels.values()
        if ours and node is not None:
            self._end(node, f"its connection ended: {reason}")

    def _end(self, node: str, reason: str) -> None:
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

    def _tell(self, kind: Any, node: str, reason: str) -> None:
        event = NodeEvent(kind=kind, node=node, reason=reason, at=self._clock.unix_s())
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(event)

    def _watch(self) -> None:
        """End the sessions of workers that fell silent."""
        while not self._stopping.wait(_WATCH_INTERVAL_S):
            for node, silent_s in self._silences().items():
                if silent_s > self._heartbeat_limit_s:
                    self._end(node, f"nothing was heard of it for {silent_s:.1f} s")

    def _silences(self) -> dict[str, float]:
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


class _Counted:
    """A sink that notes how much came."""

    def __init__(self, sink: BodySink) -> None:
        self._sink = sink
        self.size_bytes = 0

    def __call__(self, header: Header) -> Iterable[memoryview]:
        self.size_bytes = sum(spec.size_bytes for spec in header.tensors)
        return self._sink(header)


def _size(tensors: Mapping[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _natural(name: str) -> tuple[str, int, str]:
    """Order h2 before h10."""
    stem = name.rstrip("0123456789")
    number = name[len(stem) :]
    return stem, int(number) if number else -1, name
