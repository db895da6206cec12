"""The frames that go round a ring: made and checked (docs/wire_protocol.md).

Shape letters: T rows (tokens) of one sequence, M sequences with one row each, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workers import fields
from workers.errors import WireError
from workers.stage import Place, Rows, Stage
from workers.wire import Frame

MOST_TOGETHER = 64
"""Rows of so many sequences at most go through a stage at once, and in one frame."""
_LONGEST_DETAIL = 2_000
_ROW = ("request", "position", "sequence")


def address(stage: Stage, request: str) -> dict[str, Any]:
    """Return the fields that say which request of which deployment and epoch a frame is about."""
    return {"deployment": stage.assignment.deployment, "epoch": stage.epoch, "request": request}


def send_rows(stage: Stage, places: Sequence[Place], rows: Rows) -> None:
    """Send rows to the next node: [T, H] of one sequence from its place on, or [M, H] of M sequences."""
    assert stage.link is not None
    if len(places) == 1:
        (place,) = places
        where = {"position": place.position, "sequence": place.sequence, "together": stage.together}
        stage.link.send("activation", {**address(stage, place.request), **where}, {"x": rows})
        return
    listed = [[place.request, place.position, place.sequence] for place in places]
    fields = {
        "deployment": stage.assignment.deployment,
        "epoch": stage.epoch,
        "rows": listed,
        "together": stage.together,
    }
    stage.link.send("activations", fields, {"x": rows})


def places(message: Mapping[str, Any]) -> list[Place]:
    """Return whose rows an `activations` frame carries."""
    listed = message.get("rows")
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_TOGETHER:
        raise WireError(f"activations: rows must list 1 to {MOST_TOGETHER} of [request, position, sequence]")
    if not all(isinstance(entry, list) and len(entry) == 3 for entry in listed):
        raise WireError("activations: a row must be announced as [request, position, sequence]")
    places = [place_of(dict(zip(_ROW, entry, strict=True))) for entry in listed]
    if len({place.request for place in places}) != len(places):
        raise WireError("activations: two rows of one request")
    return places


def place_of(message: Mapping[str, Any]) -> Place:
    """Return whose row a message is about."""
    return Place(
        request=fields.text(message, "request"),
        position=fields.integer(message, "position"),
        sequence=fields.integer(message, "sequence"),
    )


def rows(stage: Stage, frame: Frame) -> Rows:
    """Return the rows that a frame brings, writable."""
    hidden = stage.assignment.config.hidden_size
    array = frame.tensors.get("x")
    if array is None or array.dtype != np.float32 or array.ndim != 2 or array.shape[1] != hidden:
        raise WireError(f"activation for {stage.assignment.deployment}: x must be f32 [rows, {hidden}]")
    if not len(array):
        raise WireError(f"activation for {stage.assignment.deployment}: x has 0 rows")
    return array if array.flags.writeable else array.copy()


def check_within(stage: Stage, place: Place, count: int) -> None:
    """Refuse rows that the deployment's context has no place for."""
    context_tokens = stage.assignment.context_tokens
    if place.position >= context_tokens or count > context_tokens - place.position:
        raise WireError(
            f"activation of {count} rows at {place.position} is not within a context of {context_tokens}"
        )


def failure(message: Mapping[str, Any]) -> dict[str, str] | None:
    """Return why a node along the ring gave a request up, None for a plain release."""
    if message.get("error") is None:
        return None
    error = fields.section(message, "error")
    return {
        "code": fields.text(error, "code"),
        "detail": fields.text(error, "detail", longest=_LONGEST_DETAIL),
    }
