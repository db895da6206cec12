"""What happens, as it happens: server-sent events."""

from __future__ import annotations

from collections.abc import Iterator

from ryu.app.wsgi import Response
from ryu.lib import hub

from ryu_apps.errors import OverloadedError
from ryu_apps.events import EventStream, Reader, encode
from ryu_apps.northbound.routes import BASE, Answer, Api, Request, Route
from ryu_apps.northbound.schemas import TEXT, Schema

MAX_READERS = 64
MAX_STRANGERS = 48
"""Of these, so many without the token, where there is one: who has it always finds room."""
KEEP_ALIVE_S = 10.0
SLOW_READER_S = 30.0


def _events(api: Api, request: Request) -> Response:
    known = api.access.knows(request.headers.get("Authorization"))
    _find_room(api, known=known)
    request.environ["eventlet.minimum_write_chunk_size"] = 1
    _limit_writes(request)
    headers = [("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-store")]
    return Response(app_iter=_stream(api.events, known=known), headerlist=headers)


def _find_room(api: Api, *, known: bool) -> None:
    """Refuse a reader that would be one too many.

    Raises:
        OverloadedError: all places are taken; those of readers that are gone will be free in a moment.
    """
    readers = api.events.readers
    strangers = sum(1 for reader in readers if not reader.known)
    if len(readers) < MAX_READERS and (known or api.access.token is None or strangers < MAX_STRANGERS):
        return
    for reader in readers:
        reader.wake()  # they write, and notice who is gone
    what = f"{len(readers)} readers follow the events already, {strangers} of them without the token"
    raise OverloadedError(f"{what}; close one of them, and try again in a second")


def _stream(events: EventStream, *, known: bool) -> Iterator[bytes]:
    """Yield events as they happen, until the reader goes away or falls behind."""
    woken = hub.Event()
    reader = Reader(wake=woken.set, known=known)
    events.readers.add(reader)
    try:
        yield b": utopia northbound events\n\n"
        while not reader.overrun:
            woken.wait(timeout=KEEP_ALIVE_S)
            woken.clear()
            yield reader.take() or b": still here\n\n"
        yield encode("overrun", {"detail": "this reader did not keep up; read the state anew and reconnect"})
    finally:
        events.readers.discard(reader)


def _limit_writes(request: Request) -> None:
    """Let a reader that takes nothing block only itself, and not for ever."""
    body = request.environ.get("eventlet.input") or request.environ.get("wsgi.input")
    connection = body.get_socket() if hasattr(body, "get_socket") else None
    if connection is not None:
        connection.settimeout(SLOW_READER_S)


SCHEMAS: dict[str, Schema] = {}

ROUTES = (
    Route(
        method="GET",
        path=f"{BASE}/events",
        handler=_events,
        summary="Follow what happens",
        answers=(
            Answer(
                summary="Events `event: <type>`, `data: <json>`; never ends by itself",
                schema=TEXT,
                media_type="text/event-stream",
            ),
        ),
        problems=(503,),
    ),
)
