"""Server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator

from flask import Response

from orchestrator.api.pages import entry_json
from orchestrator.ports import Entry

CONTENT_TYPE = "text/event-stream"
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def events(entries: Iterator[Entry | None]) -> Response:
    """Stream entries as they come; a comment while there are none finds out who has left.

    The server closes the iterator when its reader vanishes, which ends the watch.
    """
    return Response(_lines(entries), content_type=f"{CONTENT_TYPE}; charset=utf-8", headers=_HEADERS)


def _lines(entries: Iterator[Entry | None]) -> Iterator[str]:
    yield ": stream begins\n\n"
    for entry in entries:
        if entry is None:
            yield ": nothing new\n\n"
        else:
            body = json.dumps(entry_json(entry), separators=(",", ":"))
            yield f"id: {entry.sequence}\nevent: {entry.type}\ndata: {body}\n\n"
            if entry.type == "state" and entry.body.get("final"):
                return
