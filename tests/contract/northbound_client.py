"""The REST API of a simulated controller, for the contract tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ryu_apps.launcher import mend_eventlet

mend_eventlet()
sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "ryu_apps"))

from ryu.app.wsgi import WSGIApplication  # noqa: E402
from ryu_world import World  # noqa: E402
from webob import Request  # noqa: E402

from ryu_apps.access import Access  # noqa: E402
from ryu_apps.northbound import Api, NorthboundController  # noqa: E402

BASE = "/northbound/v1"
TOKEN = "a-token-of-the-tests"
H1, H4 = "198.18.1.1", "198.18.1.4"
LINK = "0000000000000001.2-0000000000000002.1"


class Client:
    """Ask the REST API of a simulated controller."""

    def __init__(self) -> None:
        self.world = World()
        self.world.host(H1, 1, 11)
        self.world.host(H4, 4, 11)
        self.world.advance(2.0)
        for ip, other in ((H1, H4), (H4, H1)):
            self.world.say_arp(ip, other)
        self.world.deliver()
        self.world.advance(5.0)
        self.app = WSGIApplication()
        access = Access(token=TOKEN, reads_need_token=False)
        self.app.register(NorthboundController, Api.of(self.world.parts, access=access))

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, token: str | None = TOKEN
    ) -> Any:
        request = Request.blank(path, method=method, body=body or b"")
        if body is None:
            del request.headers["Content-Length"]
        if token is not None:
            request.headers["Authorization"] = f"Bearer {token}"
        return request.get_response(self.app)

    def get(self, path: str) -> Any:
        return self.ask(path).json
