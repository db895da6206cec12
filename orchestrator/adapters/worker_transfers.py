"""A request to a worker and its answer: counted, timed, and failing in the orchestrator's own terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.adapters.goodput_reports import Transfers
from orchestrator.errors import WorkerError, WorkerLost, WorkerRefused, WorkerTimeout
from orchestrator.ports import Answer, Clock, Json, Tensors
from workers.errors import ChannelClosed, RemoteError, RequestTimeout, WireError
from workers.wire import link
from workers.wire.frames import BodySink, Frame, Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Who is asked for what, and for how long it is waited."""

    node: str
    address: str
    kind: str
    timeout_s: float


class WorkerTransfers:
    """Asks over connections and notes what their transfers achieved; thread-safe."""

    def __init__(self, clock: Clock, noted: Transfers | None) -> None:
        """`noted` takes what was sent and received, where anybody wants to know."""
        self._clock = clock
        self._noted = noted

    def ask(
        self, connection: link.Channel, asked: Asked, fields: Json, tensors: Tensors, *, into: BodySink | None
    ) -> Answer:
        """Ask and wait; byte counts are those of the tensors.

        Raises:
            WorkerError: no usable answer came; a subclass says why.
        """
        counted = _Counted(into) if into is not None else None
        started_s = self._clock.monotonic_s()
        reply = _reply(connection, asked, fields, tensors, counted)
        told_fields, sent_bytes = dict(reply.fields), _size(tensors)
        told = told_fields.pop("received", None)
        if self._noted is not None:
            took_s = self._clock.monotonic_s() - started_s
            self._noted.sent(asked.address, told, sent_bytes=sent_bytes, took_s=took_s)
            self._noted.received(asked.address, reply.receipt)
        return Answer(
            fields=told_fields,
            tensors=dict(reply.tensors),
            sent_bytes=sent_bytes,
            received_bytes=counted.size_bytes if counted is not None else _size(reply.tensors),
        )


class _Counted:
    """A sink that notes how much came."""

    def __init__(self, sink: BodySink) -> None:
        self._sink = sink
        self.size_bytes = 0

    def __call__(self, header: Header) -> Iterable[memoryview]:
        self.size_bytes = sum(spec.size_bytes for spec in header.tensors)
        return self._sink(header)


def _reply(
    connection: link.Channel, asked: Asked, fields: Json, tensors: Tensors, into: BodySink | None
) -> Frame:
    node, kind, timeout_s = asked.node, asked.kind, asked.timeout_s
    try:
        return connection.request(kind, fields, tensors, timeout_s=timeout_s, into=into)
    except ChannelClosed as error:
        raise WorkerLost(f"node {node} was lost during {kind}: {error}") from error
    except RequestTimeout as error:
        raise WorkerTimeout(f"node {node} did not answer {kind} within {timeout_s:g} s") from error
    except RemoteError as error:
        raise WorkerRefused(f"node {node} refused {kind}: {error.detail}", code=error.code) from error
    except WireError as error:
        raise WorkerError(f"{kind} cannot be sent to node {node}: {error}") from error


def _size(tensors: Mapping[str, Any]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
