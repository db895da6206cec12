"""All routes and named schemas of the API."""

from __future__ import annotations

from ryu_apps.northbound import events, links, paths, schemas, status
from ryu_apps.northbound.routes import Route

_GROUPS = (status, links, paths, events)

ROUTES: tuple[Route, ...] = tuple(route for group in _GROUPS for route in group.ROUTES)
SCHEMAS: dict[str, schemas.Schema] = dict(schemas.SCHEMAS)
for _group in _GROUPS:
    SCHEMAS |= _group.SCHEMAS
