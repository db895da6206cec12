"""The Flask application, and the server it runs under."""

from __future__ import annotations

import os
import socket
import threading
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import urlsplit

import waitress
from flask import Flask, abort, json, request
from prometheus_client import CollectorRegistry
from waitress import wasyncore

from orchestrator.api import completions, deployments, health, jobs, network, nodes, problems
from orchestrator.api.document import DocumentedApi
from orchestrator.api.keys import ApiKeys
from orchestrator.api.services import Services
from orchestrator.api.serving_metrics import ServingMetrics
from orchestrator.errors import InvalidRequest, Unavailable

_BODY_LIMIT_BYTES = 4 * 1024 * 1024
_DRAINED_BYTES = 16 * _BODY_LIMIT_BYTES
"""What the server still reads of a body, so that its sender gets the refusal instead of a reset."""
_THREADS = 320
"""Each reader of a stream holds one."""
_CONNECTIONS = 2 * _THREADS
_BACKLOG = 128


def create_app(services: Services) -> Flask:
    """Put the routes together."""
    app = DocumentedApi(
        __name__,
        version=_version(),
        validation_error_status=400,
        validation_error_callback=problems.invalid_body,
    )
    app.config["MAX_CONTENT_LENGTH"] = _BODY_LIMIT_BYTES
    app.before_request(_check_origin)
    app.before_request(_check_json)
    if services.config.api_keys_file is not None:
        ApiKeys.of_file(services.config.api_keys_file).guard(app)
    problems.register(app)
    registry = CollectorRegistry()
    for part in (nodes, network, jobs, deployments):
        app.register_api(part.blueprint(services))
    app.register_api(health.blueprint(services, registry))
    app.register_api(completions.blueprint(services, ServingMetrics(registry, services.clock.monotonic_s)))
    return app


class ApiServer:
    """The API under waitress, in a thread of its own; start and stop it."""

    def __init__(self, app: Flask, *, host: str, port: int) -> None:
        """Bind `host`:`port`.

        Raises:
            Unavailable: the port is taken or the address is not this machine's.
        """
        try:
            listening = socket.create_server((host, port), backlog=_BACKLOG)
        except OSError as error:
            raise Unavailable(
                f"the API cannot listen on {host} port {port}: {_reason(error)}; "
                "change api_port (network.api_port of the scenario) or end what holds it"
            ) from error
        self.port = int(listening.getsockname()[1])
        self._server = waitress.create_server(
            app,
            sockets=[listening],
            threads=_THREADS,
            connection_limit=_CONNECTIONS,
            asyncore_use_poll=True,  # select() ends at descriptor 1023
            ident=None,
            channel_request_lookahead=1,  # notices readers of a stream that vanish
            outbuf_high_watermark=1 << 20,
            max_request_body_size=_DRAINED_BYTES,
            clear_untrusted_proxy_headers=True,
        )
        self._thread = threading.Thread(target=self._server.run, name="api", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self, *, timeout_s: float = 3.0) -> None:
        """Stop answering; requests in progress are cut off after `timeout_s`."""
        if not self._thread.is_alive():
            return
        self._server.task_dispatcher.shutdown(timeout=timeout_s)
        # The loop ends when its last connection is gone; only its own thread may close them.
        trigger = self._server.trigger
        with trigger.lock:  # or another waking would carry it out, and close the trigger, before it is pulled
            trigger.thunks.append(self._close_all)
            trigger.pull_trigger()
        self._thread.join(timeout=timeout_s)

    def _close_all(self) -> None:
        wasyncore.close_all(self._server._map, ignore_all=True)


def _check_origin() -> None:
    """Refuse what a page of another site makes the operator's browser send; programs send no Origin."""
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != request.host:
        abort(403, f"requests from pages of {origin[:200]} are refused; use a page of {request.host_url}")


def _check_json() -> None:
    """Refuse a body that is not JSON before its schema is looked at; an empty one counts as `{}`."""
    if request.method not in ("POST", "PUT", "PATCH"):
        return
    raw = request.get_data(cache=True)
    if not raw.strip():
        request._cached_json = ({}, {})
        return
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {error}; send an object like {{}}") from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"the body is a JSON {type(document).__name__}; send an object like {{}}")
    # Clients that forget the content type are understood all the same.
    request._cached_json = (document, document)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def _version() -> str:
    try:
        return version("utopia")
    except PackageNotFoundError:
        return "0.1.0"
