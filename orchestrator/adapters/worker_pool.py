"""The data-plane listener: enrolment, attaching, heartbeats, notifications, and requests to workers.

A node is alive while both of its connections are open and something was heard on one of them within
`heartbeat_limit_s`. Whether it is trusted is the operator's word alone.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections import defaultdict
from collections.abc import Callable

from pydantic import ValidationError

from orchestrator.adapters.certificates import Authority
from orchestrator.adapters.goodput_reports import Transfers
from orchestrator.adapters.worker_registry import Attach, Heartbeat, WorkerRegistry
from orchestrator.adapters.worker_transfers import Asked, WorkerTransfers
from orchestrator.errors import EnrolmentRefused, NotFound
from orchestrator.ports import Answer, ChannelName, Clock, Json, NodeEvent, NodeRecord, Tensors
from workers.errors import RequestRefused, WireError
from workers.wire import connections, link
from workers.wire.frames import BodySink, Frame

log = logging.getLogger(__name__)

HEARTBEAT_INTERVAL_S = 0.5
HEARTBEAT_LIMIT_S = 5.0
_WATCH_INTERVAL_S = 0.25
_SERIALS_LIMIT = 8192
_REFUSAL_S = 1.0
_NOTIFICATIONS = ("heartbeat", "tokens", "done", "stalled", "waiting")


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
        self._transfers = WorkerTransfers(clock, transfers)
        self._heartbeat_interval_s = heartbeat_interval_s
        self._heartbeat_limit_s = heartbeat_limit_s
        self._registry = WorkerRegistry(clock)
        self._lock = threading.Lock()
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
        self._registry.end(node, "revoked by the operator")

    def nodes(self) -> tuple[NodeRecord, ...]:
        """List every node that was ever invited, in order of name."""
        return self._registry.records(self._authority.known())

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
        return self._registry.addresses()

    def packet_counters(self) -> dict[str, Json]:
        """Give the packet counters that nodes told last, by data-plane address (see `addresses`)."""
        return self._registry.packet_counters()

    def serving_ends(self) -> tuple[tuple[str, int], ...]:
        """Give address and data port of the nodes that hold shards: their activations go there."""
        return self._registry.serving_ends()

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
        connection, address = self._registry.connection(node, channel)
        asked = Asked(node=node, address=address, kind=kind, timeout_s=timeout_s)
        return self._transfers.ask(connection, asked, fields, tensors or {}, into=into)

    def subscribe(self, listener: Callable[[NodeEvent], None]) -> Callable[[], None]:
        """Call `listener` on each node event, from the pool's threads; answers how to stop."""
        return self._registry.subscribe(listener)

    def on_notification(self, kind: str, listener: Callable[[str, Json], None]) -> Callable[[], None]:
        """Call `listener(node, fields)` for each notification of this kind; answers how to stop."""
        with self._lock:
            self._notified[kind].append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._notified[kind]:
                    self._notified[kind].remove(listener)

        return stop

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
            wanted = Attach.model_validate(dict(frame.fields))
        except ValidationError as error:
            item = error.errors()[0]
            where = ".".join(str(part) for part in item["loc"])
            raise RequestRefused("bad-fields", f"attach: {where}: {item['msg']}") from error
        self._check_serial(channel, node)
        self._registry.attach(node, channel, wanted)
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

    def _notice(self, channel: link.Channel, frame: Frame) -> None:
        node = channel.peer_name
        assert node is not None
        if not self._registry.controls(node, channel):
            raise WireError(f"{frame.kind!r} before attach, or not on the control connection")
        if frame.kind == "heartbeat":
            self._hear(node, channel, frame)
        with self._lock:
            listeners = tuple(self._notified.get(frame.kind, ()))
        for listener in listeners:
            listener(node, dict(frame.fields))

    def _hear(self, node: str, channel: link.Channel, frame: Frame) -> None:
        try:
            heartbeat = Heartbeat.model_validate(dict(frame.fields))
        except ValidationError as error:
            raise WireError(f"heartbeat of {node}: {error.errors()[0]['msg']}") from error
        self._registry.hear(node, channel, heartbeat)

    def _on_close(self, channel: link.Channel, reason: str) -> None:
        with self._lock:
            self._serials.pop(channel.peer_address, None)
        if channel.peer_name is not None:
            self._registry.closed(channel.peer_name, channel, reason)

    def _watch(self) -> None:
        """End the sessions of workers that fell silent."""
        while not self._stopping.wait(_WATCH_INTERVAL_S):
            for node, silent_s in self._registry.silences().items():
                if silent_s > self._heartbeat_limit_s:
                    self._registry.end(node, f"nothing was heard of it for {silent_s:.1f} s")
