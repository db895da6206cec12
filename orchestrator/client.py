"""A client of the orchestrator's REST API, for the command line, the demo and programs.

The controller's speaks the same dialect: JSON, problem documents, server-sent events.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests

from orchestrator.errors import OrchestratorError

_CONNECT_TIMEOUT_S = 3.0
_READ_TIMEOUT_S = 60.0
_PAGE_SIZE = 200
_DONE = "data: [DONE]"


class ApiError(OrchestratorError):
    """The API refused or could not be reached; `status` is None in the second case."""

    def __init__(self, detail: str, *, status: int | None = None) -> None:
        super().__init__(detail)
        self.status = status


class Client:
    """Calls to one orchestrator at `url` (such as `http://127.0.0.1:8181`), or to another such `server`."""

    def __init__(self, url: str, *, server: str = "orchestrator", token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self._server = server
        self._session = requests.Session()
        if token is not None:
            self._session.headers["Authorization"] = f"Bearer {token}"
        self._session.trust_env = False  # a proxy has no business between us and localhost

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON of `GET path`."""
        return self._call("GET", path, params=parameters)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of `POST path` with a JSON body."""
        return self._call("POST", path, json=body)

    def put(self, path: str, body: Mapping[str, Any]) -> Any:
        """Return the JSON of `PUT path` with a JSON body."""
        return self._call("PUT", path, json=body)

    def delete(self, path: str) -> Any:
        """Return the JSON of `DELETE path`, or None if it has no body."""
        return self._call("DELETE", path)

    def items(self, path: str) -> list[Any]:
        """Return every item of a paged list."""
        found: list[Any] = []
        while True:
            page = self.get(path, limit=_PAGE_SIZE, offset=len(found))["items"]
            found += page
            if len(page) < _PAGE_SIZE:
                return found

    def events(self, path: str, *, timeout_s: float = 60.0) -> Iterator[tuple[str, Any]]:
        """Yield `(type, data)` of a stream of server-sent events until the server ends it.

        `timeout_s` bounds the silence between two lines; the server's keep-alive comments break it.
        """
        with self._request("GET", path, stream=True, timeout=(_CONNECT_TIMEOUT_S, timeout_s)) as answer:
            yield from _parse_events(self._guard(answer.iter_lines(chunk_size=1, decode_unicode=True)))

    def stream(self, path: str, body: Mapping[str, Any], *, timeout_s: float = 120.0) -> Iterator[Any]:
        """Yield the JSON of each `data:` line of a streamed answer, without the closing `[DONE]`.

        Raises:
            ApiError: it ended before that line, and not with an error that it told itself.
        """
        timeout = (_CONNECT_TIMEOUT_S, timeout_s)
        with self._request("POST", path, json=body, stream=True, timeout=timeout) as answer:
            for line in self._guard(answer.iter_lines(chunk_size=1, decode_unicode=True)):
                if line == _DONE:
                    return
                if line.startswith("data: "):
                    document = json.loads(line.removeprefix("data: "))
                    yield document
                    if "error" in document:
                        return
        raise ApiError(_broken_off(self.url, "it ended without its last line"))

    def wait(
        self, path: str, ready: Callable[[Any], bool], *, timeout_s: float, interval_s: float = 0.5
    ) -> Any:
        """Poll `GET path` until `ready` says yes of its JSON; return it.

        Raises:
            ApiError: not within `timeout_s`; the text has the last answer.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            answer = self.get(path)
            if ready(answer):
                return answer
            if time.monotonic() > deadline:
                raise ApiError(f"{path}: not ready within {timeout_s:g} s; last answer: {str(answer)[:500]}")
            time.sleep(interval_s)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        answer = self._request(method, path, timeout=(_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S), **options)
        try:
            return answer.json() if answer.content else None
        except requests.JSONDecodeError as error:
            raise ApiError(
                f"{method} {path}: the answer is not JSON: {error}", status=answer.status_code
            ) from error

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        try:
            answer = self._session.request(method, self.url + path, **options)
        except requests.RequestException as error:
            reason = type(error).__name__
            raise ApiError(
                f"the {self._server} at {self.url} does not answer ({reason}); "
                "is it up? `make mininet-up` starts one"
            ) from error
        if answer.status_code >= 400:
            raise ApiError(f"{method} {path}: {_detail(answer)}", status=answer.status_code)
        return answer

    def _guard(self, lines: Iterator[str]) -> Iterator[str]:
        try:
            yield from lines
        except requests.RequestException as error:
            raise ApiError(_broken_off(self.url, error)) from error


def _broken_off(url: str, why: object) -> str:
    return f"the stream from {url} broke off: {why}; where that server is being started again, ask again soon"


def _parse_events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    kind = "message"
    for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))
            kind = "message"


def _detail(answer: requests.Response) -> str:
    """Return what a problem document or an OpenAI-shaped error says, or the plain status."""
    try:
        document = answer.json()
    except requests.JSONDecodeError:
        return f"{answer.status_code} {answer.reason}"
    if isinstance(document, dict):
        if isinstance(document.get("error"), dict):
            return str(document["error"].get("message", answer.status_code))
        if "detail" in document:
            return str(document["detail"])
    return f"{answer.status_code} {answer.reason}"
