"""Lists in pages, and the small schemas that routes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.errors import NotFound
from orchestrator.ports import Entry, Json, Record, RecordKind, Store


class Body(BaseModel):
    """A request body: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


_MOST = 2**63 - 1
"""What the store can count to."""


class Page(Body):
    """Which part of a list."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    offset: Annotated[int, Field(ge=0, le=_MOST)] = 0


class ById(Body):
    """A job, deployment or run by its id."""

    id: Annotated[str, Field(min_length=1, max_length=64)]


class ByNode(Body):
    """A node by its name."""

    node: Annotated[str, Field(min_length=1, max_length=63)]


class Following(Body):
    """Where in a stream of events to begin."""

    after: Annotated[int, Field(ge=0, le=_MOST, description="the last sequence number already seen")] = 0


def kept(store: Store, kind: RecordKind, record_id: str) -> Record:
    """Give a record of one kind.

    Raises:
        NotFound: there is none by that id, or it is of another kind.
    """
    try:
        record = store.get(record_id)
    except NotFound as error:
        raise NotFound(f"there is no {kind} {record_id!r}; GET /api/v1/{kind}s lists them") from error
    if record.kind != kind:
        raise NotFound(
            f"{record_id!r} is a {record.kind}, not a {kind}; see /api/v1/{record.kind}s/{record_id}"
        )
    return record


def page(items: Sequence[Json], *, total: int, wanted: Page) -> Json:
    """Wrap one page of a list."""
    return {"items": list(items), "total": total, "limit": wanted.limit, "offset": wanted.offset}


def cut(items: Sequence[Any], wanted: Page, as_json: Callable[[Any], Json]) -> Json:
    """Take the wanted page out of a whole list."""
    part = items[wanted.offset : wanted.offset + wanted.limit]
    return page([as_json(item) for item in part], total=len(items), wanted=wanted)


def decisions(store: Store, run: str, wanted: Page) -> Json:
    """Give one page of what was decided in a job or deployment."""
    entries, total = store.entries(run, type="decision", limit=wanted.limit, offset=wanted.offset)
    return page([entry_json(entry) for entry in entries], total=total, wanted=wanted)


def record_json(record: Record) -> Json:
    """Write a job or deployment as JSON."""
    return {
        "id": record.id,
        "kind": record.kind,
        "state": record.state,
        "reason": record.reason,
        "created_at": record.created_at,
        "ended_at": record.ended_at,
        "spec": record.spec,
        "summary": record.summary,
    }


def entry_json(entry: Entry) -> Json:
    """Write one entry of the event log as JSON."""
    return {"sequence": entry.sequence, "at": entry.at, "type": entry.type, **entry.body}


def epochs(store: Store, job: str) -> list[Json]:
    """Give the newest report of each epoch: one that came with the loss replaces the one without."""
    reports: dict[int, Json] = {}
    after = 0
    while True:
        entries, _ = store.entries(job, type="epoch", after=after, limit=500)
        if not entries:
            return [reports[epoch] for epoch in sorted(reports)]
        for entry in entries:
            reports[entry.body["epoch"]] = entry.body
            after = entry.sequence
