"""Hand every request to the handler of its route."""

from __future__ import annotations

import logging
from typing import Any

from ryu.app.wsgi import ControllerBase, Response, route

from ryu_apps.errors import RequestError
from ryu_apps.northbound.http import check_query, path_of, problem
from ryu_apps.northbound.registry import ROUTES
from ryu_apps.northbound.routes import Api, Request, find

LOG = logging.getLogger(__name__)


class NorthboundController(ControllerBase):  # type: ignore[misc]
    """Answer every request; Ryu makes one instance per request."""

    def __init__(self, request: Request, link: Any, data: Api, **config: Any) -> None:
        super().__init__(request, link, data, **config)
        self._api = data

    @route("northbound", "/{path}", requirements={"path": r"[\s\S]*"})
    def answer(self, request: Request, **_: Any) -> Response:
        """Find the handler of a path and method; every failure becomes a problem document."""
        refuse = problem
        try:
            found, arguments = find(ROUTES, request.method, path_of(request))
            self._api.access.check(request.headers.get("Authorization"), writes=found.writes)
            check_query(request, [parameter.name for parameter in found.query])
            refuse = found.refuse
            return found.handler(self._api, request, **arguments)
        except RequestError as error:
            return refuse(error)
        except Exception:
            LOG.exception("%s %s failed", request.method, request.environ.get("PATH_INFO"))
            return problem(RequestError("the controller failed to answer; its log says why"))
