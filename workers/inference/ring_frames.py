"""The frames that go round a ring: made and checked (docs/wire_protocol.md).

Shape letters: T rows (tokens) of one sequence, M sequences with one row each, H hidden.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from workers import fields
from workers.errors import WireError
from workers.inference import activations, timing
from workers.inference.pieces import Piece
from workers.inference.stage import Arrived, Place, Rows, Spans, Stage
from workers.inference.timing import Way
from workers.wire.frames import Form, Frame

MOST_TOGETHER = 64
"""Rows of so many sequences at most go through a stage at once, and in one frame."""
_LONGEST_DETAIL = 2_000
_FORMS_KEPT = 8
_ROUTES_KEPT = 64
_PLACE = len(Place._fields)


def address(stage: Stage, number: int) -> dict[str, Any]:
    """Return the fields that say which request of which deployment and epoch a frame is about."""
    return {"deployment": stage.assignment.deployment, "epoch": stage.epoch, "number": number}


def send_prompt(stage: Stage, piece: Piece) -> None:
    """Send a piece of a prompt to the next node."""
    assert stage.link is not None
    place = piece.place
    where = {"position": place.position, "sequence": place.sequence, "partial": piece.partial}
    tensors = activations.packed(piece.rows, stage.assignment.wire)
    way = {"way": timing.way_fields(piece.way)}
    stage.link.send("activation", {**address(stage, place.number), **where, **way}, tensors)


def send_passed(stage: Stage, place: Place, way: Way) -> None:
    """Tell the head that a piece of a prompt, of which more follow, has passed the last layer."""
    assert stage.link is not None
    told = {"sequence": place.sequence, "way": timing.way_fields(way)}
    stage.link.send("passed", {**address(stage, place.number), **told})


def send_rows(stage: Stage, places: Sequence[Place], rows: Rows, spent_ns: Spans | None = None) -> None:
    """Send the next rows [M, H] of M sequences to the next node, and what was spent on them so far."""
    assert stage.link is not None
    form = _form(stage, len(places), 0 if spent_ns is None else len(spent_ns[0]))
    activations.pack(rows, stage.assignment.wire, form.tensors)
    told = (
        places if spent_ns is None else [[*one, *spent] for one, spent in zip(places, spent_ns, strict=True)]
    )
    form.tensors["places"][:] = told
    stage.link.send_form(form)


def _form(stage: Stage, count: int, width: int) -> Form:
    """Return the frame of `count` rows with `width` times each, laid out once."""
    key = count, width, stage.together
    form = stage.forms.get(key)
    if form is None:
        if len(stage.forms) >= _FORMS_KEPT:
            stage.forms.clear()
        fields = {
            "deployment": stage.assignment.deployment,
            "epoch": stage.epoch,
            "together": stage.together,
        }
        shapes = activations.shapes(stage.assignment.wire, count, stage.assignment.config.hidden_size)
        shapes["places"] = (np.int64, (count, _PLACE + width))
        form = stage.forms[key] = Form("activations", fields, shapes)
    return form


class Routes:
    """For which stage the rows are that come in frames with the same fields, word for word.

    A connection gives such frames the same object as their fields (`known_frames`); so it is looked up and
    checked once whose they are. Used by several threads; a stage that was dropped is not kept alive.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[str, Mapping[str, Any], weakref.ref[Stage], int]] = {}

    def find(self, peer_name: str, frame: Frame) -> tuple[Stage, int] | None:
        """Return the stage and how many rows may go through it together; None if not known, or closed."""
        found = self._found.get(id(frame.fields))
        if found is None or found[1] is not frame.fields or found[0] != peer_name:
            return None
        stage = found[2]()
        return None if stage is None or stage.closed else (stage, found[3])

    def learn(self, peer_name: str, frame: Frame, stage: Stage, together: int) -> None:
        """Keep what was found for a frame."""
        if len(self._found) >= _ROUTES_KEPT:
            self._found.clear()
        self._found[id(frame.fields)] = (peer_name, frame.fields, weakref.ref(stage), together)


def arrived(stage: Stage, frame: Frame, *, came_s: float) -> Arrived:
    """Return what an `activations` frame brings: one row of each of several sequences."""
    array = frame.tensors.get("places")
    if array is None or array.dtype != np.int64 or array.ndim != 2 or not _is_width(array.shape[1]):
        raise WireError(
            "activations: places must be i64 [rows, 3 + 2 nodes]: number, position and sequence of each, and "
            f"nanoseconds waiting and computing at each of at most {timing.MOST_NODES} nodes before"
        )
    if not 1 <= len(array) <= MOST_TOGETHER:
        raise WireError(f"activations: {len(array)} rows, where 1 to {MOST_TOGETHER} go together")
    told = array.tolist()
    places = [Place._make(values[:_PLACE]) for values in told]
    context_tokens = stage.assignment.context_tokens
    for place in places:
        number, position, sequence = place
        if number < 0 or position < 0 or sequence < 0:
            raise WireError("activations: number, position and sequence must not be below 0")
        if position >= context_tokens:
            check_within(stage, place, 1)
    if len(places) > 1 and len({place.number for place in places}) != len(places):
        raise WireError("activations: two rows of one request")
    found = rows(stage, frame)
    if len(found) != len(places):
        raise WireError(f"activations for {stage.assignment.deployment}: {len(found)} rows of {len(places)}")
    return Arrived(places, found, [values[_PLACE:] for values in told], came_s)


def _is_width(width: int) -> bool:
    spans = width - _PLACE
    return spans >= 0 and spans % 2 == 0 and spans <= 2 * timing.MOST_NODES


def piece(stage: Stage, frame: Frame, *, came_s: float) -> Piece:
    """Return what an `activation` frame brings."""
    found = Piece(
        place=place_of(frame.fields),
        rows=rows(stage, frame),
        partial=frame.fields.get("partial") is True,
        way=timing.way_of(frame.fields),
        came_s=came_s,
    )
    check_within(stage, found.place, len(found.rows))
    return found


def place_of(message: Mapping[str, Any]) -> Place:
    """Return where the rows of an `activation` frame begin."""
    return Place._make(fields.integer(message, key) for key in Place._fields)


def rows(stage: Stage, frame: Frame) -> Rows:
    """Return the rows that a frame brings, in fp32 and writable."""
    assignment = stage.assignment
    try:
        return activations.unpacked(frame.tensors, assignment.wire, assignment.config.hidden_size)
    except WireError as error:
        raise WireError(f"activation for {assignment.deployment}: {error}") from error


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
